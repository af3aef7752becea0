"""Every promise made to plugins. pluggy calls these; a plugin implements the ones it wants.

A plugin is a module named by an entry point of the group ``ddfed``. It must be light: name things and where
they load from. Importing torch there slows down every command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from ddfed.distill import StepEvent
    from ddfed.registry import Registry

hookspec = pluggy.HookspecMarker("ddfed")
hookimpl = pluggy.HookimplMarker("ddfed")


@hookspec
def ddfed_register(registry: Registry) -> None:
    """Offer components: domains, data sets, recipes, decoders, federated methods, and so on.

    Called once, before the first look-up.

    registry: call ``registry.add(kind, name, target, summary=..., ...)`` for each component. ``target`` is
        ``"module:attribute"`` and is imported when a run needs it, not before.

    A name that is taken is an error naming both plugins. The return value is ignored.
    """


@hookspec
def ddfed_commands(cli: click.Group) -> None:
    """Add commands or groups to the command line.

    Called once per process, before arguments are parsed, also for ``ddfed --help``: import heavy things
    inside the command's function.

    cli: the root group. The return value is ignored.
    """


@hookspec
def ddfed_on_step(event: StepEvent) -> None:
    """Look at a distillation after an outer step (HP4, logging side).

    Called after every outer step of every run in this process, in the thread of the loop; what it does is
    paid for by the run. Also called, with a name in ``event.phase``, for each step of a network that is trained
    before the loop begins. ``event.values`` are plain numbers. The return value is ignored, an exception stops
    the run.
    """
