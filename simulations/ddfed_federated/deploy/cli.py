"""``ddfed deploy init|up|run|register|proxy|check``: federations of separate machines."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ddfed.cli.options import experiment_options, json_option, run_options, shared_flags
from ddfed.cli.output import emit, say, table
from ddfed.errors import ConfigError, FederationError, MissingDependencyError
from ddfed_federated.cli import MAKING, carried_out, names

if TYPE_CHECKING:
    from ddfed.runs import RunFolder
    from ddfed_federated.deploy.folder import Deployment

F = TypeVar("F", bound=Callable[..., Any])
#: ``(settings, folder, watching, note) -> summary``.
Hold = Callable[[Any, "RunFolder", Any, Callable[[str], None]], dict[str, Any]]
_FOLDER = click.Path(path_type=Path)


@click.group()
def deploy() -> None:
    """Federations of separate machines: a Flower SuperLink, and a SuperNode at each site."""


def _experiment(command: F) -> F:
    """What is asked of a deployed run: the options of `ddfed simulate` that mean something there."""
    command = run_options(command)
    command = experiment_options("Items per class and client.")(command)
    for option in (
        click.option("--references", help="Comma-separated trainings on the server's rows; 'none' for none."),
        click.option("--baselines", help="Comma-separated methods run beside it; 'none' for none."),
        click.option("--alpha", type=float, help="Concentration of the splits dirichlet and quantity (0.5)."),
        click.option("--partition", help="How the data lie; 'own' where each site's folder is its share."),
        click.option("--rounds", type=int, help="Number of rounds."),
        click.option("--method", "-m", help="Federated method (feddm); `ddfed methods list` shows them."),
    ):
        command = option(command)
    return command


@deploy.command()
@click.argument("folder", type=_FOLDER)
@click.option("--nodes", "-n", type=int, help="Number of sites, called site-0, site-1, ...")
@click.option("--sites", help="Comma-separated names of sites, instead of --nodes.")
@click.option("--host", required=True, help="Name or address the sites reach the server by.")
@click.option("--port", type=click.IntRange(1, 65535), default=8443, show_default=True, help="The sites' door.")
@click.option(
    "--link-port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="The SuperLink behind it, on the server's loopback.",
)
@json_option
def init(
    folder: Path, nodes: int | None, sites: str | None, host: str, port: int, link_port: int, as_json: bool
) -> None:
    """Write everything of a deployment on real hosts to FOLDER, which must be new.

    An authority and certificates, a key for each site, the Flower App, an nginx configuration that lets only the sites'
    calls through, systemd units, a compose file, and a README with the commands.

    \b
    Examples:
      ddfed deploy init hospital --nodes 3 --host fed.example.org
      ddfed deploy init hospital --sites berlin,paris,rome --host 10.0.0.5 --port 443
    """
    _require()
    from ddfed_federated.deploy.folder import Deployment
    from ddfed_federated.deploy.hosts import write_hosts

    if (nodes is None) == (sites is None):
        raise ConfigError("give either --nodes NUMBER or --sites NAME,NAME,...")
    if nodes is not None and nodes < 1:
        raise ConfigError(f"--nodes {nodes}: a federation needs at least 1 site")
    called = tuple(names(sites)) if sites is not None else tuple(f"site-{k}" for k in range(nodes or 0))
    made = Deployment.make(folder, host, called, port, link_port)
    write_hosts(made)
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def human() -> None:
        click.echo("\n".join(written))
        click.echo(f"\nGo on with {folder / 'README.md'}")

    emit({"folder": str(folder), "files": written}, as_json, human)


@deploy.command()
@click.argument("folder", type=_FOLDER, required=False)
@click.option("--local", type=int, required=True, metavar="N", help="Number of SuperNodes on this machine.")
@click.option("--port", type=click.IntRange(1, 65535), help="The sites' door (a free one).")
@click.option(
    "--site-data", multiple=True, type=_FOLDER, metavar="FOLDER", help="A site's own data; once for each, in order."
)
@_experiment
def up(folder: Path | None, local: int, port: int | None, site_data: tuple[Path, ...], **given: Any) -> None:
    """Rehearse a deployment on this machine: every part a process of its own, with TLS and keys, on 127.0.0.1.

    Starts a SuperLink, the proxy that is the sites' door, and N SuperNodes; runs the app; ends all of them. With the
    same seed the numbers are those of `ddfed simulate --clients N`. FOLDER, which must be new, keeps certificates and
    logs; without it they are kept only when something fails.

    \b
    Examples:
      ddfed deploy up --local 3 --rounds 3 --baselines none
      ddfed deploy up --local 2 --dataset folder --data server --site-data a --site-data b --partition own
    """
    _require()

    def hold(settings: Any, run: RunFolder, watching: Any, note: Callable[[str], None]) -> dict[str, Any]:
        from ddfed_federated.deploy.local import LocalFederation, make_local
        from ddfed_federated.deploy.running import run as see_through

        if settings.federation.clients != local:
            raise ConfigError(f"--local {local}, but the run has {settings.federation.clients} clients; give as many")
        with _place(folder) as place, _terminable():
            deployment = make_local(place / "deployment", local, port)
            with LocalFederation(deployment, place, site_data) as federation:
                note(f"SuperLink and {local} SuperNodes on 127.0.0.1; logs in {place / 'logs'}")
                return see_through(federation.control, deployment.app, run, watching, note, federation.tend)

    _main(hold, f"ddfed deploy up --local {local}", local, given)


@deploy.command()
@click.argument("folder", type=_FOLDER)
@_experiment
def run(folder: Path, **given: Any) -> None:
    """Run the app on a SuperLink that runs on this machine, set up in FOLDER by `ddfed deploy init`.

    Waits for all sites, shows the rounds, and ends with the table of `ddfed simulate`. The exit code is 0 only if the
    run completed. Settings are those of `ddfed simulate`; the number of clients is that of the sites.

    \b
    Examples:
      ddfed deploy run hospital --rounds 5
      ddfed deploy run hospital --dataset folder --data testset --partition own
      ddfed deploy run hospital --resume latest
    """
    deployment = _open(folder)

    def hold(_settings: Any, run: RunFolder, watching: Any, note: Callable[[str], None]) -> dict[str, Any]:
        from ddfed_federated.deploy.running import run as see_through

        with _control(deployment) as control:
            return see_through(control, deployment.app, run, watching, note)

    _main(hold, f"ddfed deploy run {folder}", len(deployment.sites), given)


@deploy.command()
@click.argument("folder", type=_FOLDER)
@click.argument("keys", nargs=-1, type=_FOLDER)
@json_option
def register(folder: Path, keys: tuple[Path, ...], as_json: bool) -> None:
    """Let sites in: tell the SuperLink of this machine the public keys of FOLDER, or only the files KEYS.

    Do it before their SuperNodes start, and again after the SuperLink's database was removed.

    \b
    Examples:
      ddfed deploy register hospital
      ddfed deploy register hospital new-site.key.pub
    """
    deployment = _open(folder)
    files = {path.name: path for path in keys} or {name: deployment.public_key(name) for name in deployment.sites}
    with _control(deployment) as control:
        told = {name: "was there" if control.register(path, name) is None else "let in" for name, path in files.items()}
    emit(told, as_json, lambda: table(["site", "key"], list(told.items())))


@deploy.command()
@click.argument("folder", type=_FOLDER)
@click.option("--listen", default="0.0.0.0", show_default=True, help="Address of this machine that the sites reach.")
def proxy(folder: Path, listen: str) -> None:
    """Be the sites' door where no nginx is at hand: pass their calls to the SuperLink and refuse all others.

    \b
    Example:
      ddfed deploy proxy hospital
    """
    from ddfed_federated.deploy import commands
    from ddfed_federated.deploy.processes import check_port
    from ddfed_federated.deploy.proxy import main

    deployment = _open(folder)
    check_port(deployment.port, "`ddfed deploy init --port`", listen)
    say(f"passing /v1/fleet/ from {listen}:{deployment.port} to 127.0.0.1:{deployment.link_port}; Ctrl-C ends it")
    main(commands.proxy(sys.executable, deployment.link, f"{listen}:{deployment.port}", deployment.link_port)[3:])


@deploy.command()
@click.argument("server", metavar="HOST:PORT")
@click.option("--authority", type=_FOLDER, required=True, help="The ca.crt that came with the site's key.")
@json_option
def check(server: str, authority: Path, as_json: bool) -> None:
    """Look at a server from a site: does it answer, do certificate and clock fit, is the rest of it shut?

    \b
    Example:
      ddfed deploy check fed.example.org:8443 --authority ca.crt
    """
    from ddfed_federated.deploy.checks import check_server

    rows = check_server(server, authority)
    told = [vars(row) for row in rows]
    emit(told, as_json, lambda: table(["what", "fine", "found"], [list(row.values()) for row in told]))
    if not all(row.fine for row in rows):
        raise FederationError(next(row.found for row in rows if not row.fine))


def _main(hold: Hold, command: str, clients: int, given: dict[str, Any]) -> None:
    """A run as `ddfed simulate` makes them, held elsewhere."""
    resume, alpha = given.pop("resume"), given.pop("alpha")
    baselines, references = given.pop("baselines"), given.pop("references")
    config_file, sets = given.pop("config_file"), given.pop("sets")
    as_json, quiet = given.pop("as_json"), given.pop("quiet")
    flags: dict[str, tuple[str, Any]] = {
        "--method": ("method", given.pop("method")),
        "--rounds": ("federation.rounds", given.pop("rounds")),
        "--partition": ("federation.partition", given.pop("partition")),
        "--alpha": ("federation.partition_options", None if alpha is None else {"alpha": alpha}),
        "--baselines": ("baselines", None if baselines is None else names(baselines)),
        "--references": ("references", None if references is None else names(references)),
        **shared_flags(given),
    }
    if resume is None:
        flags |= {
            "the deployment": ("federation.clients", clients),
            "this command": ("federation.backend", "deployed"),
        }

    def execute(settings: Any, folder: RunFolder, _resume: bool, quiet: bool) -> dict[str, Any]:
        return carried_out(settings, folder, quiet, lambda *told: hold(settings, folder, *told), command)

    making = replace(MAKING, check="ddfed_federated.simulate:check_deployed", execute=execute)
    making.main(flags, config_file, sets, resume, as_json, quiet)


def _require() -> None:
    from importlib.util import find_spec

    if find_spec("flwr") is None:
        raise MissingDependencyError('a deployment needs flwr, which is not installed: pip install "ddfed[federated]"')


def _open(folder: Path) -> Deployment:
    _require()
    from ddfed_federated.deploy.folder import Deployment

    return Deployment.open(folder)


def _control(deployment: Deployment) -> Any:
    from ddfed_federated.flower.control import Control

    return Control(f"127.0.0.1:{deployment.link_port}", deployment.authority)


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    """Where a local deployment lives: the given folder, or one that goes when all went well."""
    if folder is not None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} holds something already; choose a new folder for the deployment")
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
        return
    place = Path(tempfile.mkdtemp(prefix="ddfed-deploy-"))
    try:
        yield place
    except KeyboardInterrupt:
        shutil.rmtree(place, ignore_errors=True)
        raise
    except BaseException:
        say(f"what the programs said is in {place / 'logs'}")
        raise
    shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends all programs in order, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


__all__: Sequence[str] = ["deploy"]
