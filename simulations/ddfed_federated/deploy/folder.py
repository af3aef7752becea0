"""A deployment on disk: who takes part and where, with certificates and keys, readable with a text editor.

deployment.json          host, ports and sites
authority/ca.key         signs; belongs off the server
link/                    ca.crt, server.pem, server.key: the SuperLink's and the proxy's
app/                     the Flower App: names modules of the installed package, holds no code
sites/NAME/              what one site gets: node key, ca.crt, how to start
nginx.conf, systemd/, compose.yaml, README.md
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ddfed
from ddfed.errors import ConfigError
from ddfed_federated.deploy import certificates

RECORD = "deployment.json"
#: Default ports: of the sites' door, and of the SuperLink behind it.
DOOR_PORT, LINK_PORT = 8443, 8000
#: A SuperNode's own port, for its client processes, on its own loopback.
NODE_PORT = 9094


@dataclass(frozen=True)
class Deployment:
    """A deployment and the places of its files.

    Args:
        path: the folder.
        host: name or address the sites reach the server by.
        port: of the sites' door there.
        link_port: of the SuperLink, on the server's loopback.
        sites: names; a site's position is its partition id.
    """

    path: Path
    host: str
    port: int
    link_port: int
    sites: tuple[str, ...]

    @property
    def link(self) -> Path:
        return self.path / "link"

    @property
    def authority(self) -> Path:
        return self.link / "ca.crt"

    @property
    def certificate(self) -> Path:
        return self.link / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.link / "server.key"

    @property
    def app(self) -> Path:
        return self.path / "app"

    def site(self, name: str) -> Path:
        return self.path / "sites" / name

    def node_key(self, name: str) -> Path:
        return self.site(name) / "node.key"

    def public_key(self, name: str) -> Path:
        return self.site(name) / "node.key.pub"

    @classmethod
    def make(cls, path: Path, host: str, sites: tuple[str, ...], port: int, link_port: int) -> Deployment:
        """Certificates, keys and the app folder.

        Raises:
            ConfigError: the folder holds something, or the settings make no sense.
        """
        if not sites or len(set(sites)) < len(sites):
            raise ConfigError(f"a deployment needs sites with different names, got {', '.join(sites) or 'none'}")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path} holds something already; choose a new folder, keys are never overwritten")
        if not host or "/" in host or ":" in host.replace("::", ""):
            raise ConfigError(f"host {host!r}: must be a name or an address without a port, such as fed.example.org")
        made = cls(path, host, port, link_port, sites)
        ca_key = path / "authority" / "ca.key"
        certificates.make_authority(made.authority, ca_key)
        certificates.issue((made.authority, ca_key), made.certificate, made.server_key, _reached_by(host))
        for name in sites:
            certificates.make_node_key(made.node_key(name))
            (made.site(name) / "ca.crt").write_bytes(made.authority.read_bytes())
        made._write_app()
        made.save()
        return made

    def save(self) -> None:
        """Write ``deployment.json``."""
        from ddfed.files import write_json

        record: dict[str, Any] = {**asdict(self), "sites": list(self.sites), "ddfed": ddfed.__version__}
        del record["path"]
        write_json(self.path / RECORD, record)

    @classmethod
    def open(cls, path: Path) -> Deployment:
        """A deployment that exists, with certificates that hold.

        Raises:
            ConfigError: no deployment, or one whose certificates no site would accept.
        """
        from ddfed.files import read_json

        if not (path / RECORD).is_file():
            raise ConfigError(f"{path} is no deployment: it lacks {RECORD}. Make one: ddfed deploy init {path}")
        record = read_json(path / RECORD)
        try:
            found = cls(
                path, str(record["host"]), int(record["port"]), int(record["link_port"]), tuple(record["sites"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path / RECORD} is damaged: {type(error).__name__}: {error}") from error
        certificates.check(found.authority, found.certificate, found.server_key, found.host)
        return found

    def _write_app(self) -> None:
        self.app.mkdir(parents=True, exist_ok=True)
        (self.app / "pyproject.toml").write_text(APP.format(version=ddfed.__version__), encoding="utf-8")


def _reached_by(host: str) -> list[str]:
    return list(dict.fromkeys([host, "localhost", "127.0.0.1"]))


#: The Flower App: components in the installed package, nothing to install. Keys that a run gives must be named here.
APP = """[project]
name = "ddfed-federation"
version = "{version}"
description = "A ddfed federation; its code is the installed package ddfed, on the server and on every site."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "ddfed"

[tool.flwr.app.components]
serverapp = "ddfed_federated.flower.server_app:app"
clientapp = "ddfed_federated.flower.client_app:app"

[tool.flwr.app.config]
run-folder = ""
"""
