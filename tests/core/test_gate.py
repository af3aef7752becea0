"""The gate answers sums of per-example contributions, and the ledger sees each question."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ddfed.data import Batch, RealData
from ddfed.distill import distill
from ddfed.errors import ConfigError, DataError, GateError
from ddfed.gate import Answer, BatchLoss, Contribution, Gate, PlainGate, Query
from ddfed.ledger import Ledger, PrivacyEvent
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings
from ddfed.testing import TwinDomain, twin_task

TASK = twin_task()
DATA = TASK.train


def flat(batch: Batch) -> Tensor:
    return batch.inputs.flatten(1) ** 2


def identity(batch: Batch) -> Tensor:
    """One column per row of the data set: what was drawn, and how often."""
    wanted = DATA.all().inputs.flatten(1)
    return (torch.cdist(batch.inputs.flatten(1), wanted, compute_mode="donot_use_mm_for_euclid_dist") == 0).float()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def few(*counts: int) -> RealData:
    return DATA.subset(torch.cat([rows[:n] for rows, n in zip(DATA.class_index, counts)]))


def test_sums_equal_direct_sums_in_the_order_of_the_query():
    answer = PlainGate(DATA).sums(Query("q", (2, 0)), flat, generator())
    for g, c in enumerate((2, 0)):
        values = flat(DATA.batch(DATA.class_index[c])).double()
        assert torch.allclose(answer.sums[g].double(), values.sum(0), rtol=1e-5)
        assert torch.allclose(answer.means[g].double(), values.mean(0), rtol=1e-5)
    assert answer.counts.tolist() == [40.0, 40.0] and answer.sums.dtype == torch.float32


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_the_chunk_size_does_not_matter(chunk: int):
    query = Query("q", (0, 1, 2), rows=9)
    whole = PlainGate(DATA).sums(query, flat, generator())
    parts = PlainGate(DATA, chunk=chunk).sums(query, flat, generator())
    assert torch.allclose(parts.sums, whole.sums, rtol=1e-5) and torch.equal(parts.counts, whole.counts)


def test_an_empty_class_has_a_zero_mean():
    answer = PlainGate(few(3, 0, 2)).sums(Query("q", (0, 1, 2)), flat, generator())
    assert answer.counts.tolist() == [3.0, 0.0, 2.0]
    assert bool((answer.means[1] == 0).all()) and bool((answer.means[0] != 0).any())


def test_a_question_that_no_row_can_answer_is_an_error():
    """Bug found by this test: the answer was zeros, towards which distillation would have gone."""
    with pytest.raises(DataError, match="found no rows of the classes"):
        PlainGate(few(3, 0, 2)).sums(Query("q", (1,)), flat, generator())


def test_rows_are_drawn_without_replacement():
    answer = PlainGate(DATA).sums(Query("q", (0, 1, 2), rows=13), identity, generator())
    assert answer.counts.tolist() == [13.0] * 3
    assert set(answer.sums.unique().tolist()) == {0.0, 1.0}
    for g in range(3):
        assert set(torch.nonzero(answer.sums[g]).flatten().tolist()) <= set(DATA.class_index[g].tolist())


def test_every_row_is_drawn_equally_often():
    total = sum(
        PlainGate(DATA).sums(Query("q", (1,), rows=10), identity, generator(seed)).sums[0] for seed in range(200)
    )
    drawn = total[DATA.class_index[1]] / 200
    # 200 draws of 10 of 40: expected share 1/4, deviation sqrt(.25 * .75 / 200) = 0.031; five of them allowed.
    assert float((drawn - 0.25).abs().max()) < 0.155


def test_a_small_class_gives_all_it_has_or_is_topped_up():
    gate = PlainGate(few(5, 40, 40))
    query = Query("q", (0, 1), rows=12)
    assert gate.sums(query, flat, generator()).counts.tolist() == [5.0, 12.0]
    topped = gate.sums(Query("q", (0, 1), rows=12, top_up=True), identity, generator())
    assert topped.counts.tolist() == [12.0, 12.0]
    held = topped.sums[0][DATA.class_index[0][:5]]
    assert bool((held >= 1).all()) and float(held.sum()) == 12.0


def test_rows_over_all_classes_follow_the_data_and_count_together():
    answer = PlainGate(few(30, 10, 40)).sums(Query("q", (0, 1), rows=20, per_class=False), identity, generator())
    assert float(answer.counts.sum()) == 20.0 and float(answer.sums.max()) == 1.0
    assert bool((answer.sums[:, DATA.class_index[2]] == 0).all())


def test_the_same_generator_draws_the_same_rows():
    query = Query("q", (0, 1), rows=5)
    one, two = (PlainGate(DATA).sums(query, identity, generator(3)).sums for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, PlainGate(DATA).sums(query, identity, generator(4)).sums)


@pytest.mark.parametrize("wrong", [lambda b: b.inputs, lambda b: b.inputs.flatten(1)[:1], lambda b: b.inputs.mean()])
def test_a_contribution_of_the_wrong_shape_is_refused(wrong: Contribution):
    with pytest.raises(ConfigError, match=r"'means'.*\(rows, width\)"):
        PlainGate(DATA).sums(Query("means", (0,)), wrong, generator())


def test_contributions_run_without_gradient():
    weight = torch.ones(32, requires_grad=True)
    answer = PlainGate(DATA).sums(Query("q", (0,)), lambda b: b.inputs.flatten(1) * weight, generator())
    assert not answer.sums.requires_grad


def test_the_gradient_equals_the_sum_over_examples():
    with isolated(0):
        net = TwinDomain().network("small", TASK.info)
    parameters = list(net.parameters())

    def loss(batch: Batch) -> Tensor:
        return torch.nn.functional.cross_entropy(net(batch.inputs), batch.classes, reduction="none")

    gate = PlainGate(DATA, chunk=7)
    got, count = gate.gradient(Query("g", (0, 2)), parameters, loss, generator())
    rows = torch.cat([DATA.class_index[0], DATA.class_index[2]])
    want = [torch.zeros_like(p) for p in parameters]
    for row in rows:
        for held, grad in zip(want, torch.autograd.grad(loss(DATA.batch(row[None])).sum(), parameters)):
            held += grad
    assert count == 80
    for mine, theirs in zip(got, want):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_held_classes_need_at_least_one_row():
    gate = PlainGate(few(5, 0, 2))
    assert gate.held() == gate.held(0) == (0, 2)
    assert gate.held(3) == (0,) and gate.held(6) == ()


def test_a_chunk_of_no_rows_is_refused():
    with pytest.raises(ConfigError, match="at least 1 row, got 0"):
        PlainGate(DATA, chunk=0)


def test_the_ledger_counts_every_question():
    gate = PlainGate(DATA, scope="client 3")
    assert gate.ledger.statement() == "No real data was touched."
    for _ in range(3):
        gate.sums(Query("means", (0,), rows=2), flat, generator())
    weight = torch.ones(1, requires_grad=True)
    gate.gradient(Query("slope", (0,)), [weight], lambda b: b.inputs.flatten(1).sum(1) * weight, generator())
    assert gate.ledger.counts == {
        PrivacyEvent("none", "means", "client 3"): 3,
        PrivacyEvent("none", "slope", "client 3"): 1,
    }
    assert "without noise" in gate.ledger.statement()
    assert gate.raw("a look") is DATA
    assert gate.ledger.counts[PrivacyEvent("raw", "a look", "client 3")] == 1
    assert "start from real records" in gate.ledger.statement()


def test_a_ledger_comes_back_from_json_and_goes_on_counting_the_same_events():
    """Bug found by this test: parameters out of alphabetical order came back as another event."""
    event = PrivacyEvent("gaussian", "means", parameters=(("sigma", 2.0), ("q", 0.1)))
    ledger = Ledger()
    ledger.append(event)
    again = Ledger.from_json(ledger.to_json())
    again.append(event)
    assert list(again.counts.values()) == [2]
    assert again.to_json() == [{**ledger.to_json()[0], "count": 2}]
    assert ledger.statement().startswith("Noisy mechanisms only")
    ledger.append(PrivacyEvent("none", "means"))
    assert ledger.statement().startswith("No formal privacy guarantee")


def test_merging_ledgers_adds_their_counts():
    one, two = Ledger(), Ledger()
    one.append(PrivacyEvent("none", "a"))
    two.append(PrivacyEvent("none", "a"))
    two.append(PrivacyEvent("raw", "b"))
    one.merge(two)
    assert [row["count"] for row in one.to_json()] == [2, 1] and len(two.counts) == 2


class PrivateGate(Gate):
    """A mechanism in miniature: clips, adds noise, names a public denominator, hands out nothing."""

    def __init__(self, data: RealData) -> None:
        self._plain = PlainGate(data)
        self.info, self.ledger = data.info, Ledger()

    def sums(self, query: Query, contribution: Contribution, generator: torch.Generator) -> Answer:
        def clipped(batch: Batch) -> Tensor:
            values = contribution(batch)
            return values / values.norm(dim=1, keepdim=True).clamp(min=1.0)

        self.ledger.append(PrivacyEvent("gaussian", query.name, parameters=(("sigma", 0.1),)))
        exact = self._plain.sums(query, clipped, generator)
        noise = 0.1 * torch.randn(exact.sums.shape, generator=generator)
        return Answer(exact.sums + noise, torch.full_like(exact.counts, 20.0))

    def gradient(
        self, query: Query, parameters: Sequence[Tensor], loss: BatchLoss, generator: torch.Generator
    ) -> tuple[list[Tensor], int]:
        raise GateError("no gradients here")

    def held(self, minimum: int = 1) -> tuple[int, ...]:
        return tuple(range(self.info.num_classes))

    def raw(self, purpose: str) -> RealData:
        raise GateError(f"this gate answers sums only, not {purpose}")


def test_a_private_gate_serves_the_loop_and_refuses_records():
    parts = PartSettings(ipc=2, steps=3, lr=0.1, init="noise", network="small")
    gate = PrivateGate(DATA)
    syn = distill(gate, TwinDomain(), parts, Streams(0))
    assert syn.privacy["statement"].startswith("Noisy mechanisms only")
    assert [(e["mechanism"], e["count"]) for e in syn.privacy["events"]] == [("gaussian", 3)]
    with pytest.raises(GateError, match="initialisation by random"):
        distill(PrivateGate(DATA), TwinDomain(), parts.model_copy(update={"init": "random"}), Streams(0))


def test_single_rows_come_with_their_groups_and_numbers():
    query = Query("rows", (2, 0), rows=5)
    found = PlainGate(DATA, chunk=3).each(query, lambda b: b.inputs.flatten(1), Streams(0).torch("a"))
    assert found.groups.tolist() == [0] * 5 + [1] * 5 and len(found.rows.unique()) == 10
    assert torch.equal(found.values, DATA.batch(found.rows).inputs.flatten(1))
    assert DATA.labels[found.rows].tolist() == [2] * 5 + [0] * 5
    assert [len(part) for part in found.split(2)] == [5, 5]


def test_single_rows_are_an_event_of_their_own_and_no_private_answer():
    gate = PlainGate(DATA)
    gate.each(Query("rows", (0,), rows=1), lambda b: b.inputs.flatten(1), Streams(0).torch("a"))
    assert [event.mechanism for event in gate.ledger.counts] == ["rows"]
    assert gate.ledger.statement().startswith("No formal privacy guarantee")
    with pytest.raises(GateError, match="answers sums only, not single rows"):
        PrivateGate(DATA).each(Query("kernel", (0,)), lambda b: b.inputs, Streams(0).torch("a"))


def test_a_query_can_be_narrowed_to_some_rows():
    among = torch.cat([DATA.class_index[0][:3], DATA.class_index[1][:2]])
    query = Query("rows", (0, 1), rows=3, among=among)
    found = PlainGate(DATA).each(query, lambda b: b.inputs.flatten(1), Streams(0).torch("a"))
    assert sorted(found.rows.tolist()) == sorted(among.tolist()) and found.groups.tolist() == [0, 0, 0, 1, 1]


def test_class_gradients_are_those_of_each_class_alone():
    net = torch.nn.Linear(32, 3, dtype=torch.float32)

    def loss(batch: Batch) -> Tensor:
        return torch.nn.functional.cross_entropy(net(batch.inputs.flatten(1)), batch.classes, reduction="none")

    gate, parameters = PlainGate(DATA, chunk=7), list(net.parameters())
    found, counts = gate.class_gradients(Query("g", (2, 1)), parameters, loss, Streams(0).torch("a"))
    assert counts.tolist() == [len(DATA.class_index[2]), len(DATA.class_index[1])]
    for group, c in enumerate((2, 1)):
        want = torch.autograd.grad(loss(DATA.batch(DATA.class_index[c])).sum(), parameters)
        for mine, theirs in zip(found, want):
            assert torch.allclose(mine[group], theirs, atol=1e-3)


def test_class_counts_are_a_question_of_their_own():
    gate = PlainGate(DATA)
    assert torch.equal(gate.counts(), DATA.class_counts) and len(gate.ledger.counts) == 1
    with pytest.raises(GateError, match="how many rows"):
        PrivateGate(DATA).counts()
