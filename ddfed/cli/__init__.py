"""The command line. Commands load when they are called, so that help answers at once.

A command is a `click.Command`; plugins add theirs in the hook `ddfed_commands`, best as a `LazyCommand`. A
command that takes settings may carry ``resolver = "module:function"`` (see `ddfed.cli.config`).

Exit codes: 0 done, 1 failed, 2 asked for something that is not possible, 130 interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from ddfed import __version__
from ddfed.errors import ConfigError, DdfedError

#: name -> (where it loads from, one line for ``ddfed --help``)
COMMANDS = {
    "distill": ("ddfed.cli.distill:distill", "Distil a data set centrally."),
    "evaluate": ("ddfed.cli.evaluate:evaluate", "Train fresh networks on a distilled set and test them."),
    "show": ("ddfed.cli.show:show", "Look at a distilled set or a run."),
    "compare": ("ddfed.cli.compare:compare", "Put several runs side by side."),
    "reproduce": ("ddfed.cli.reproduce:reproduce", "Run a scenario and hold it against its published figure."),
    "sweep": ("ddfed.cli.sweep:sweep", "Make the table of methods by data sets, with time and memory."),
    "prune": ("ddfed.cli.prune:prune", "Keep fewer items of a distilled set, without distilling again."),
    "experts": ("ddfed.cli.experts:experts", "Make, list and check buffers of networks trained on real data."),
    "export": ("ddfed.cli.export:export", "Write a distilled set in a common format."),
    "methods": ("ddfed.cli.lists:methods", "List the distillation methods, central and federated."),
    "domains": ("ddfed.cli.lists:domains", "List the modalities and whether they are installed."),
    "datasets": ("ddfed.cli.lists:datasets", "List the data sets and the files they expect."),
    "plugins": ("ddfed.cli.lists:plugins", "List the installed plugins and what they offer."),
    "config": ("ddfed.cli.config:config", "Show the settings of a command and where they come from."),
}
_INTERRUPTED = 130


class LazyCommand(click.Command):
    """A command that is imported when it is called; lists and help show its summary until then.

    Args:
        name: what people type.
        target: ``"module:attribute"`` of a `click.Command` or `click.Group`.
        summary: one line for the list of commands.

    Example:
        >>> cli.add_command(LazyCommand("simulate", "my_package.cli:simulate", "Run a federation."))
    """

    def __init__(self, name: str, target: str, summary: str = "") -> None:
        super().__init__(name, help=summary, short_help=summary)
        self.target = target

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), f"{self.target} is no click command"
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        # click runs whatever command the context names, so this is the only door that needs forwarding.
        return self.load().make_context(info_name, args, parent, **extra)


class RootGroup(click.Group):
    """The group ``ddfed``: plugin commands, near names, one-line errors."""

    _has_plugins = False

    def load_plugins(self) -> None:
        """Let the plugins add their commands, once. A plugin that fails is left out with a warning."""
        if self._has_plugins:
            return
        self._has_plugins = True
        from ddfed.registry import manager

        for name, plugin in manager().list_name_plugin():
            add = getattr(plugin, "ddfed_commands", None)
            if add is None:
                continue
            # One by one rather than through the hook, so that a broken one can be named.
            try:
                add(cli=self)
            except Exception as error:  # noqa: BLE001 - whatever a stranger's module raises
                warnings.warn(f"commands of plugin {name!r} are left out: {_describe(error)}", stacklevel=2)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command.

        Raises:
            ConfigError: the name is taken.
        """
        taken = self.commands.get(name or cmd.name or "")
        if taken is not None and taken is not cmd:
            raise ConfigError(f"there is a command {taken.name!r} already")
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        self.load_plugins()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self.load_plugins()
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown command {name!r}.{hint} `ddfed --help` shows them all.")
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "ddfed",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        debug = bool(os.environ.get("DDFED_DEBUG"))
        # Taken out here so that it can be appended to a command that failed, wherever its own options end.
        if "--debug" in given[: given.index("--") if "--" in given else None]:
            given.remove("--debug")
            debug = True
        if not standalone_mode:
            return super().main(given, prog_name, complete_var, False, **extra)
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _show_warning
            try:
                code = super().main(given, prog_name, complete_var, False, **extra)
                sys.stdout.flush()
            except BrokenPipeError:
                _close_stdout()
                sys.exit(1)
            except (Exception, KeyboardInterrupt) as error:
                if debug and not isinstance(error, (click.ClickException, click.exceptions.Exit)):
                    raise
                sys.exit(report(error))
        # Without standalone mode click returns the code of ctx.exit(), or whatever the command returned.
        sys.exit(code if isinstance(code, int) and not isinstance(code, bool) else 0)


def report(error: BaseException) -> int:
    """Say on stderr what went wrong; returns the exit code."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
            if not getattr(error, "told", False):  # a run has said how to go on
                click.echo("interrupted", err=True)
            return _INTERRUPTED
        click.echo("error: aborted", err=True)
        return 1
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "ddfed"
        hint = f" See `{path} --help`." if isinstance(error, click.UsageError) else ""
        click.echo(f"error: {_sentence(error.format_message())}{hint}", err=True)
        return error.exit_code
    if isinstance(error, DdfedError):
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    click.echo(f"error: {_describe(error)}. Run again with --debug to see where.", err=True)
    return 1


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def _close_stdout() -> None:
    # The interpreter flushes stdout once more on its way out, which would complain about the pipe again.
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 - a device, not a path of ours
        os.dup2(nothing.fileno(), 1)


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ddfed")
@click.option("--debug", is_flag=True, help="Show the traceback of an error; also after a command.")
def cli(debug: bool) -> None:
    """Distil large training sets into tiny synthetic ones, centrally or in a federation.

    \b
    Examples:
      ddfed simulate --clients 10 --method feddm     a federation on the embedded digits
      ddfed distill --method dm --set distill.ipc=1  a central run
      ddfed methods list                             what there is
    """


for _name, (_target, _summary) in COMMANDS.items():
    cli.add_command(LazyCommand(_name, _target, _summary))


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the command ``ddfed``; exits."""
    cli.main(args)
    raise AssertionError("standalone mode exits")


__all__ = ["COMMANDS", "LazyCommand", "RootGroup", "cli", "main", "report"]
