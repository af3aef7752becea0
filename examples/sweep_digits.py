"""The sweep behind FedDM's digits preset: image step size, radius and weighting at ipc 1, Dirichlet(0.1).

The literature's image step size 1 and radius 5 belong to a network of 320,010 weights; the digits' default network
has 40,394. Cells are chosen on two seeds that the reported figures do not use.

    python examples/sweep_digits.py --seeds 5,6 --out sweep.json
    python examples/sweep_digits.py --seeds 0,1,2,3,4 --chosen
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path

from ddfed.config import Layer, to_toml
from ddfed.runs import RunFolder
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import simulate

GRID = {"lr": (0.3, 1.0, 3.0), "rho": (2.0, 5.0, 10.0), "weighting": ("count",)}
#: Beside the grid: the paper's uniform weighting at the grid's centre.
EXTRA = ({"lr": 1.0, "rho": 5.0, "weighting": "uniform"},)


def final_accuracies(cell: dict, seed: int) -> dict[str, float]:
    """Accuracy of FedDM and of its control after the last round."""
    values = {
        "baselines": ["random-once", "random-fresh"],
        "distill": {"ipc": 1},
        "federation": {"partition_options": {"alpha": 0.1}},
        "run": {"seed": seed},
    }
    if cell:
        values["distill"] |= {"lr": cell["lr"], "pool_options": {"rho": cell["rho"]}}
        values["server"] = {"weighting": cell["weighting"]}
    settings = resolve_simulate([Layer("sweep", values)]).settings
    with tempfile.TemporaryDirectory() as base, RunFolder.create(Path(base), "sweep", to_toml(settings)) as folder:
        summary = simulate(settings, folder)
    return {name: method["accuracy"] for name, method in summary["methods"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="5,6")
    parser.add_argument("--chosen", action="store_true", help="only the preset itself")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    seeds = [int(s) for s in arguments.seeds.split(",")]
    cells = [{}] if arguments.chosen else [*EXTRA, *(dict(zip(GRID, v)) for v in itertools.product(*GRID.values()))]
    rows = []
    for cell in cells:
        runs = [final_accuracies(cell, seed) for seed in seeds]
        rows.append({**cell, "runs": runs, **{m: statistics.fmean(r[m] for r in runs) for m in runs[0]}})
        figures = "  ".join(f"{m} {100 * rows[-1][m]:.1f}" for m in runs[0])
        print(f"{cell or 'preset'}  {figures}", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
