"""The Flower app of the server in a deployed federation: the rounds of `ddfed simulate` on a SuperLink's grid.

Its run configuration names a run folder on the SuperLink's machine, whose ``config.toml`` is the whole settings. What
the run finds is written there, as a simulation writes it, and a checkpoint after every round; a run started again on
the same folder goes on from there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ddfed.config import read_toml
from ddfed.errors import ConfigError
from ddfed.runs import RunFolder
from ddfed_federated.rounds import Progressing, RoundRow
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import simulate

#: Key of the run configuration.
RUN_FOLDER = "run-folder"
#: Seconds between two looks at the SuperLink; its nodes look every three seconds.
_POLL_S = 0.5

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Hold the run and print one line of JSON, the last of the log."""
    print(json.dumps(hold(grid, str(context.run_config.get(RUN_FOLDER, "")))), flush=True)


def hold(grid: Grid, path: str) -> dict[str, Any]:
    """Everything of a run but its report.

    Args:
        grid: of the SuperLink.
        path: run folder.

    Returns:
        What the log's last line says: folder, artifact, and each method's accuracy and bytes.

    Raises:
        ConfigError: no run folder given.
        DdfedError: as `ddfed_federated.simulate.simulate`.
    """
    if not path:
        raise ConfigError(f"the run configuration lacks {RUN_FOLDER!r}; start runs with `ddfed deploy run`")
    grid.poll = _POLL_S  # type: ignore[attr-defined]
    with RunFolder.open(Path(path), writable=True) as folder:
        settings = resolve_simulate([read_toml(folder.config_path)]).settings
        watching = Progressing(finished=_told)
        summary = simulate(settings, folder, watching, resume=True, backend=lambda serve, _: serve(grid), surveyed=True)
    methods = {
        name: {"accuracy": found["accuracy"], "bytes_up": found["bytes_up"], "bytes_down": found["bytes_down"]}
        for name, found in summary["methods"].items()
    }
    return {"run": str(folder.path), "artifact": summary["artifact"], "methods": methods}


def _told(row: RoundRow) -> None:
    lost = f", without {'; '.join(row.lost)}" if row.lost else ""
    print(f"{row.method}, round {row.round}: accuracy {row.accuracy:.4f}{lost}", flush=True)
