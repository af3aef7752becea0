"""What `ddfed simulate` does on graphs when nobody says otherwise. Light: declarations only."""

from __future__ import annotations

from ddfed.recipes.base import Preset

#: One graph is split by its communities, and clients are few labelled nodes each.
FEDERATED = (
    Preset(
        {
            "references": ["local", "central", "central-cut"],
            "distill": {
                "network": "gcn",
                "protocol": "E-gcn",
                "ipc": 2,
                "min_count": 1,
                "objective_options": {"rows": 256, "top_up": False, "logits": True},
                "pool_options": {"rho": 5.0},
                "optimizer": "adam",
                "lr": 0.001,
                "steps": 100,
            },
            "server": {"optimizer": "adam", "lr": 0.01, "batch": 0, "epochs": 200},
            "local": {"optimizer": "adam", "lr": 0.01, "batch": 0, "epochs": 5, "weight_decay": 5e-4},
            "federation": {"partition": "louvain", "rounds": 5},
        },
        source="ours, chosen on validation nodes",
    ),
)
