"""A run on a SuperLink, from its start to what it truly came to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddfed.errors import FederationError
from ddfed.runs import RunFolder
from ddfed_federated.rounds import Progressing, RoundRow

if TYPE_CHECKING:
    from ddfed_federated.flower.control import Control, Outcome

_LOOK_S = 1.0


def run(
    control: Control,
    app: Path,
    folder: RunFolder,
    watching: Progressing,
    note: Callable[[str], None],
    tend: Callable[[], list[str]] = list,
) -> dict[str, Any]:
    """Start a run on the SuperLink and wait for its end.

    Args:
        control: of the SuperLink.
        app: the Flower App's folder.
        folder: the run's, on the SuperLink's machine.
        watching: told of finished rounds.
        note: told, in words, of nodes that come and go.
        tend: looks after programs of this machine, says what happened.

    Returns:
        The summary that the server wrote.

    Raises:
        FederationError: the run failed, was stopped from elsewhere, or wrote no summary; says how to go on.
    """
    from ddfed_federated.flower.server_app import RUN_FOLDER

    seen = {_key(event) for event in folder.events()}
    number = control.start(app, {RUN_FOLDER: str(folder.path.resolve())})
    note(f"Flower run {number} started")
    try:
        while True:
            for text in tend():
                note(text)
            outcome = control.outcome(number)
            _tell(folder, seen, watching, note)
            if outcome.over:
                break
            time.sleep(_LOOK_S)
    except FederationError as error:
        raise FederationError(f"{error}\n{_how_to_go_on(folder)}") from error
    except BaseException:
        with contextlib.suppress(FederationError):
            control.stop(number)
        raise
    _check(outcome, folder)
    return folder.summary()


def _tell(folder: RunFolder, seen: set[tuple[Any, ...]], watching: Progressing, note: Callable[[str], None]) -> None:
    for event in folder.events():
        if _key(event) in seen:
            continue
        seen.add(_key(event))
        if event["kind"] == "round":
            watching.finished(RoundRow.from_json({k: v for k, v in event.items() if k != "kind"}))
        elif event["kind"] == "nodes":
            note(f"{event['method']}, before round {event['round']}: {event['change']}")


def _key(event: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(event.get(name) for name in ("kind", "method", "round", "change"))


def _check(outcome: Outcome, folder: RunFolder) -> None:
    if not outcome.well:
        raise FederationError(f"the run {outcome.how or 'ended'}: {outcome.details}\n{_how_to_go_on(folder)}")
    if not folder.finished:
        raise FederationError(
            f"the run completed, but {folder.path} has no summary; is it the same place for the SuperLink?"
        )


def _how_to_go_on(folder: RunFolder) -> str:
    if not folder.has_checkpoint:
        return "No round was finished."
    return f"The finished rounds are saved; give the same command --resume {folder.path} instead of settings."
