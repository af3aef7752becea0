"""Whatever a client sends is either a release of the task or a ReleaseError; never another exception."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ddfed import federation
from ddfed.errors import ReleaseError
from ddfed.federation import Broadcast, Expectation, Release, check_release, coverage
from ddfed.testing import twin_task

INFO = twin_task().info
X, Y = torch.zeros(4, 2, 4, 4), torch.tensor([0, 1, 2, 2])
GOOD = Release(3, 2, {"set": {"x": X, "y": Y}}, 40, (10, 10, 20), {"loss": 1.0})
WEIGHTS = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "n.count": torch.tensor(4)}


#: What the server asked for in round 2.
ASKED = Broadcast(2)


def sets(**arrays: torch.Tensor) -> dict[str, Any]:
    return {"payload": {"set": {"x": X, "y": Y, **arrays}}}


def check(release: Release, quota: int | None = None, **expected: Any) -> None:
    check_release(release, INFO, ASKED, Expectation(("set",), quota, **expected))


def check_weights(arrays: dict[str, torch.Tensor]) -> None:
    check_release(Release(3, 2, {"weights": arrays}), INFO, ASKED, Expectation(("weights",), weights=WEIGHTS))


def test_good_releases_pass():
    check(GOOD, 4)
    check(replace(GOOD, class_counts=(), metrics={}))
    check(replace(GOOD, payload={"set": {"x": X[:0], "y": Y[:0]}}), 4)
    check(Release(0, 2), 0)
    check(replace(GOOD, payload={"set": {"x": X, "y": Y, "soft": torch.rand(4, 3)}}), soft=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"round": 1}, "another round; this is round 2"),
        ({"round": 3}, "another round"),
        ({"phase": "other"}, "made for phase 'other'; this is ''"),
        ({"payload": {"weights": WEIGHTS}}, "expected 'set', got 'weights'"),
        ({"payload": {"set": {"x": X, "y": Y}, "weights": WEIGHTS}}, "expected 'set', got"),
        ({"class_counts": (10, 10, 10)}, "add up to 30, and it stands for 40"),
        ({"examples": -1}, "negative counts"),
        ({"class_counts": (1, -1, 2)}, "negative counts"),
        ({"class_counts": (1, 2)}, "2 class counts for 3 classes"),
        ({"metrics": {"loss": float("nan")}}, "metric 'loss' is nan"),
        ({"payload": {"set": {"x": X}}}, "the arrays 'x', 'y', got 'x'"),
        ({"payload": {"set": {}}}, "the arrays 'x', 'y'"),
        (sets(z=X), "the arrays 'x', 'y', got"),
        (sets(soft=torch.rand(4, 3)), "the arrays 'x', 'y', got"),
        (sets(x=X[:, :1]), r"of shape \(1, 4, 4\), the task has floats of \(2, 4, 4\)"),
        (sets(x=X.flatten(1)), "the task has floats"),
        (sets(x=torch.tensor(0.0)), "the task has floats"),
        (sets(x=X.to(torch.uint8)), "items are torch.uint8"),
        (sets(x=X.to(torch.complex64)), "items are torch.complex64"),
        (sets(x=X.index_fill(0, torch.tensor([1]), float("nan"))), "'x' holds values that are not finite"),
        (sets(x=X - float("inf")), "'x' holds values that are not finite"),
        (sets(y=Y[:3]), "4 items but labels"),
        (sets(y=Y[:, None]), "4 items but labels"),
        (sets(y=torch.tensor(1)), "4 items but labels"),
        (sets(y=Y.float()), "labels are torch.float32"),
        (sets(y=Y.to(torch.complex64)), "labels are torch.complex64"),
        (sets(y=Y.bool()), "labels are torch.bool"),
        (sets(y=Y + 1), "labels run from 1 to 3, classes from 0 to 2"),
        (sets(y=Y - 1), "labels run from -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_kind_of_garbage_is_refused_by_name(changes: dict[str, Any], words: str):
    release = replace(GOOD, **changes)
    with pytest.raises(ReleaseError, match=rf"client 3, round {release.round}: .*{words}"):
        check(release, 4)


def test_more_items_than_the_quota_are_refused():
    with pytest.raises(ReleaseError, match="4 items, but the budget allows 3"):
        check(GOOD, 3)
    with pytest.raises(ReleaseError, match="but the budget allows 0"):
        check(GOOD, 0)


def test_a_flood_is_refused_before_it_is_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(federation, "MAX_RELEASE_BYTES", 100)
    with pytest.raises(ReleaseError, match="bytes, more than the 100 allowed"):
        check(replace(GOOD, **sets(x=X + float("nan"))))


def test_weights_that_are_not_finite_are_refused():
    for value in (float("nan"), float("inf"), complex(float("nan"), 0)):
        with pytest.raises(ReleaseError, match="'w' holds values that are not finite"):
            check_weights({"w": torch.tensor([value])})


def test_the_nominal_size_is_elements_times_width():
    assert GOOD.size_bytes == 4 * 32 * 4 + 4 * 8
    assert Release(0, 1).size_bytes == 0


def test_weights_like_the_global_model_pass():
    check_weights(dict(WEIGHTS))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({k: v for k, v in WEIGHTS.items() if k != "a.bias"}, "other names.*'a.bias'"),
        ({**WEIGHTS, "b": torch.zeros(1)}, "other names.*'b'"),
        ({}, "other names"),
        ({**WEIGHTS, "a.bias": torch.zeros(3)}, r"'a.bias' has shape \(3,\), the model asked for \(2,\)"),
        ({**WEIGHTS, "a.weight": torch.ones(3, 2)}, "'a.weight' has shape"),
        ({**WEIGHTS, "a.bias": torch.zeros(2, dtype=torch.int64)}, "'a.bias' is torch.int64.*torch.float32"),
        ({**WEIGHTS, "a.bias": torch.zeros(2, dtype=torch.complex64)}, "'a.bias' is torch.complex64"),
        ({**WEIGHTS, "n.count": torch.tensor(4.5)}, "'n.count' is torch.float32"),
    ],
)
def test_weights_of_another_model_are_refused(arrays: dict[str, torch.Tensor], words: str):
    with pytest.raises(ReleaseError, match=f"client 3, round 2: .*{words}"):
        check_weights(arrays)


def test_coverage_names_the_classes_that_no_set_holds():
    one = replace(GOOD, payload={"set": {"x": X[:1], "y": Y[:1]}})
    assert coverage([one], 3) == [1, 2]
    assert coverage([one, GOOD], 3) == []
    assert coverage([Release(0, 1), Release(1, 1, {"weights": WEIGHTS})], 2) == [0, 1]
    assert coverage([], 2) == [0, 1]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"means": torch.zeros(3, 4)}, "expected the tables 'means', 'radius', got 'means'"),
        ({"means": torch.zeros(3, 5), "radius": torch.tensor(1.0)}, r"'means' has shape \(3, 5\), must be \(3, 4\)"),
        ({"means": torch.zeros(3), "radius": torch.tensor(1.0)}, "'means' has shape"),
        ({"means": torch.zeros(3, 4), "radius": torch.tensor(float("inf"))}, "'radius' holds values that are not"),
    ],
)
def test_tables_that_nobody_asked_for_are_refused(tables: dict[str, torch.Tensor], words: str):
    expected = Expectation(("statistics",), statistics={"means": (3, 4), "radius": ()})
    check_release(
        Release(3, 2, {"statistics": {"means": torch.zeros(3, 4), "radius": torch.tensor(1.0)}}), INFO, ASKED, expected
    )
    with pytest.raises(ReleaseError, match=words):
        check_release(Release(3, 2, {"statistics": tables}), INFO, ASKED, expected)


def test_soft_labels_have_a_target_for_every_class():
    with pytest.raises(ReleaseError, match=r"soft labels of shape \(4, 2\), must be \(4, 3\)"):
        check(replace(GOOD, **sets(soft=torch.rand(4, 2))), soft=True)
