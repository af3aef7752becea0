"""Distribution matching: DM and IDM."""

from ddfed.recipes.base import Preset, Published, Recipe

_DM = "Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023"
_IDM = "Zhao, Li, Qin and Yu, Improved Distribution Matching for Dataset Condensation, CVPR 2023"

DM = Recipe(
    name="dm",
    family="moments",
    title="match class-mean features under fresh random networks",
    citation=_DM,
    defaults={
        "objective": "mean",
        "objective_options": {"rows": 256},
        "pool": "R",
        "store": "pixels",
        "labels": "hard",
        "augment": "dsa",
        "init": "random",
        "scope": "joint",
        "optimizer": "sgd",
        "lr": 1.0,
        "momentum": 0.5,
        "steps": 20_000,
        "protocol": "E-dsa",
    },
    presets=(
        Preset({"lr": 10.0}, ("cifar10",), (100, 200, 500, 1000), source="authors' settings"),
        Preset(
            {"steps": 1000, "lr": 1.0, "objective_options": {"rows": 64}},
            ("digits",),
            source="ours, for minutes on a laptop",
        ),
    ),
    published=(
        Published("mnist", 1, 89.7, None, "E-dsa", _DM),
        Published("mnist", 10, 97.5, None, "E-dsa", _DM),
        Published("mnist", 50, 98.6, None, "E-dsa", _DM),
        Published("cifar10", 1, 26.0, 0.8, "E-dsa", _DM),
        Published("cifar10", 10, 48.9, 0.6, "E-dsa", _DM),
        Published("cifar10", 50, 63.0, 0.4, "E-dsa", _DM),
        Published("cifar100", 1, 11.4, 0.3, "E-dsa", _DM),
        Published("cifar100", 10, 29.7, 0.3, "E-dsa", _DM),
    ),
    departures=("all classes pass the network together, which is exact without BatchNorm and faster",),
)

IDM = Recipe(
    name="idm",
    family="moments",
    title="DM with four cells per image, a queue of trained networks and a class-aware term",
    citation=_IDM,
    defaults={
        "objective": "mean",
        "objective_options": {"rows": 256, "ce_weight": 0.5},
        "pool": "Q",
        "store": "multi-formation",
        "store_options": {"factor": 2},
        "labels": "hard",
        "augment": "dsa",
        "init": "random",
        "scope": "sequential",
        "optimizer": "sgd",
        "lr": 0.2,
        "momentum": 0.5,
        "steps": 20_000,
        "protocol": "E-dsa",
    },
    presets=(
        Preset(
            {"objective_options": {"rows": 5000, "ce_weight": 0.5}, "pool_options": {"grow_every": 5}},
            ("cifar10",),
            (1,),
            source="authors' flags",
        ),
        Preset({"objective_options": {"rows": 256, "ce_weight": 0.1}}, ("cifar10",), (50,), source="authors' flags"),
        Preset(
            {"objective_options": {"rows": 256, "ce_weight": 0.1}, "pool_options": {"steps": 50}},
            ("cifar100",),
            (10,),
            source="authors' flags",
        ),
        Preset(
            {"steps": 300, "objective_options": {"rows": 64, "ce_weight": 0.5}},
            ("digits",),
            source="ours, for minutes on a laptop",
        ),
    ),
    published=(
        Published("cifar10", 1, 45.6, 0.7, "E-dsa", _IDM),
        Published("cifar10", 10, 58.6, 0.1, "E-dsa", _IDM),
        Published("cifar10", 50, 67.5, 0.1, "E-dsa", _IDM),
        Published("cifar100", 10, 45.1, 0.1, "E-dsa", _IDM),
    ),
    departures=("the last set is released, not the best by test accuracy",),
)
