"""Gradient matching on digits against random items of the same number, under one protocol.

Margins were set after single runs (seed 0) with room below them: they guard what was seen.
"""

from __future__ import annotations

from typing import Any

import pytest

#: Every comparison is made under this protocol, whatever the method's own.
PROTOCOL = "E-dsa"
#: Shorter than the laptop presets: seconds each. Settings that a case does not name are the preset's.
FEW = {1: 30, 10: 25}
IDC = {1: {"steps": 25}, 10: {"steps": 8}}
#: Joint after five steps of warm-up, so that most of a short run is.
JOINT = {"objective_options": {"warm_up": [1, 5]}}

#: (method, items per class) -> settings, and the least gain over random in points.
CASES: dict[tuple[str, int], tuple[dict[str, Any], float]] = {
    ("dc", 1): ({}, 4),
    ("dc", 10): ({"steps": 40}, -6),
    ("dsa", 1): ({}, 7),
    ("dsa", 10): ({}, -3),
    ("dcc", 1): (JOINT, 4),
    ("dcc", 10): (JOINT, -3),
    ("dsac", 1): (JOINT, 7),
    ("dsac", 10): (JOINT, -3),
    ("lcmat", 1): ({}, 7),
    ("lcmat", 10): ({}, -3),
    ("idc-i", 1): (IDC[1], 6),
    ("idc-i", 10): (IDC[10], -3),
}


@pytest.mark.parametrize(("method", "ipc"), CASES, ids=lambda value: str(value))
def test_gain_over_random(accuracy, method: str, ipc: int):
    settings, gain = CASES[method, ipc]
    found = accuracy(method, ipc, **{"steps": FEW[ipc], "protocol": PROTOCOL, **settings})
    control = accuracy("random", ipc, protocol=PROTOCOL)
    print(method, ipc, found, control)
    assert found > control + gain


#: Methods with four cells per item. On 8 by 8 digits a cell has 4 by 4 pixels, and what it starts from is below random
#: plain items, so their control is their own start. (method, items per class) -> settings, least gain in points.
CELLS: dict[tuple[str, int], tuple[dict[str, Any], float]] = {
    ("idc", 1): (IDC[1], 3),
    ("idc", 10): (IDC[10], -1),
    ("dream", 1): (IDC[1], 3),
    ("dream", 10): (IDC[10], -1),
    ("acc-dd", 1): (IDC[1], 3),
    ("acc-dd", 10): (IDC[10], -1),
}


@pytest.mark.parametrize(("method", "ipc"), CELLS, ids=lambda value: str(value))
def test_gain_of_cells_over_their_start(accuracy, method: str, ipc: int):
    settings, gain = CELLS[method, ipc]
    found = accuracy(method, ipc, **{"protocol": PROTOCOL, **settings})
    control = accuracy("idc", ipc, steps=0, protocol=PROTOCOL)
    print(method, ipc, found, control)
    assert found > control + gain


def test_cells_come_near_random_items_with_one_item_per_class(accuracy):
    assert accuracy("idc", 1, protocol=PROTOCOL, **IDC[1]) > accuracy("random", 1, protocol=PROTOCOL) - 3
