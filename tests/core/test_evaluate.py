"""Evaluation recipes hold their published numbers, and the table compares like with like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddfed.artifact import SyntheticSet
from ddfed.data import RealData, Task, TaskInfo
from ddfed.distill import distill
from ddfed.domain import Network
from ddfed.errors import ArtifactError, DataError, DivergedError, UnknownNameError
from ddfed.evaluate import Measurement, Protocol, accuracy, evaluate, train
from ddfed.evaluate.protocols import E_DC, E_DSA, E_IDC
from ddfed.evaluate.table import _full, check_fits, random_subject, synthetic_subject
from ddfed.evaluate.training import cutmix
from ddfed.gate import PlainGate
from ddfed.seeds import Streams
from ddfed.settings import PartSettings
from ddfed.space import Space
from ddfed.store import HardLabels, LogitLabels, Pixels
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinShift

TASK = twin_task()
CPU = torch.device("cpu")


def made(**parts: Any) -> SyntheticSet:
    settings = PartSettings(**{"ipc": 2, "steps": 2, "lr": 0.1, "protocol": "E-dc", **parts})
    return distill(PlainGate(TASK.train), TwinDomain(), settings, Streams(0))


# --- recipes ---------------------------------------------------------------------------------------------------


def test_e_dc_is_300_epochs_with_one_fall_at_151():
    assert (E_DC.epochs, E_DC.lr, E_DC.momentum, E_DC.weight_decay, E_DC.batch) == (300, 0.01, 0.9, 5e-4, 256)
    assert E_DC.drop_epochs() == {151: 0.1} and E_DC.rebuilt and not E_DC.cutmix and E_DC.augment == "none"
    digits = E_DC.for_dataset("mnist")
    assert digits.epochs == 1000 and digits.augment == "dc-eval" and digits.drop_epochs() == {501: 0.1}
    assert E_DC.for_dataset("cifar10") is E_DC


def test_e_dsa_is_e_dc_for_1000_epochs_with_dsa():
    assert replace(E_DC, name="E-dsa", epochs=1000, augment="dsa", augment_for={}) == E_DSA


def test_e_idc_falls_twice_keeps_momentum_and_mixes_half_of_the_batches():
    assert (E_IDC.epochs, E_IDC.batch, E_IDC.cutmix, E_IDC.lr, E_IDC.momentum) == (1000, 64, 0.5, 0.01, 0.9)
    assert not E_IDC.rebuilt and list(E_IDC.drop_epochs().values()) == [0.2, 0.2]
    # MultiStepLR of the published code falls at 2E/3 and 5E/6; ours one epoch of a thousand later.
    assert [abs(e - 1000 * f) <= 1 for e, f in zip(E_IDC.drop_epochs(), (2 / 3, 5 / 6))] == [True, True]


def test_other_epochs_are_said_in_the_name():
    assert E_DC.with_epochs(None) is E_DC and E_DC.with_epochs(300) is E_DC
    assert E_DC.with_epochs(20).name == "E-dc (20 epochs)" and E_DC.with_epochs(20).drop_epochs() == {11: 0.1}


# --- training --------------------------------------------------------------------------------------------------


class Slope(Network):
    """One weight whose loss is itself: every gradient is 1, so the path of SGD is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def one_row(index: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(len(index), 1), torch.zeros(len(index))


def itself(logits: Tensor, targets: Tensor) -> Tensor:
    return logits[:, 0]


@pytest.mark.parametrize("rebuilt", [True, False])
@pytest.mark.parametrize("epochs", [1, 2, 7, 10])
def test_momentum_is_lost_at_a_fall_exactly_when_the_optimiser_is_rebuilt(rebuilt: bool, epochs: int):
    protocol = Protocol("p", epochs, lr=0.1, momentum=0.9, weight_decay=0.0, rebuilt=rebuilt)
    weight, speed, lr = 0.0, 0.0, 0.1
    for epoch in range(epochs):
        if epoch == epochs // 2 + rebuilt:  # the DC line, which rebuilds, falls one epoch later
            lr *= 0.1
            speed = 0.0 if rebuilt else speed
        speed = 0.9 * speed + 1.0
        weight -= lr * speed
    net = train(Slope(), one_row, 1, itself, protocol, None, Streams(0))
    assert float(net.weight.detach()) == pytest.approx(weight, rel=1e-5)


def test_weight_decay_is_on_all_parameters():
    net = Slope()
    with torch.no_grad():
        net.weight.fill_(2.0)
    train(net, one_row, 1, itself, Protocol("p", 1, lr=0.1, momentum=0.0, weight_decay=0.5), None, Streams(0))
    assert float(net.weight.detach()) == pytest.approx(2.0 - 0.1 * (1 + 0.5 * 2.0))


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (3, 256), (8, 8)])
def test_every_row_is_seen_once_an_epoch_in_a_new_order(count: int, batch: int):
    seen: list[list[int]] = []

    def rows(index: Tensor) -> tuple[Tensor, Tensor]:
        assert len(index) <= batch
        seen.append(index.tolist())
        return one_row(index)

    epochs: list[int] = []
    train(Slope(), rows, count, itself, Protocol("p", 3, batch=batch), None, Streams(0), on_epoch=epochs.append)
    flat = [i for part in seen for i in part]
    passes = [flat[e * count : (e + 1) * count] for e in range(3)]
    assert all(sorted(p) == list(range(count)) for p in passes) and epochs == [1, 2, 3]
    assert count < 5 or passes[0] != passes[1]


def test_training_draws_one_operation_a_batch_with_parameters_of_its_own_a_row():
    drawn = []

    class Listening(TwinShift):
        def __call__(self, x: Tensor, draw: Any, groups: Tensor) -> Tensor:
            drawn.append((draw, groups))
            return x

    train(Slope(), one_row, 6, itself, Protocol("p", 4, batch=3), Listening(), Streams(0))
    assert len(drawn) == 8
    for draw, groups in drawn:
        assert len(draw) == 3 and groups.tolist() == [0, 1, 2]
        assert len(set(draw.op.tolist())) == 1 and len(set(draw.u.flatten().tolist())) == 3


def test_training_repeats_itself_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    syn, tables = made(), []
    for _ in range(2):
        tables.append(evaluate(syn, TASK, TwinDomain(), epochs=3, repeats=2))
    assert torch.equal(before, torch.get_rng_state())
    assert [r.accuracies for r in tables[0]] == [r.accuracies for r in tables[1]]


def test_nothing_to_train_on_and_divergence_are_said():
    with pytest.raises(DataError, match="the set has no rows"):
        train(Slope(), one_row, 0, itself, Protocol("p", 1), None, Streams(0))
    with pytest.raises(DivergedError, match="in epoch 2 of p at lr 1e[+]30"):
        train(Slope(), one_row, 1, lambda z, y: z[:, 0] ** 2 + z[:, 0], Protocol("p", 9, lr=1e30), None, Streams(0))


@pytest.mark.parametrize("axes", [(-2, -1), (-1,), (-2,)])
@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 5, 7), (3, 1, 4)])
def test_the_share_that_cutmix_reports_is_the_area_that_stays(axes: tuple[int, ...], shape: tuple[int, ...]):
    x = torch.stack([torch.zeros(shape), torch.ones(shape)])
    shares = []
    for seed in range(60):
        mixed, kept = cutmix(x, torch.tensor([1, 0]), axes, torch.Generator().manual_seed(seed))
        assert float(mixed[0].mean()) == pytest.approx(1 - kept, abs=1e-6)
        assert float(mixed[1].mean()) == pytest.approx(kept, abs=1e-6)
        assert torch.equal(mixed[0], 1 - mixed[1])
        shares.append(kept)
    assert min(shares) >= 0 and max(shares) <= 1
    assert len(set(shares)) > 2 or 1 in [shape[a] for a in axes]  # a length of 1 holds no box


def test_cutmix_cuts_one_box_through_all_channels():
    x = torch.stack([torch.zeros(2, 8, 8), torch.ones(2, 8, 8)])
    for seed in range(20):
        mixed, _ = cutmix(x, torch.tensor([1, 0]), (-2, -1), torch.Generator().manual_seed(seed))
        box = mixed[0]
        assert torch.equal(box[0], box[1])
        assert torch.equal(box[0], box[0].amax(1, keepdim=True) * box[0].amax(0, keepdim=True))


def test_mixed_batches_weigh_both_targets_by_their_share():
    seen: list[float] = []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(float(targets.float().mean()))
        return logits.flatten(1).mean(1)

    def rows(index: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones(len(index), 1, 4, 4), index

    protocol = Protocol("p", 200, lr=1e-6, cutmix=0.5)
    train(Slope(), rows, 4, loss, protocol, None, Streams(0), cell_axes=(-2, -1))
    # Two losses for a mixed batch: 200 batches, half mixed; four deviations of sqrt(200) / 2 allowed.
    assert abs(len(seen) - 300) < 29
    seen.clear()
    train(Slope(), rows, 4, loss, protocol, None, Streams(0))
    assert len(seen) == 200


def test_accuracy_counts_in_evaluation_mode_whatever_the_chunk():
    class Guess(Network):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return torch.eye(3)[torch.ones(len(x), dtype=torch.int64)]

    for chunk in (1, 7, 500):
        assert accuracy(Guess(), TASK.test, chunk) == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="test split is empty"):
        accuracy(Guess(), TASK.test.subset([]))


# --- the table -------------------------------------------------------------------------------------------------


def test_the_table_has_the_set_random_items_and_full_data_per_network():
    told: list[tuple[str, int, int]] = []
    table = evaluate(
        made(), TASK, TwinDomain(), name="dm", networks=("small", "wide"), epochs=4, repeats=2,
        report=lambda *words: told.append(words),
    )  # fmt: skip
    assert [(r.subject, r.network) for r in table] == [
        (s, n) for n in ("small", "wide") for s in ("dm", "random", "full data")
    ]
    assert {r.protocol for r in table} == {"E-dc (4 epochs)"} and all(len(r.accuracies) == 2 for r in table)
    assert [r.items for r in table[:3]] == [6, 6, 120]
    assert told[0] == ("dm small 1/2", 1, 4) and told[-1][0] == "full data wide 2/2"
    assert [r.subject for r in evaluate(made(), TASK, TwinDomain(), epochs=1, repeats=1, baselines=())] == ["distilled"]


def test_subjects_are_compared_on_the_same_initial_weights():
    built: list[Tensor] = []

    class Listening(TwinDomain):
        def network(self, name: str, info: TaskInfo) -> Network:
            net = super().network(name, info)
            built.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
            return net

    evaluate(made(), TASK, Listening(), networks=("small",), epochs=1, repeats=2)
    one, two = built[-6:-4]
    assert not torch.equal(one, two)
    assert all(torch.equal(a, b) for a, b in zip(built[-6:], [one, two] * 3))


def test_random_items_have_the_sets_budget_and_are_new_for_each_network():
    syn = SyntheticSet(
        TASK.info,
        Pixels(TASK.info, torch.tensor([0, 0, 0, 2, 2, 1])),
        HardLabels(torch.tensor([0, 0, 0, 2, 2, 1]), 3),
        "E-dc",
    )
    subject = random_subject(syn, TASK.train, Streams(0), CPU)
    draws = []
    for repeat in (0, 1, 0):
        rows, count, loss = subject.make(repeat)
        x, y = rows(torch.arange(count))
        assert y.tolist() == [0, 0, 0, 1, 2, 2] and loss is HardLabels.loss
        real = TASK.train.all().inputs
        assert all(bool((real == row).flatten(1).all(1).any()) for row in x)
        draws.append(x)
    assert subject.items == 6 and torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])


def test_random_items_of_a_small_class_are_counted_as_they_are():
    """Bug found by this test: the table named items that were not there."""
    few = TASK.train.subset(torch.cat([TASK.train.class_index[0][:1], TASK.train.class_index[1]]))
    syn = SyntheticSet(
        TASK.info,
        Pixels(TASK.info, torch.tensor([0, 0, 1, 1, 2])),
        HardLabels(torch.tensor([0, 0, 1, 1, 2]), 3),
        "E-dc",
    )
    subject = random_subject(syn, few, Streams(0), CPU)
    assert subject.items == subject.make(0)[1] == 3


@pytest.mark.parametrize(("batch", "epochs", "want"), [(256, 300, 300), (16, 300, 38), (16, 4, 1), (1, 10, 1)])
def test_full_data_gets_about_as_many_steps_as_the_set(batch: int, epochs: int, want: int):
    recipe = Protocol("p", epochs, batch=batch)
    subject, how = _full(made(), TASK, recipe, CPU)
    # 6 rows against 120: at batch 16 one step an epoch against eight.
    assert how == replace(recipe, epochs=want) and subject.items == 120
    assert f"{want} epochs over all 120 rows" in subject.note


def test_rows_and_soft_targets_of_a_set_reach_training():
    syn = made(store="multi-formation", labels="logits")
    rows, count, loss = synthetic_subject(syn, "dm", CPU).make(0)
    x, y = rows(torch.arange(count))
    assert count == 24 and x.shape == (24, 2, 4, 4) and y.shape == (24, 3) and loss is LogitLabels.loss
    assert evaluate(syn, TASK, TwinDomain(), epochs=2, repeats=1, baselines=())[0].items == 6


def test_distilled_rows_beat_chance_by_far():
    # Three blobs well apart: chance is 1/3; the margin was set before the first run.
    table = evaluate(made(ipc=3, steps=20), TASK, TwinDomain(), epochs=60, repeats=2, baselines=())
    assert table[0].mean > 0.6


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda i: replace(i, space=Space((0.5, 0.5), (0.25, 0.2))), "space"),
        (lambda i: replace(i, space=Space()), "space"),
        (lambda i: replace(i, classes=("a", "b", "c")), "classes"),
        (lambda i: replace(i, shape=(2, 4, 5)), "shape"),
    ],
)
def test_a_set_for_other_data_is_refused(change: Callable[[TaskInfo], TaskInfo], word: str):
    info = change(TASK.info)
    syn = SyntheticSet(info, Pixels(info, torch.tensor([0])), HardLabels(torch.tensor([0]), 3), "E-dc")
    with pytest.raises(ArtifactError, match=f"the set's {word} is .*twin/blobs"):
        evaluate(syn, TASK, TwinDomain())


def test_a_set_whitened_by_another_matrix_is_refused():
    """Bug found by this test: only the name of the whitening was compared."""

    def whitened(scale: float) -> Task:
        tensors = {"center": torch.zeros(32), "matrix": scale * torch.eye(32)}
        info = replace(TASK.info, space=Space(whitening="test", tensors=tensors))
        return Task(
            info,
            RealData(TASK.train.inputs, TASK.train.labels, info),
            RealData(TASK.test.inputs, TASK.test.labels, info),
        )

    task = whitened(1.0)
    syn = SyntheticSet(task.info, Pixels(task.info, torch.tensor([0])), HardLabels(torch.tensor([0]), 3), "E-dc")
    check_fits(syn, task)
    with pytest.raises(ArtifactError, match="the set's space"):
        check_fits(syn, whitened(1.1))


def test_an_empty_test_split_an_unknown_protocol_and_an_unknown_network_are_refused_early():
    syn = made()
    with pytest.raises(DataError, match="no test rows to evaluate on"):
        evaluate(syn, Task(TASK.info, TASK.train, TASK.test.subset([])), TwinDomain())
    with pytest.raises(UnknownNameError, match="unknown protocol 'E-dcs'.*Did you mean 'E-d"):
        evaluate(syn, TASK, TwinDomain(), protocol="E-dcs")
    with pytest.raises(UnknownNameError, match="unknown network 'wyde'.*Did you mean 'wide'"):
        evaluate(syn, TASK, TwinDomain(), networks=("small", "wyde"))


def test_a_measurement_comes_back_from_json_with_the_population_deviation():
    row = Measurement("dm", "small", "E-dc", (0.5, 0.7), 6, 1.5, "note")
    assert (row.mean, row.std) == (pytest.approx(0.6), pytest.approx(0.1))
    assert Measurement.from_json(row.to_json()) == row and row.to_json()["std"] == pytest.approx(0.1)
    assert Measurement("dm", "small", "E-dc", (0.5,), 6, 1.5).std == 0.0
