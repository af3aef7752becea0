"""Pruning of finished sets against versions with plain loops, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddfed.artifact import SyntheticSet
from ddfed.distill import distill
from ddfed.errors import BudgetError, ConfigError, DivergedError
from ddfed.evaluate import train
from ddfed.evaluate.protocols import E_DSA
from ddfed.gate import PlainGate
from ddfed.prune import item_errors, lowest_of_each_class, mean_of_best, prune
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings, ScoreSettings
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinNet

TASK = twin_task()
DOMAIN = TwinDomain()
CPU = torch.device("cpu")
#: E-dsa asks for an augmentation that the twin domain does not have.
PLAIN = "E-dc"
FEW = ScoreSettings(epochs=6, best=2)


def made(ipc: int = 6, classes: tuple[int, ...] | None = None, **parts: Any) -> SyntheticSet:
    """A set of random real items."""
    settings = PartSettings(**{"ipc": ipc, "steps": 0, "protocol": PLAIN, **parts})
    return distill(PlainGate(TASK.train), DOMAIN, settings, Streams(0), classes=classes)


def pruned(syn: SyntheticSet, ipc: int, rule: str = "yoco", seed: int = 0) -> SyntheticSet:
    return prune(syn, ipc, rule, DOMAIN, Streams(seed), score=FEW)


def kept_items(syn: SyntheticSet, smaller: SyntheticSet) -> list[int]:
    """Which items of ``syn`` the pruned set holds, found by their stored values."""
    name = next(iter(syn.store.tensors()))
    old, new = syn.store.tensors()[name].flatten(1), smaller.store.tensors()[name].flatten(1)
    return [next(i for i, row in enumerate(old) if torch.equal(row, mine)) for mine in new]


# --- the pieces ------------------------------------------------------------------------------------------------


def test_the_best_epochs_are_averaged_and_of_equal_ones_the_later():
    errors = torch.arange(10.0).view(5, 2)
    assert mean_of_best(errors, torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3]), 2).tolist() == [(2 + 6) / 2, (3 + 7) / 2]
    assert mean_of_best(errors, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]), 2).tolist() == [(4 + 6) / 2, (5 + 7) / 2]


def test_the_lowest_of_each_class_stay_in_their_order():
    scores = torch.tensor([5.0, 1.0, 4.0, 0.0, 3.0, 2.0, 9.0])
    classes = torch.tensor([7, 2, 7, 2, 7, 2, 2])
    naive = []
    for c in (2, 7):
        naive += sorted((i for i in range(7) if classes[i] == c), key=lambda i: float(scores[i]))[:2]
    assert lowest_of_each_class(scores, classes, 2).tolist() == sorted(naive) == [1, 2, 3, 4]


@pytest.mark.parametrize("rule", ["yoco", "el2n"])
@pytest.mark.parametrize("store", ["pixels", "multi-formation"])
def test_errors_are_those_of_networks_trained_on_the_set_alone(rule: str, store: str):
    syn, score = made(3, store=store), ScoreSettings(epochs=5, best=2, networks=2)
    x, y = syn.decoded()
    _, items = syn.store.decode(torch.arange(len(syn)))
    naive = torch.zeros(len(syn), dtype=torch.float64)
    for number in range(2):
        with isolated(Streams(0).seed("prune network", "small", number)):
            net = DOMAIN.network("small", syn.info)
        looks: list[tuple[float, list[float]]] = []

        def look(epoch: int, net: Any = net, looks: list[tuple[float, list[float]]] = looks) -> None:
            errors, right = [], 0
            for row, item in zip(x, items):
                z = net(row[None])[0].detach().double()
                c = int(syn.labels.classes[item])
                right += int(z.argmax()) == c
                answer = z if rule == "yoco" else z.exp() / z.exp().sum()
                errors.append(sum((float(answer[k]) - (k == c)) ** 2 for k in range(3)) ** 0.5)
            looks.append((right / len(x), errors))

        plain = replace(E_DSA, augment="none", epochs=5, drops=())
        streams = Streams(0).child("prune", "small", number)
        train(net, lambda i: (x[i], y[i]), len(x), syn.labels.loss, plain, None, streams, on_epoch=look)
        order = sorted(range(5), key=lambda e: (looks[e][0], e), reverse=True)[:2]
        for row, item in enumerate(items.tolist()):
            naive[item] += sum(looks[e][1][row] for e in order) / 2 / 2 / syn.store.rows_per_item
    found = item_errors(syn, rule, DOMAIN, Streams(0), score, "", CPU)
    assert torch.allclose(found.double(), naive, rtol=1e-4)


# --- the whole -------------------------------------------------------------------------------------------------


def test_the_items_of_low_error_stay_and_nothing_about_them_changes():
    syn = made()
    smaller = pruned(syn, 2)
    errors = item_errors(syn, "yoco", DOMAIN, Streams(0), FEW, "", CPU)
    expected = lowest_of_each_class(errors, syn.labels.classes, 2)
    assert kept_items(syn, smaller) == expected.tolist()
    assert smaller.labels.classes.tolist() == [0, 0, 1, 1, 2, 2]
    x, y = syn.decoded()
    small_x, small_y = smaller.decoded()
    assert torch.equal(small_x, x[expected]) and torch.equal(small_y, y[expected])


def test_a_canvas_leaves_or_stays_whole():
    syn = made(4, store="multi-formation")
    smaller = pruned(syn, 1)
    assert len(smaller) == 3 and len(smaller.decoded()[0]) == 12
    assert len(set(kept_items(syn, smaller))) == 3


@pytest.mark.parametrize("labels", ["logits", "vectors", "teacher"])
def test_labels_go_with_their_items(labels: str, tmp_path):
    syn = made(4, labels=labels, teacher={"steps": 3})
    smaller = pruned(syn, 2)
    kept = torch.tensor(kept_items(syn, smaller))
    assert torch.equal(smaller.decoded()[1], syn.decoded()[1][kept])
    again = SyntheticSet.load(smaller.save(tmp_path / "set"))
    assert again.content_hash == smaller.content_hash and torch.equal(again.decoded()[1], smaller.decoded()[1])


@pytest.mark.parametrize("rule", ["yoco", "el2n", "random"])
def test_pruning_repeats_and_is_written_down(rule: str):
    syn = made()
    smaller = pruned(syn, 3, rule)
    assert smaller.content_hash == pruned(syn, 3, rule).content_hash
    (entry,) = smaller.provenance["pruned"]
    assert entry["parent_sha256"] == syn.content_hash and entry["rule"] == rule
    assert entry["items_per_class"] == 3 and entry["of"] == [6, 6, 6]
    assert smaller.privacy == syn.privacy and smaller.provenance["settings"] == syn.provenance["settings"]
    twice = pruned(smaller, 1, "random")
    assert [e["parent_sha256"] for e in twice.provenance["pruned"]] == [syn.content_hash, smaller.content_hash]


def test_random_pruning_differs_between_seeds_and_yoco_takes_others():
    syn = made(20)
    kept = [tuple(kept_items(syn, pruned(syn, 5, "random", seed))) for seed in range(5)]
    assert len(set(kept)) == 5
    assert tuple(kept_items(syn, pruned(syn, 5))) not in kept


def test_the_test_split_has_no_say(monkeypatch: pytest.MonkeyPatch):
    """`prune` is not even given real data: whatever it would ask for must come from the set."""
    monkeypatch.setattr(TwinDomain, "load", lambda *_: pytest.fail("pruning loaded data"))
    pruned(made(), 2)


def test_keeping_all_is_the_same_set():
    syn = made()
    assert pruned(syn, 6, "random").content_hash == syn.content_hash


def test_a_set_of_some_classes_keeps_these():
    syn = made(classes=(0, 2))
    assert pruned(syn, 2).labels.classes.tolist() == [0, 0, 2, 2]


# --- refusals --------------------------------------------------------------------------------------------------


def empty() -> SyntheticSet:
    syn = made()
    nothing = torch.arange(0)
    return replace(syn, store=syn.store.take(nothing), labels=syn.labels.take(nothing))


def uneven() -> SyntheticSet:
    syn = made(4)
    some = torch.tensor([0, 1, 2, 3, 4, 8, 9, 10, 11])
    return replace(syn, store=syn.store.take(some), labels=syn.labels.take(some))


@pytest.mark.parametrize(
    ("make", "ipc", "rule", "error", "words"),
    [
        (made, 7, "yoco", BudgetError, "ipc 7 would keep 7 items per class, but the set holds 6 of class 'blob 0'"),
        (uneven, 2, "random", BudgetError, "the set holds 1 of class 'blob 1'. Lower ipc"),
        (empty, 1, "random", ConfigError, "holds no items"),
        (lambda: made(classes=(1,)), 2, "yoco", ConfigError, "class 'blob 1' alone.*Use --rule random"),
        (lambda: made(protocol="E-krr"), 2, "yoco", ConfigError, "E-krr trains no network.*--protocol"),
        (made, 2, "best", ConfigError, "unknown rule 'best'. Possible: 'random', 'yoco', 'el2n'"),
    ],
)
def test_what_cannot_be_pruned_is_refused(make, ipc, rule, error, words):
    with pytest.raises(error, match=words):
        pruned(make(), ipc, rule)


def test_one_class_and_ridge_sets_can_be_pruned_at_random():
    assert len(pruned(made(classes=(1,)), 2, "random")) == 2
    assert len(pruned(made(protocol="E-krr"), 2, "random")) == 6


def test_stored_batches_cannot_be_taken_apart():
    syn = made(4, labels="blocks", labels_options={"augment": "shift"}, teacher={"steps": 3})
    with pytest.raises(ConfigError, match="labels 'blocks' belong to stored batches of the whole set"):
        pruned(syn, 2, "random")


def test_a_network_that_diverges_is_said_to():
    syn = made()
    with torch.no_grad():
        syn.store.params["x"].mul_(torch.tensor(1e30))
    with pytest.raises(DivergedError):
        pruned(syn, 2)


def test_looking_at_a_network_leaves_its_training_alone(monkeypatch: pytest.MonkeyPatch):
    """Scored in evaluation mode between the epochs, trained in training mode."""
    modes: set[tuple[str, bool]] = set()

    class Noting(TwinNet):
        def forward(self, x: Tensor) -> Tensor:
            modes.add(("trained" if torch.is_grad_enabled() else "scored", self.training))
            return super().forward(x)

    monkeypatch.setattr(TwinDomain, "network", lambda self, name, info: Noting(info, 8))
    pruned(made(), 2)
    assert modes == {("trained", True), ("scored", False)}
