"""Old sets in place of missing ones: who stands in, for how long, with what weight, and after a resumption."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from playing import TASK, server_context
from playing import settings as plain

from ddfed.config import Layer, to_toml
from ddfed.federation import Release
from ddfed.runs import RunFolder
from ddfed_federated.methods import ServerState
from ddfed_federated.parts.union import remembered, union_of_sets
from ddfed_federated.rounds import Progressing, RoundRow
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import simulate
from ddfed_federated.standins import Shelf

CLASSES = TASK.info.num_classes


def a_set(client: int, number: int, classes=range(CLASSES)) -> Release:
    y = torch.tensor(list(classes))
    x = torch.full((len(y), *TASK.info.shape), float(10 * number + client))
    counts = [5 if c in classes else 0 for c in range(CLASSES)]
    return Release(client, number, {"set": {"x": x, "y": y}}, sum(counts), tuple(counts), phase="set")


def shelf(history=1, **federation) -> Shelf:
    return Shelf(plain("feddm", federation=federation, server={"history": history, "epochs": 5}))


def hold(one: Shelf, number: int, here: list[int], late: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """One round as the engine holds it: (client, age) of those that stood in."""
    fresh = [a_set(client, number) for client in here]
    for client in (*here, *late):
        one.keep(a_set(client, number), client in late)
    found = one.stand_ins("set", number, fresh, CLASSES)
    one.settle(number, [*fresh, *found])
    return [(r.client, r.age) for r in found]


def test_by_default_nobody_stands_in():
    one = shelf()
    hold(one, 1, [0, 1, 2], late=(3,))
    assert hold(one, 2, [0]) == []
    assert one.remember() == []


def test_a_late_set_serves_in_the_next_round_only_and_not_beside_a_fresh_one():
    one = shelf(late="use")
    assert hold(one, 1, [0, 1], late=(2, 3)) == []
    assert hold(one, 2, [0, 3]) == [(2, 1)]
    assert hold(one, 3, [0]) == []


def test_absent_clients_are_replaced_up_to_an_age():
    one = shelf(absent="reuse", reuse_age=2)
    hold(one, 1, [0, 1, 2])
    assert hold(one, 2, [0]) == [(1, 1), (2, 1)]
    assert hold(one, 3, [0, 2]) == [(1, 2)]
    assert hold(one, 4, [0]) == [(2, 1)]


def test_a_set_that_the_server_remembers_is_not_added_again():
    one = shelf(history=2, absent="reuse", reuse_age=3)
    hold(one, 1, [0, 1])
    assert hold(one, 2, [0]) == []
    assert hold(one, 3, [0]) == [(1, 2)]
    assert hold(one, 4, [0]) == []


def test_a_lost_class_is_taken_from_the_youngest_set_that_has_it():
    one = shelf(absent="reuse", reuse_age=1)
    for client, number in ((1, 1), (2, 2)):
        release = a_set(client, number)
        one.keep(release)
        one.settle(number, [release])
    few = a_set(0, 9, classes=range(CLASSES - 1))
    (found,) = one.stand_ins("set", 9, [few], CLASSES)
    assert (found.client, found.age, found.set["y"].tolist()) == (2, 7, [CLASSES - 1])
    assert found.class_counts == (*[0] * (CLASSES - 1), 5)
    assert bool((found.set["x"] == 22.0).all())
    assert one.stand_ins("set", 9, [a_set(0, 9)], CLASSES) == []


def test_a_client_with_nothing_to_send_is_not_absent():
    one = shelf(absent="reuse")
    hold(one, 1, [0, 1])
    assert one.stand_ins("set", 2, [a_set(0, 2), Release(1, 2, phase="set")], CLASSES) == []


def test_what_is_remembered_comes_back():
    one, two = shelf(absent="reuse", late="use"), shelf(absent="reuse", late="use")
    hold(one, 1, [0, 1], late=(2,))
    two.resume(one.remember())
    assert hold(one, 2, [0]) == hold(two, 2, [0]) == [(1, 1), (2, 1)]


def test_items_lose_weight_with_age():
    s = plain("feddm", federation={"reuse_decay": 0.5}, server={"weighting": "uniform", "epochs": 5})
    context = server_context(s)
    releases = [a_set(0, 3), replace(a_set(1, 1), age=2)]
    union = union_of_sets(remembered(_empty(context), releases, context), context)
    young, old = union.weight[union.client == 0], union.weight[union.client == 1]
    torch.testing.assert_close(old / young, torch.full_like(old, 0.25))
    torch.testing.assert_close(union.weight.mean(), torch.tensor(1.0))


def _empty(context):
    return ServerState(2, context.network().state_dict())


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path):
    def go(**federation) -> list[RoundRow]:
        base = {
            "baselines": [],
            "method": "random-once",
            "data": {"domain": "twin", "dataset": "blobs"},
            "distill": {"ipc": 2, "min_count": 1, "network": "small", "objective": "mean"},
            "server": {"epochs": 5},
            "federation": {"clients": 6, "rounds": 3, "partition": "iid", **federation},
        }
        s = resolve_simulate([Layer("test", base)]).settings
        with RunFolder.create(tmp_path, "run", to_toml(s)) as folder:
            summary = simulate(s, folder)
        return [RoundRow.from_json(r) for r in summary["methods"]["random-once"]["rows"]]

    return go


def test_the_union_is_whole_though_half_of_the_clients_are_asked(rows):
    without = rows(participation=0.5, rounds=6)
    reusing = rows(participation=0.5, rounds=6, absent="reuse", reuse_age=9)
    assert [r.items for r in without] == [without[0].items] * 6
    assert [r.releases for r in reusing] == [r.releases for r in without] == [3] * 6
    assert reusing[-1].items == 2 * without[-1].items
    assert len(reusing[-1].stood_in) == 3
    assert reusing[0].stood_in == ()
    # What stands in costs nothing: nothing was sent and no record was used.
    assert [r.up for r in reusing] == [r.up for r in without]
    assert [r.ledger for r in reusing] == [r.ledger for r in without]


def test_a_late_release_is_booked_in_its_round_and_used_in_the_next(rows):
    calm = rows()
    late = rows(late="use", faults=["2:4:late", "3:4:drop"])
    assert late[1].lost == ("client 4: its release came when the round was over (rehearsed)",)
    assert (late[1].releases, late[1].stood_in, late[2].stood_in) == (5, (), ("client 4: 1",))
    assert late[1].bytes_up["items"] == calm[1].bytes_up["items"]
    assert late[1].ledger == calm[1].ledger
    assert late[2].items == calm[2].items


@pytest.mark.slow
def test_a_client_that_is_really_late_works_on_and_serves_in_the_next_round(tmp_path):
    base = {
        "baselines": [],
        "method": "random-once",
        "data": {"train_limit": 200, "test_limit": 50},
        "distill": {"ipc": 2, "min_count": 1, "network": "convnet-d2-w8"},
        "server": {"epochs": 1},
        "federation": {
            **{"clients": 4, "rounds": 3, "partition": "iid", "workers": 2, "late": "use"},
            # This seed makes it wait 13 seconds in the first round, and the third is held without it.
            **{"deadline_s": 12.0, "faults": ["1:1:delay", "2:1:drop", "3:1:drop"], "fault_delay_s": 10.0},
        },
    }
    s = resolve_simulate([Layer("test", base)]).settings
    wait = lambda row: time.sleep(12) if row.round == 1 else None  # noqa: E731
    with RunFolder.create(tmp_path, "run", to_toml(s)) as folder:
        summary = simulate(s, folder, Progressing(finished=wait))
    first, second, third = (RoundRow.from_json(r) for r in summary["methods"]["random-once"]["rows"])
    assert first.lost == ("client 1: no answer before the deadline",)
    assert (first.releases, first.stood_in) == (3, ())
    assert (second.releases, second.stood_in) == (3, ("client 1: 1",))
    assert second.bytes_up["items"] == 4 * first.bytes_up["items"] // 3
    assert (third.releases, third.stood_in) == (3, ())
