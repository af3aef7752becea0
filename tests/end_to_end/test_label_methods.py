"""Label methods on digits against random items with hard labels.

Margins were set after single runs (seed 0) with room below them: they guard what was seen.

Digits are read off a few items by any network, so labels of random items can hardly help there; what is held is
that they do not harm beyond a known measure, and that they help where the items are DM's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

Accuracy = Callable[..., float]
DM = {"steps": 60, "teacher": {"steps": 100}}


@pytest.mark.parametrize("ipc", [1, 10])
def test_label_only_is_no_more_than_four_points_below_random(accuracy: Accuracy, ipc: int):
    assert accuracy("label-only", ipc, teacher={"steps": 100}) > accuracy("random", ipc) - 4


def test_lpld_stays_within_its_margin_of_random_under_its_own_protocol(accuracy: Accuracy):
    """Recovered from real items, labelled in a pool of a hundred batches."""
    assert accuracy("lpld", 10) > accuracy("random", 10, protocol="E-kd") - 5


@pytest.mark.parametrize(("ipc", "margin"), [(1, 5.0), (10, -1.0)])
def test_gift_on_dms_items_beats_random_by_its_margin(accuracy: Accuracy, ipc: int, margin: float):
    assert accuracy("gift", ipc, **DM) > accuracy("random", ipc) + margin


@pytest.mark.parametrize(("ipc", "margin"), [(1, 1.0), (10, -3.0)])
def test_ladd_on_dms_items_stays_above_its_margin_over_random(accuracy: Accuracy, ipc: int, margin: float):
    """At ten per class the recipe's own preset (3 x 3 windows, 200 teacher steps) is above random, this is not."""
    parts = {**DM, "labels_options": {"grid": 2, "share": 0.75}}
    assert accuracy("ladd", ipc, **parts) > accuracy("random", ipc) + margin
