"""Settings beyond what `ddfed.config` checks: numbers that are none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from ddfed.config import Layer
from ddfed.errors import ConfigError
from ddfed.registry import registry
from ddfed.settings import DistillSettings, resolve_distill, resolve_prune


def float_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from float_keys(type(default), f"{prefix}{name}.")
        elif field.annotation is float:
            yield f"{prefix}{name}"


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("key", list(float_keys(DistillSettings)))
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_number_is_infinite(key: str, value: float):
    """Bug found by this test: distill.lr = inf passed, since it is above 0."""
    with pytest.raises(ConfigError, match=f"'{key}' must be"):
        resolve_distill([Layer("test", nested(key, value))])


@pytest.mark.parametrize("value", [{"lr": math.nan}, {"part": {"lr": math.inf}}])
def test_no_option_of_a_part_is_infinite(value: dict[str, Any]):
    """Bug found by this test: an infinite option became none on its way through JSON."""
    with pytest.raises(ConfigError, match="distill.pool_options.*lr must be finite"):
        resolve_distill([Layer("test", {"distill": {"pool_options": value}})])


def test_the_step_size_is_among_the_numbers():
    assert "distill.lr" in set(float_keys(DistillSettings))


def test_more_best_epochs_than_epochs_are_refused():
    with pytest.raises(ConfigError, match="best 20 of 10 epochs"):
        resolve_prune([Layer("test", {"artifact": "x", "ipc": 1, "score": {"epochs": 10, "best": 20}})])


def test_a_pruning_must_name_a_set_and_a_budget():
    with pytest.raises(ConfigError, match=r"(?s)'artifact' is not given.*'ipc' is not given"):
        resolve_prune([])


def test_options_of_a_part_do_not_outlive_it():
    """Bug: `--method idm --set distill.store=pixels` was refused for IDM's `factor`, which nobody had typed."""
    idm = resolve_distill([Layer("user", {"method": "idm"})]).settings.distill
    assert idm.store_options == {"factor": 2} and "ce_weight" in idm.objective_options
    plain = resolve_distill([Layer("user", {"method": "idm", "distill": {"store": "pixels"}})]).settings.distill
    assert plain.store_options == {} and plain.objective_options == idm.objective_options
    same = resolve_distill([Layer("user", {"method": "idm", "distill": {"store": "multi-formation"}})]).settings
    assert same.distill.store_options == {"factor": 2}


def test_options_given_with_or_after_a_new_part_are_kept():
    layers = [
        Layer("file", {"method": "idm", "distill": {"pool": "RT", "pool_options": {"length": 7}}}),
        Layer("--set", {"distill": {"pool_options": {"steps": 2}}}),
    ]
    assert resolve_distill(layers).settings.distill.pool_options == {"length": 7, "steps": 2}


def test_a_method_for_one_modality_brings_it_along_and_refuses_others():
    settings = resolve_distill([Layer("test", {"method": "gcond"})]).settings
    assert (settings.data.domain, settings.distill.store) == ("graph", "pge")
    with pytest.raises(ConfigError, match="for 'graph', and data.domain is 'image'"):
        resolve_distill([Layer("test", {"method": "gcond", "data": {"domain": "image"}})])


def test_presets_of_digits_are_those_of_their_modality():
    image = resolve_distill([Layer("test", {"method": "dm"})]).settings.distill
    graph = resolve_distill([Layer("test", {"method": "dm", "data": {"domain": "graph"}})]).settings.distill
    recipe = registry().load("recipe", "dm")
    assert graph.steps == recipe.defaults["steps"] != image.steps
