"""Trajectory matching on digits against random items of the same number.

Margins were fixed before these runs, from single runs of the longer laptop presets (seed 0).
"""

from __future__ import annotations

from typing import Any

import pytest

#: What a case does not name is the preset's, with half of its steps. MTT trains with the step size it learned (E-mtt):
#: random items do better with the usual one, so that is their protocol.
CASES: dict[str, tuple[dict[str, Any], float]] = {
    "mtt": ({"steps": 30}, 10),
    "datm": ({"steps": 30, "protocol": "E-dsa"}, 6),
}


@pytest.mark.parametrize("method", CASES)
def test_gain_over_random_with_one_item_per_class(accuracy, method: str):
    settings, margin = CASES[method]
    found, control = accuracy(method, 1, **settings), accuracy("random", 1, protocol="E-dsa")
    print(method, found, control)
    assert found > control + margin
