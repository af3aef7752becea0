"""What `ddfed simulate` does on graphs when nobody says otherwise. Light: declarations only."""

from __future__ import annotations

from ddfed.recipes.base import Preset

#: Clients are few labelled nodes each, and items are seen without edges: they start from real nodes after two rounds
#: of averaging. The sets of all rounds are trained on together, for those that are made around a trained network alone
#: lose what the first ones had (from 73 % to 63 % on validation nodes of Cora).
FEDERATED = (
    Preset(
        {
            "references": ["local", "central", "central-cut"],
            "distill": {
                "network": "gcn",
                "protocol": "E-gcn",
                "init": "random-a2x",
                "ipc": 2,
                "min_count": 1,
                "objective_options": {"rows": 256, "top_up": False, "logits": True},
                "pool_options": {"rho": 30.0},
                "optimizer": "adam",
                "lr": 1e-3,
                "schedule": "cosine",
                "steps": 60,
            },
            "server": {
                "optimizer": "adam",
                "lr": 0.01,
                "batch": 0,
                "epochs": 200,
                "weighting": "count",
                "history": 5,
            },
            "local": {"optimizer": "adam", "lr": 3e-3, "batch": 0, "epochs": 40, "weight_decay": 5e-4},
            "federation": {"partition": "louvain", "rounds": 5},
        },
        source="ours, chosen on validation nodes of Cora among 5 Louvain clients",
    ),
)
