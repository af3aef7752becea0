"""A whole deployment on loopback: a SuperLink, the sites' door and SuperNodes, each a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ddfed.errors import ConfigError
from ddfed_federated.deploy import commands
from ddfed_federated.deploy.folder import Deployment
from ddfed_federated.deploy.processes import Program, Programs, check_port, free_ports, wait_for_health
from ddfed_federated.flower.control import Control

HOST = "127.0.0.1"


def make_local(path: Path, nodes: int, port: int | None = None) -> Deployment:
    """A deployment for this machine alone.

    Args:
        path: a new folder.
        nodes: number of SuperNodes.
        port: of the sites' door; None takes a free one.

    Raises:
        ConfigError: fewer than one node, a port that is taken, or a folder that holds something.
    """
    if nodes < 1:
        raise ConfigError(f"--local {nodes}: a federation needs at least 1 SuperNode")
    if port is not None:
        check_port(port, "--port")
    free = free_ports(2)
    sites = tuple(f"site-{k}" for k in range(nodes))
    return Deployment.make(path, HOST, sites, free[0] if port is None else port, free[1])


class LocalFederation:
    """Everything of a deployment on this machine, while it is entered.

    Args:
        deployment: whose host is 127.0.0.1.
        scratch: folder for logs and Flower's own files.
        data: the sites' own data folders; empty where all use the settings' one.

    Attributes:
        control: of the SuperLink.
        nodes: SuperNodes by name.

    Raises:
        ConfigError: another host, a taken port, or not one data folder for each site.
        FederationError: a program did not start; holds the end of its log.
    """

    control: Control

    def __init__(self, deployment: Deployment, scratch: Path, data: Sequence[Path] = ()) -> None:
        if deployment.host != HOST:
            raise ConfigError(f"{deployment.path} is for {deployment.host!r}; a local federation is for {HOST} alone")
        if data and len(data) != len(deployment.sites):
            raise ConfigError(f"{len(data)} data folders for {len(deployment.sites)} sites; give each one, in order")
        for folder in data:
            if not folder.is_dir():
                raise ConfigError(f"data folder {folder} does not exist")
        self.deployment, self.scratch = deployment, scratch
        self._data = [str(folder.resolve()) for folder in data]
        self.nodes: dict[str, Program] = {}
        self._programs = Programs()

    def __enter__(self) -> LocalFederation:
        check_port(self.deployment.link_port, "another deployment folder")
        check_port(self.deployment.port, "--port")
        _bypass_proxies()
        try:
            self._start()
        except BaseException:
            self._programs.stop()
            raise
        return self

    def _start(self) -> None:
        made = self.deployment
        link = self._program("superlink", commands.superlink(made.link, made.link_port))
        wait_for_health(link, self._programs, made.link_port, made.authority)
        self.control = Control(f"{HOST}:{made.link_port}", made.authority)
        door = self._program("proxy", commands.proxy(sys.executable, made.link, f"{HOST}:{made.port}", made.link_port))
        wait_for_health(door, self._programs, made.port, made.authority)
        for name in made.sites:
            self.control.register(made.public_key(name), name)
        for client, name in enumerate(made.sites):
            self.join(name, client, made.site(name), self._data[client] if self._data else None)

    def join(self, name: str, client: int, site: Path, data: str | None = None, again: bool = True) -> Program:
        """Start a SuperNode whose key is registered.

        Args:
            name: of the SuperNode.
            client: its partition id.
            site: folder with its key and the authority's certificate.
            data: its own data folder.
            again: whether it is started again when it ends.
        """
        server, clients = f"{HOST}:{self.deployment.port}", len(self.deployment.sites)
        command = commands.supernode(site, server, client, clients, free_ports(1)[0], data)
        self.nodes[name] = self._program(name, command, "restart" if again else "go on")
        return self.nodes[name]

    def tend(self) -> list[str]:
        """See `Programs.tend`."""
        return self._programs.tend()

    def _program(
        self, name: str, command: list[str], when_it_ends: Literal["fail", "restart", "go on"] = "fail"
    ) -> Program:
        home = self.scratch / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        environment = {**commands.QUIET, "FLWR_HOME": str(home)}
        program = Program(name, command, self.scratch / "logs" / f"{name}.log", environment, when_it_ends)
        return self._programs.start(program)

    def __exit__(self, *_: object) -> None:
        self.control.close()
        self._programs.stop()


def _bypass_proxies() -> None:
    """A proxy for the web must not be asked for 127.0.0.1."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name, ""), HOST]))
