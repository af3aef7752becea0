"""The built-in parts under the checks that plugin authors inherit."""

from __future__ import annotations

import pytest

from ddfed.registry import registry
from ddfed.store import Mirrored, MultiFormation, Pixels
from ddfed.testing import DomainCase, RecipeCase, StoreCase, TwinDomain, parametrize_with_checks, twin_task

INFO = twin_task().info
TWIN = DomainCase(TwinDomain(), "blobs", networks=("small", "wide"))


#: What makes a recipe a matter of a moment on the twin domain, beyond few steps and items; by recipe.
SMALL = {
    "idm": {"pool_options": {"steps": 1, "batch": 16}, "objective_options": {"rows": 8, "ce_weight": 0.5}},
}


def _small(name: str) -> dict:
    recipe = registry().load("recipe", name)
    augment = "none" if recipe.defaults.get("augment", "none") == "none" else "shift"
    return {"augment": augment, **SMALL.get(name, {})}


@parametrize_with_checks([TWIN])
def test_domain(subject, check):
    check(subject)


@parametrize_with_checks(
    [
        StoreCase("pixels", lambda classes: Pixels(INFO, classes)),
        StoreCase("mirrored", lambda classes: Mirrored(INFO, classes)),
        StoreCase("multi-formation", lambda classes: MultiFormation(INFO, classes, factor=2)),
        StoreCase("multi-formation 3", lambda classes: MultiFormation(INFO, classes, factor=3)),
    ]
)
def test_decoder(subject, check):
    check(subject)


@parametrize_with_checks(
    [RecipeCase(registry().load("recipe", name), TWIN, **_small(name)) for name in registry().names("recipe")]
)
def test_recipe(subject, check):
    check(subject)


def test_the_checks_can_fail():
    """A check that nothing can fail proves nothing: break a decoder and see it caught."""

    class Deaf(Pixels):
        def decode(self, items):
            rows, origin = super().decode(items)
            return rows.detach().requires_grad_(), origin

    from ddfed.testing.checks import check_gradient_reaches_every_stored_value

    with pytest.raises(AssertionError, match="must receive gradient"):
        check_gradient_reaches_every_stored_value(StoreCase("deaf", lambda items: Deaf(INFO, items)))
