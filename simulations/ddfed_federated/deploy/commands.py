"""The commands of a deployment, once: what `ddfed deploy up` starts is what the written files say."""

from __future__ import annotations

from pathlib import Path

from ddfed.errors import ConfigError
from ddfed_federated.deploy.folder import Deployment

#: Flower calls home and looks for updates unless told not to.
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def superlink(link: Path, port: int, database: Path | None = None) -> list[str]:
    """The server, on loopback: its port also answers calls that nobody is asked for a key for.

    Args:
        link: folder of its certificates.
        port: on 127.0.0.1.
        database: keeps registrations over a restart; in memory without.
    """
    return [
        "flower-superlink", "--host", "127.0.0.1", "--port", str(port),
        "--ssl-ca-certfile", str(link / "ca.crt"), "--ssl-certfile", str(link / "server.pem"),
        "--ssl-keyfile", str(link / "server.key"),
        "--enable-supernode-auth",
        # The app needs nothing but ddfed, which is installed; otherwise each run would get an environment of its own.
        "--disable-runtime-dependency-installation",
        *(["--database", str(database)] if database else []),
    ]  # fmt: skip


def proxy(python: str, link: Path, listen: str, upstream: int) -> list[str]:
    """The sites' door, where no nginx is at hand."""
    return [
        python, "-m", "ddfed_federated.deploy.proxy", "--listen", listen, "--upstream", f"127.0.0.1:{upstream}",
        "--certificate", str(link / "server.pem"), "--key", str(link / "server.key"),
        "--authority", str(link / "ca.crt"),
    ]  # fmt: skip


def supernode(site: Path, server: str, client: int, clients: int, port: int, data: Path | str | None) -> list[str]:
    """One site.

    Args:
        site: folder with its key and the authority's certificate.
        server: ``HOST:PORT`` of the door.
        client: its partition id.
        clients: number of sites.
        port: on its own loopback, for its client processes.
        data: its own data folder; None where the data set needs none, or all have it in one place.

    Raises:
        ConfigError: a folder's name that Flower could not read.
    """
    if set(str(data or "")) & set('"\\\n'):
        raise ConfigError(
            f"data folder {str(data)!r}: quotes, backslashes and line breaks cannot be given to a SuperNode"
        )
    about = f"partition-id={client} num-partitions={clients}" + (f' data="{data}"' if data else "")
    return [
        "flower-supernode", "--superlink", server, "--root-certificates", str(site / "ca.crt"),
        "--auth-supernode-private-key", str(site / "node.key"), "--host", "127.0.0.1", "--port", str(port),
        "--node-config", about,
    ]  # fmt: skip


def site_command(deployment: Deployment, name: str, site: Path, port: int, data: Path | str | None) -> list[str]:
    """`supernode` for a site of a deployment."""
    client, clients = deployment.sites.index(name), len(deployment.sites)
    return supernode(site, f"{deployment.host}:{deployment.port}", client, clients, port, data)
