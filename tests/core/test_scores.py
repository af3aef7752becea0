"""DD-Ranking's scores at the fixed points of their formulas, and what is measured for them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from ddfed.artifact import SyntheticSet
from ddfed.data import TaskInfo
from ddfed.distill import distill
from ddfed.domain import Augmentation
from ddfed.errors import ConfigError, UnknownNameError
from ddfed.evaluate import Bench, measure, scores
from ddfed.evaluate.matrix import matrix
from ddfed.evaluate.protocols import E_DC, dc_bench
from ddfed.evaluate.scores import (
    _split,
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    ranking,
)
from ddfed.gate import PlainGate
from ddfed.seeds import Streams
from ddfed.settings import PartSettings
from ddfed.testing import TwinDomain, twin_task

TASK = twin_task()


def made(**parts: Any) -> SyntheticSet:
    settings = PartSettings(**{"ipc": 2, "steps": 1, "lr": 0.1, "protocol": "E-dc", "teacher": {"steps": 20}, **parts})
    return distill(PlainGate(TASK.train), TwinDomain(), settings, Streams(0))


def bench(syn: SyntheticSet | None = None, **options: Any) -> Bench:
    return Bench(syn or made(), TASK, TwinDomain(), name="dm", repeats=2, teacher_steps=20, **options)


# --- formulas ---------------------------------------------------------------------------------------------------


def test_scores_at_their_fixed_points():
    assert label_robust_score(1.0, -1.0) == pytest.approx(1.0)  # all gained, nothing lacking: alpha = 1
    assert label_robust_score(-1.0, 1.0) == pytest.approx(0.0)  # alpha = -1
    # Where nothing is gained and nothing lacks the score is 0.27, not a half.
    nothing = (1 - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust_score(0.0, 0.0) == augmentation_robust_score(0.0, 0.0) == pytest.approx(nothing)
    assert nothing == pytest.approx(0.2689, abs=1e-4)
    assert augmentation_robust_score(1.0, 1.0) == pytest.approx(1.0)
    assert augmentation_robust_score(-1.0, -1.0) == pytest.approx(0.0)


def test_scores_of_a_case_written_out():
    recovery, improvement = hard_label_recovery(0.85, 0.49), improvement_over_random(0.60, 0.45)
    assert (recovery, improvement) == (pytest.approx(0.36), pytest.approx(0.15))
    alpha = 0.5 * 0.15 - 0.5 * 0.36
    want = (math.exp(alpha) - 1 / math.e) / (math.e - 1 / math.e)
    assert label_robust_score(improvement, recovery) == pytest.approx(want)
    beta = 0.25 * 0.2 + 0.75 * 0.1
    want = (math.exp(beta) - 1 / math.e) / (math.e - 1 / math.e)
    assert augmentation_robust_score(0.2, 0.1, weight=0.25) == pytest.approx(want)


def test_more_gain_and_less_lack_score_higher():
    steps = [label_robust_score(i / 10, 0.3) for i in range(-10, 11)]
    assert steps == sorted(steps) and len(set(steps)) == 21
    assert label_robust_score(0.1, 0.2) > label_robust_score(0.1, 0.3)
    # The weight says which of the two counts.
    assert label_robust_score(0.3, 0.9, weight=1.0) == pytest.approx(label_robust_score(0.3, 0.1, weight=1.0))


@pytest.mark.parametrize("wrong", [lambda: hard_label_recovery(85.0, 0.4), lambda: improvement_over_random(0.5, 45.0)])
def test_percentages_are_refused(wrong: Any):
    with pytest.raises(ConfigError, match="fractions in"):
        wrong()


def test_differences_beyond_those_of_fractions_are_refused():
    with pytest.raises(ConfigError, match="lie in"):
        augmentation_robust_score(15.0, 3.0)


# --- measuring --------------------------------------------------------------------------------------------------


def test_held_out_rows_are_training_rows_of_every_class_and_leave_the_test_split_alone():
    choosing, judged = _split(bench(), 0.1)
    assert len(choosing.test) == 12 and choosing.test.class_counts.tolist() == [4, 4, 4]
    assert len(judged.train) == len(choosing.train) == 108 and judged.test is TASK.test

    def keys(data: Any) -> list[bytes]:
        return sorted(row.numpy().tobytes() for row in data.inputs)

    assert sorted(keys(choosing.test) + keys(judged.train)) == keys(TASK.train)
    with pytest.raises(ConfigError, match="held out"):
        _split(bench(), 1.0)


@pytest.mark.parametrize("labels", ["hard", "teacher", "logits"])
def test_scores_come_from_the_rows_that_are_shown(labels: str):
    found = ranking(bench(made(labels=labels)), "small", E_DC, epochs=4, step_sizes=(0.01, 0.1))
    data = json.loads(json.dumps(found.to_json()))
    mean = {name: row["mean"] for name, row in data["rows"].items()}
    assert list(mean) == [
        "full, hard", "set, hard", "set, own", "random, own", "set, augmented", "random, augmented", "set, plain",
        "random, plain",
    ]  # fmt: skip
    gain = 0.5 * (mean["set, augmented"] - mean["random, augmented"]) + 0.5 * (
        mean["set, plain"] - mean["random, plain"]
    )
    alpha = 0.5 * (mean["set, own"] - mean["random, own"]) - 0.5 * (mean["full, hard"] - mean["set, hard"])
    for name, value in (("LRS", alpha), ("ARS", gain)):
        assert data["scores"][name] == pytest.approx((math.exp(value) - 1 / math.e) / (math.e - 1 / math.e))
    assert data["used"]["rows held out to choose step sizes"] == 12 and data["used"]["augmentation"] == "shift"
    assert set(data["used"]["chosen"].values()) <= {0.01, 0.1}
    assert all(
        f"(lr {found.used['chosen'].get(n, 0):g})" in r.protocol
        for n, r in found.rows.items()
        if n in found.used["chosen"]
    )
    soft = "soft labels" in found.rows["random, own"].note
    assert soft == (labels != "hard")
    assert found.rows["full, hard"].items == 108


def test_the_chosen_step_size_is_the_best_on_held_out_rows():
    """Nothing is learned with a step size of 1e-9, so the other is chosen."""
    found = ranking(bench(made(ipc=3)), "small", E_DC, epochs=60, step_sizes=(1e-9, 0.05))
    assert set(found.used["chosen"].values()) == {0.05}


def test_the_test_split_chooses_nothing_and_held_out_rows_train_nothing(monkeypatch: pytest.MonkeyPatch):
    choosing, chosen_on = _split(bench(), 0.1)[0], []
    held = choosing.test.all().inputs

    def listening(subject: Any, task: Any, *rest: Any) -> Any:
        chosen_on.append(subject.name)
        assert torch.equal(task.test.all().inputs, held)
        if subject.name != "dm":
            given = subject.make(0)
            x, _ = given.rows(torch.arange(given.count))
            assert not any(bool((held == row).flatten(1).all(1).any()) for row in x)
        return measure(subject, task, *rest)

    monkeypatch.setattr(scores, "measure", listening)
    ranking(bench(made(ipc=30, labels="teacher")), "small", E_DC, epochs=1, step_sizes=(0.01,))
    assert set(chosen_on) == {"full data", "dm", "random"}


def test_a_step_size_that_diverges_is_not_chosen():
    found = ranking(bench(), "small", E_DC, epochs=3, step_sizes=(1e30, 0.01))
    assert set(found.used["chosen"].values()) == {0.01}


def test_a_domain_without_augmentation_has_no_such_score():
    class Plain(TwinDomain):
        augmentations = ("none",)

    with pytest.raises(ConfigError, match="ARS cannot be measured"):
        ranking(replace(bench(), domain=Plain()), "small", E_DC, epochs=1)


# --- the matrix -------------------------------------------------------------------------------------------------


def test_dc_bench_trains_longer_with_augmentation():
    plain, shifted = dc_bench("none"), dc_bench("shift")
    assert (plain.epochs, shifted.epochs) == (300, 1000) and plain.name != shifted.name
    for recipe in (plain, shifted):
        assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.batch) == (0.01, 0.9, 5e-4, 256)
    assert (plain.augment, shifted.augment) == ("none", "shift")


def test_the_matrix_is_networks_by_augmentations_with_baselines():
    found = matrix(bench(baselines=("random",)), networks=("small", "wide"), epochs=2)
    assert found.columns == ["trained on", "network", "none", "shift"]
    assert [line[:2] for line in found.table()] == [
        ["dm", "small"], ["dm", "wide"], ["random", "small"], ["random", "wide"],
    ]  # fmt: skip
    data = json.loads(json.dumps(found.to_json()))
    assert {(r["network"], r["augmentation"], r["subject"]) for r in data["rows"]} == {
        (n, a, s) for n in ("small", "wide") for a in ("none", "shift") for s in ("dm", "random")
    }
    first = data["rows"][0]
    assert found.table()[0][2] == f"{100 * first['mean']:.1f} ± {100 * first['std']:.1f}"
    assert first["protocol"] == "dc-bench none (2 epochs)"


def test_what_cannot_take_the_data_is_said_unless_it_was_asked_for():
    class Picky(TwinDomain):
        models = ("small", "wide")
        augmentations = ("none", "shift")

        def network(self, name: str, info: TaskInfo) -> Any:
            if name == "wide":
                raise ConfigError("too wide for this")
            return super().network(name, info)

        def augmentation(self, name: str, info: TaskInfo) -> Augmentation | None:
            if name == "shift":
                raise ConfigError("does not shift")
            return super().augmentation(name, info)

    picky = replace(bench(baselines=()), domain=Picky())
    found = matrix(picky, epochs=1)
    assert found.left_out == {"network wide": "too wide for this", "augmentation shift": "does not shift"}
    assert [(cell.network, cell.augmentation) for cell in found.cells] == [("small", "none")]
    with pytest.raises(ConfigError, match="too wide"):
        matrix(picky, networks=("wide",), epochs=1)
    with pytest.raises(UnknownNameError, match="Did you mean 'small'"):
        matrix(picky, networks=("smal",), epochs=1)


def test_measuring_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one = ranking(bench(), "small", E_DC, epochs=2, step_sizes=(0.01,)).scores
    assert one == ranking(bench(), "small", E_DC, epochs=2, step_sizes=(0.01,)).scores
    assert torch.equal(before, torch.get_rng_state())
