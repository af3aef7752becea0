"""Files for real hosts: nginx, systemd, compose, and a README with the commands in their order."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ddfed_federated.deploy import commands
from ddfed_federated.deploy.folder import NODE_PORT, Deployment

#: Where the written units look for things; the README says so.
SERVER_HOME, SITE_HOME, STATE, DATA = Path("/etc/ddfed"), Path("/etc/ddfed"), Path("/var/lib/ddfed"), "/srv/ddfed/data"


def write_hosts(deployment: Deployment) -> None:
    """Write the files that belong to a deployment of this shape."""
    texts = {
        "nginx.conf": nginx(deployment),
        "systemd/ddfed-superlink.service": _unit(
            "ddfed: Flower SuperLink",
            commands.superlink(SERVER_HOME / "link", deployment.link_port, STATE / "superlink.db"),
            restart_s=5,
        ),
        "systemd/ddfed-proxy.service": _unit(
            "ddfed: the sites' door (instead of nginx)",
            commands.proxy("python", SERVER_HOME / "link", f"0.0.0.0:{deployment.port}", deployment.link_port),
            restart_s=5,
        ),
        "compose.yaml": compose(deployment),
        "README.md": readme(deployment),
    }
    for name in deployment.sites:
        command = commands.site_command(deployment, name, SITE_HOME, NODE_PORT, DATA)
        # A SuperLink refuses a node until it has missed the one that was killed, up to a minute.
        texts[f"sites/{name}/ddfed-supernode.service"] = _unit(f"ddfed: Flower SuperNode {name}", command, restart_s=15)
    for name, text in texts.items():
        path = deployment.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def nginx(deployment: Deployment) -> str:
    """A server block that passes the Fleet API and nothing else; for nginx's folder ``conf.d``."""
    name = deployment.host
    return f"""# The sites' door. The SuperLink's port also answers calls that start runs, from anybody.
server {{
    listen {deployment.port} ssl;
    server_name {name};
    ssl_certificate     {SERVER_HOME}/link/server.pem;
    ssl_certificate_key {SERVER_HOME}/link/server.key;
    ssl_protocols       TLSv1.2 TLSv1.3;

    client_max_body_size 256m;
    proxy_request_buffering off;
    proxy_read_timeout   120s;

    # The link's certificate is from the same authority.
    proxy_ssl_verify              on;
    proxy_ssl_trusted_certificate {SERVER_HOME}/link/ca.crt;
    proxy_ssl_name                localhost;

    # One more segment of plain letters: no encoded or doubled path can mean another place further on.
    location ~ "^/v1/fleet/[a-z-]+$" {{
        if ($request_uri !~ "^/v1/fleet/[a-z-]+$") {{ return 403; }}
        proxy_pass https://127.0.0.1:{deployment.link_port};
    }}
    location = /health {{
        proxy_pass https://127.0.0.1:{deployment.link_port};
    }}
    location / {{
        return 403;
    }}
}}
"""


def _unit(description: str, command: Sequence[str], restart_s: int) -> str:
    environment = " ".join(f"{name}={value}" for name, value in commands.QUIET.items())
    # systemd takes absolute programs only; ddfed's environment is expected where the README says.
    words = " ".join(_quoted(word) for word in ["/opt/ddfed/bin/" + command[0], *command[1:]])
    return f"""[Unit]
Description={description}
After=network-online.target
Wants=network-online.target

[Service]
User=ddfed
StateDirectory=ddfed
WorkingDirectory={STATE}
Environment={environment} FLWR_HOME={STATE}/flwr PATH=/opt/ddfed/bin:/usr/bin:/bin
ExecStart={words}
Restart=always
RestartSec={restart_s}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def _quoted(word: str) -> str:
    """A word of a systemd command line: its escapes are not the shell's."""
    if word and not set(word) & set(" \t\"'\\%$"):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def compose(deployment: Deployment) -> str:
    """Server and door in containers of one network; the image is yours, with ddfed and its extra ``federated``."""
    # In one network namespace the SuperLink stays on loopback, where only the door reaches it.
    link = _lines(commands.superlink(Path("/deployment/link"), deployment.link_port, Path("/state/superlink.db")))
    door = _lines(
        commands.proxy("python", Path("/deployment/link"), f"0.0.0.0:{deployment.port}", deployment.link_port)
    )
    environment = "".join(f'\n      {name}: "{value}"' for name, value in commands.QUIET.items())
    return f"""# The server's side. `image` is one of yours in which ddfed is installed with its extra "federated".
# The SuperLink listens on loopback of the network that both share, so its port cannot be published by mistake.
#   docker compose exec superlink ddfed deploy register /deployment
#   docker compose exec superlink ddfed deploy run /deployment --out /runs
services:
  superlink:
    image: ddfed:latest
    command:{link}
    environment:{environment}
      FLWR_HOME: /state/flwr
    volumes: [".:/deployment:ro", "state:/state", "runs:/runs"]
    ports: ["{deployment.port}:{deployment.port}"]
    restart: always
  door:
    image: ddfed:latest
    command:{door}
    network_mode: "service:superlink"
    volumes: ["./link:/deployment/link:ro"]
    depends_on: [superlink]
    restart: always
volumes:
  state:
  runs:
"""


def _lines(words: Sequence[str]) -> str:
    return "".join(f"\n      - {_yaml(word)}" for word in words)


def _yaml(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"


def readme(deployment: Deployment) -> str:
    """The commands in their order, for the server and for a site."""
    name = deployment.sites[0]
    link = shlex.join(commands.superlink(Path("link"), deployment.link_port, Path("superlink.db")))
    node = shlex.join(commands.site_command(deployment, name, Path(), NODE_PORT, DATA))
    sites = "\n".join(f"| `{site}` | {client} | `sites/{site}/` |" for client, site in enumerate(deployment.sites))
    quiet = " ".join(f"{key}={value}" for key, value in commands.QUIET.items())
    return f"""# A federation at {deployment.host}:{deployment.port}

Written by `ddfed deploy init`. The same version of ddfed, with its extra `federated`, must be installed on the server
and at every site (`pip install "ddfed[federated]"`, plus the domain's extra); the first message checks it.

| site | partition id | gets |
|---|---|---|
{sites}

`authority/ca.key` signs certificates. Move it off the server now. `link/` stays on the server, each folder of `sites/`
goes to its site over a channel that you trust, and nowhere else: `node.key` is the site's identity. A site that
prefers to make its own key (`ssh-keygen -t ecdsa -b 384 -N "" -f node.key`) sends you `node.key.pub`, which you put in
its folder here.

## Server

```sh
export {quiet}
{link}
```

In another terminal, or from systemd (`systemd/`, which expects this folder in {SERVER_HOME}, ddfed in /opt/ddfed, and
a user `ddfed`): the sites' door, nginx with `nginx.conf` in its `conf.d`, or

```sh
ddfed deploy proxy .
```

Let the sites in, once; then start a run whenever their SuperNodes are up:

```sh
ddfed deploy register .
ddfed deploy run . --rounds 5
```

`ddfed deploy run` runs on the server, as the user of the SuperLink, because results are written there: run folder,
report, distilled set (under systemd: `--out {STATE}/runs`, as only {STATE} can be written to). It
waits up to five minutes for all sites. After a failure, `--resume latest` goes on from the last round.

## Site ({name})

```sh
ddfed deploy check {deployment.host}:{deployment.port} --authority ca.crt
export {quiet}
{node}
```

`data="..."` is the site's own folder, whatever the server says; leave it out for embedded data.
`ddfed-supernode.service` does the same from systemd and starts it again after failures; expect it to be refused for up
to a minute after a crash, until the SuperLink has missed the old one.

## Who can do what

Keys protect the sites' calls only. Whoever reaches the SuperLink's own port (127.0.0.1:{deployment.link_port}) can
start runs, that is, run code on the server and at every site: keep it on loopback, and do not let untrusted users log
in to the server. Sites must trust whoever runs it. See `docs/howto/deploy.md`.
"""
