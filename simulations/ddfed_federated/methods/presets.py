"""Settings that all federated methods share, so that they are compared at the same budget on the same split."""

from __future__ import annotations

from typing import Any

from ddfed.recipes import Preset

#: The paper's settings for ConvNet-3-128 (320,010 weights); its threshold and server training as released.
_DISTILL = {
    "objective": "mean",
    "objective_options": {"rows": 256, "top_up": True, "logits": True},
    "pool": "ball",
    "pool_options": {"rho": 5.0},
    "store": "pixels",
    "labels": "hard",
    "augment": "none",
    "init": "random",
    "top_up": True,
    "scope": "joint",
    "lr": 1.0,
    "momentum": 0.5,
    "steps": 1000,
    "ipc": 10,
    "min_count": 10,
    "protocol": "E-dsa",
}
DEFAULTS: dict[str, Any] = {"distill": _DISTILL, "federation": {"rounds": 20}}

#: How a server and local clients train on digits; its default network has 40,394 weights, not 320,010. Chosen by
#: examples/sweep_digits.py.
_DIGITS: dict[str, Any] = {
    "server": {"epochs": 30, "batch": 64, "weighting": "count"},
    "local": {"lr": 0.03},
    "federation": {"rounds": 3},
}


def digits(**distill: Any) -> Preset:
    """What every method shares on digits, with a method's own parts."""
    return Preset({"distill": distill, **_DIGITS}, ("digits",), source="examples/sweep_digits.py", domains=("image",))


#: Clients hold fewer than 256 rows of a class, so all of them are used instead of topping up by repeats: the exact
#: class mean.
PRESETS = (
    digits(
        objective_options={"rows": 256, "top_up": False, "logits": True},
        pool_options={"rho": 5.0},
        lr=1.0,
        steps=50,
    ),
    Preset(
        {"distill": {"steps": 100}, "server": {"epochs": 300}, "federation": {"rounds": 4}},
        ("digits",),
        (1,),
        source="examples/sweep_digits.py",
        domains=("image",),
    ),
)


def without_engine(presets: tuple[Preset, ...]) -> tuple[Preset, ...]:
    """The same but for ``distill``, for methods with another engine."""
    return tuple(
        Preset({k: v for k, v in p.values.items() if k != "distill"}, p.datasets, p.ipc, p.source, p.domains)
        for p in presets
    )
