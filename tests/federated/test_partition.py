"""Splits: coverage, the oracle table of published settings, repair, saving, and errors people can act on."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfed.errors import ConfigError, DataError, UnknownNameError
from ddfed.registry import registry
from ddfed.testing import twin_task
from ddfed_federated.measures import gini, heterogeneity
from ddfed_federated.partition import Partition, divide, split
from ddfed_federated.splits import SCHEMES
from ddfed_federated.splits.cuts import CLASS_ORDERS, iid
from ddfed_federated.splits.dirichlet import _whole_table, equal_sizes

ONE = {"classes_per_client": 1}
TEN_BY_5000 = np.repeat(np.arange(10), 5000)

# Mean and deviation over N draws by an independent implementation: 10 classes x 5,000 rows, min_size 10.
# (clients, alpha, capped, N, classes held, size CV, label L1, effective classes)
ORACLE = [
    (10, 0.01, True, 60, (1.60, 0.25), (0.54, 0.14), (1.68, 0.05), (1.36, 0.14)),
    (10, 0.05, True, 60, (2.85, 0.41), (0.51, 0.07), (1.56, 0.06), (1.90, 0.23)),
    (10, 0.3, True, 60, (6.86, 0.46), (0.31, 0.08), (1.15, 0.08), (4.02, 0.43)),
    (10, 1.0, True, 60, (9.07, 0.27), (0.18, 0.05), (0.75, 0.06), (6.59, 0.36)),
    (10, 0.1, True, 60, (3.95, 0.46), (0.45, 0.11), (1.45, 0.06), (2.37, 0.29)),
    (10, 0.5, True, 60, (7.91, 0.38), (0.24, 0.06), (0.98, 0.06), (5.05, 0.34)),
    (10, 0.1, False, 60, (4.76, 0.42), (0.69, 0.17), (1.31, 0.08), (2.81, 0.32)),
    (10, 0.5, False, 60, (8.97, 0.28), (0.40, 0.09), (0.87, 0.05), (5.72, 0.28)),
    (100, 0.1, True, 15, (2.61, 0.08), (0.83, 0.04), (1.54, 0.02), (2.21, 0.08)),
    (100, 0.5, True, 15, (5.95, 0.17), (0.33, 0.03), (1.04, 0.03), (4.80, 0.15)),
    (100, 0.5, False, 15, (6.69, 0.11), (0.43, 0.04), (0.91, 0.02), (5.47, 0.12)),
]
#: Schemes that take any labels and any number of clients.
FREE = sorted(set(SCHEMES) - {"disjoint", "dirichlet-minimum"})
MEASURES = ("classes_held", "size_cv", "label_l1", "effective_classes")


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("clients", "alpha", "capped", "draws", "held", "cv", "l1", "effective"), ORACLE)
def test_dirichlet_agrees_with_an_independent_implementation(clients, alpha, capped, draws, held, cv, l1, effective):
    ours = 20
    got = [
        heterogeneity(
            split("dirichlet", TEN_BY_5000, clients, 10, rng(s), alpha=alpha, capped=capped, min_size=10).counts
        )
        for s in range(ours)
    ]
    for name, (mean, deviation) in zip(MEASURES, (held, cv, l1, effective)):
        # Four standard errors of the difference of two means; 0.005 is the table's rounding.
        tolerance = 4 * deviation * math.sqrt(1 / ours + 1 / draws) + 0.005
        assert np.mean([g[name] for g in got]) == pytest.approx(mean, abs=tolerance), name


@settings(max_examples=150, deadline=None)
@given(
    scheme=st.sampled_from(FREE),
    rows=st.integers(1, 300),
    classes=st.integers(1, 12),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_every_row_is_held_exactly_once(scheme, rows, classes, share, seed):
    labels = rng(seed).integers(0, classes, rows)
    clients = 1 + int(share * (rows - 1))
    options = {}
    occurring = len(np.unique(labels))
    if scheme == "pathological":
        options["classes_per_client"] = max(1, -(-occurring // clients))
    if scheme == "consecutive":
        options["classes_per_client"] = max(1, occurring - clients + 1)
    if scheme == "shards":
        options["shards_per_client"] = max(1, min(2, rows // clients))
    made = split(scheme, labels, clients, classes, rng(seed), **options)
    assert np.array_equal(np.sort(np.concatenate(made.parts)), np.arange(rows))
    assert made.counts.shape == (clients, classes)
    assert np.array_equal(made.counts.sum(axis=0), np.bincount(labels, minlength=classes))
    assert all(np.array_equal(part, np.sort(part)) for part in made.parts)
    again = split(scheme, labels, clients, classes, rng(seed), **options)
    assert again.hash == made.hash


@pytest.mark.parametrize("scheme", ["dirichlet", "quantity"])
@pytest.mark.parametrize("alpha", [1e-3, 0.05, 1e3])
def test_the_smallest_client_holds_min_size_at_any_alpha(scheme, alpha):
    labels = np.arange(2000) % 10
    made = split(scheme, labels, 100, 10, rng(), alpha=alpha, min_size=20)
    assert made.counts.sum(axis=1).min() == 20


def test_two_hundred_clients_share_a_small_data_set_by_default():
    labels = np.arange(1797) % 10
    for scheme in FREE:
        made = split(scheme, labels, 200, 10, rng())
        assert made.clients == 200


def test_min_size_zero_allows_empty_clients():
    made = split("dirichlet", np.zeros(20, dtype=int), 20, 1, rng(), alpha=0.01, min_size=0, capped=False)
    assert made.counts.sum(axis=1).min() == 0
    assert heterogeneity(made.counts)["empty_clients"] > 0


def test_the_cap_bounds_the_sizes():
    largest = {
        capped: max(
            split("dirichlet", TEN_BY_5000, 10, 10, rng(s), alpha=0.1, capped=capped).counts.sum(axis=1).max()
            for s in range(10)
        )
        for capped in (True, False)
    }
    # A client below n / clients = 5,000 rows can get one more whole class, also of 5,000 rows.
    assert largest[True] < 10_000 < largest[False]


def test_iid_clients_are_alike():
    made = split("iid", TEN_BY_5000, 7, 10, rng())
    sizes = made.counts.sum(axis=1)
    assert sizes.max() - sizes.min() <= 1
    assert heterogeneity(made.counts)["label_l1"] < 0.05


def test_pathological_clients_hold_so_many_classes_and_share_each_equally():
    made = split("pathological", TEN_BY_5000, 20, 10, rng(), classes_per_client=3)
    assert ((made.counts > 0).sum(axis=1) == 3).all()
    for column in made.counts.T:
        holders = column[column > 0]
        assert holders.max() - holders.min() <= 1
    assert set((made.counts > 0).sum(axis=0)) == {6}


def test_shards_hold_few_classes_and_equal_sizes():
    made = split("shards", TEN_BY_5000, 10, 10, rng(), shards_per_client=2)
    assert (made.counts > 0).sum(axis=1).max() <= 2
    assert set(made.counts.sum(axis=1)) == {5000}


def test_quantity_skews_sizes_and_not_labels():
    measures = heterogeneity(split("quantity", TEN_BY_5000, 10, 10, rng(), alpha=0.5).counts)
    assert measures["size_cv"] > 0.5
    assert measures["label_l1"] < 0.15


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_one_client_holds_everything(scheme):
    few = {"classes_per_client": 10}
    options = {"pathological": few, "consecutive": few, "dirichlet-minimum": {"per_class": 2}}.get(scheme, {})
    made = split(scheme, np.arange(50) % 10, 1, 10, rng(), **options)
    assert made.parts[0].tolist() == list(range(50))


@pytest.mark.parametrize("scheme", FREE)
def test_one_class_and_as_many_clients_as_rows(scheme):
    options = {"pathological": ONE, "consecutive": ONE, "shards": {"shards_per_client": 1}}.get(scheme, {})
    made = split(scheme, np.full(12, 3), 12, 5, rng(), **options)
    assert made.counts.sum() == 12


def test_different_seeds_give_different_splits():
    assert split("dirichlet", TEN_BY_5000, 5, 10, rng(0)).hash != split("dirichlet", TEN_BY_5000, 5, 10, rng(1)).hash


def test_a_saved_split_comes_back_and_knows_its_data():
    labels = np.arange(100) % 5
    made = split("dirichlet", labels, 4, 5, rng(), alpha=0.3)
    again = Partition.from_json(made.to_json())
    assert again.hash == made.hash
    assert again.options == made.options == {"alpha": 0.3, "min_size": None, "capped": True}
    again.check(labels)
    with pytest.raises(DataError, match="other data: client"):
        again.check(labels[::-1])
    with pytest.raises(DataError, match="100 rows"):
        again.check(labels[:50])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("parts"), "not a split file"),
        (lambda r: r.update(schema=9), "schema 9"),
        (lambda r: r["parts"][0].append(r["parts"][1][0]), "held 2 times|row numbers run"),
        (lambda r: r["counts"][0].reverse(), "changed"),
        (lambda r: r.update(parts="x"), "not a split file"),
    ],
)
def test_a_broken_split_file_is_refused(change, message):
    record = json.loads(split("iid", np.arange(20) % 4, 3, 4, rng()).to_json())
    change(record)
    with pytest.raises(DataError, match=message):
        Partition.from_json(json.dumps(record))


def test_a_strangers_function_is_used_and_checked():
    def halves(labels, clients, rng, *, where=0.5):
        cut = int(len(labels) * where)
        return [np.arange(cut), np.arange(cut, len(labels))]

    made = split(halves, np.zeros(10, dtype=int), 2, 1, rng(), where=0.3)
    assert (made.scheme, made.options, made.counts.tolist()) == ("halves", {"where": 0.3}, [[3], [7]])
    with pytest.raises(ConfigError, match="row 0 is held 2 times"):
        split(lambda labels, clients, rng: [np.arange(10), np.arange(10)], np.zeros(10, dtype=int), 2, 1, rng())
    with pytest.raises(ConfigError, match="made 1 parts for 2 clients"):
        split(lambda labels, clients, rng: [np.arange(10)], np.zeros(10, dtype=int), 2, 1, rng())


@pytest.mark.parametrize(
    ("scheme", "clients", "options", "message"),
    [
        ("iid", 0, {}, "at least 1 client"),
        ("iid", 101, {}, "at most 100 clients"),
        ("dirichlet", 4, {"alpha": 0.0}, "above 0"),
        ("dirichlet", 4, {"alpha": float("nan")}, "above 0"),
        ("dirichlet", 4, {"min_size": 26}, "allow 0 to 25"),
        ("dirichlet", 4, {"min_size": -1}, "allow 0 to 25"),
        ("dirichlet", 4, {"alhpa": 1.0}, "Did you mean 'alpha'"),
        ("iid", 4, {"alpha": 1.0}, "takes no options"),
        ("pathological", 4, {"classes_per_client": 11}, "use 1 to 10"),
        ("pathological", 2, {"classes_per_client": 2}, "classes_per_client >= 5"),
        ("shards", 4, {"shards_per_client": 26}, "1 to 25"),
        ("pathological", 4, {"classes_per_client": 3, "dealt": "randomly"}, "10 clients or more"),
        ("pathological", 10, {"dealt": "evnly"}, "'evenly', 'randomly'"),
        ("consecutive", 4, {"classes_per_client": 6}, "reach 9 of 10 classes; use classes_per_client >= 7"),
        ("consecutive", 4, {"classes_per_client": 0}, "use 1 to 10"),
        ("disjoint", 11, {}, "at most 10 clients"),
        ("disjoint", 5, {"order": "cifar"}, "'rising', 'fedlap-dp'"),
        ("disjoint", 2, {"order": "fedlap-dp"}, "must give 2 clients"),
        ("disjoint", 2, {"order": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 8, 9]]}, "each once"),
        ("disjoint", 2, {"order": 7}, "must be lists of classes"),
        ("dirichlet-minimum", 4, {"per_class": 3}, "allow 4 clients 0 to 2 each"),
        ("doubly-dirichlet", 4, {"alpha": -1.0}, "above 0"),
        ("inner-dirichlet", 2, {"sizes": [60, 50]}, "add up to 100 rows"),
        ("inner-dirichlet", 2, {"sizes": [60.0, 40.0]}, "whole numbers"),
        ("mixed", 4, {"size_alpha": 0.0}, r"size_alpha must be .* above 0"),
        ("mixed", 4, {"min_size": 26}, "allow 0 to 25"),
    ],
)
def test_wrong_settings_say_what_is_possible(scheme, clients, options, message):
    with pytest.raises(ConfigError, match=message):
        split(scheme, np.arange(100) % 10, clients, 10, rng(), **options)


def test_an_unknown_scheme_names_the_near_one():
    with pytest.raises(UnknownNameError, match="Did you mean 'dirichlet'"):
        split("dirichlett", np.arange(10), 2, 10, rng())


def test_labels_outside_the_task_are_refused():
    with pytest.raises(ConfigError, match="labels run from 0 to 9"):
        split("iid", np.arange(10), 2, 5, rng())


def test_measures_at_their_limits():
    alike, apart = heterogeneity(np.full((4, 5), 20)), heterogeneity(np.eye(4, dtype=int) * 20)
    assert (alike["label_l1"], alike["effective_classes"], alike["classes_held"]) == (0, pytest.approx(5), 5)
    assert alike["label_js"] == pytest.approx(0)
    # One class each: shares differ by 3/4 in the own class and 1/4 in the three others.
    assert apart["label_l1"] == pytest.approx(1.5)
    assert apart["label_js"] == pytest.approx(math.log(4))
    assert apart["effective_classes"] == pytest.approx(1)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.array([2, 2])) == gini(np.zeros(3)) == 0
    assert all(v == 0 for k, v in heterogeneity(np.zeros((2, 3))).items() if k != "empty_clients")


def test_iid_needs_no_options_and_leaves_labels_alone():
    labels = np.arange(10)
    iid(labels, 3, rng())
    assert labels.tolist() == list(range(10))


@pytest.mark.parametrize("scheme", ["iid", "pathological", "shards"])
def test_an_option_of_another_partition_names_the_partitions_that_take_it(scheme: str):
    """Bug found by this test: --alpha with another partition said only that the option is unknown."""
    with pytest.raises(
        ConfigError, match=f"partition '{scheme}' has no option 'alpha'.*'alpha' belongs to 'dirichlet', .*'quantity'"
    ):
        split(scheme, TEN_BY_5000, 10, 10, rng(), alpha=0.5)
    with pytest.raises(ConfigError, match=r"no option 'alhpa'. It takes no options\.$"):
        split("iid", TEN_BY_5000, 10, 10, rng(), alhpa=0.5)


def test_randomly_dealt_classes_start_with_the_clients_own_number():
    made = split("pathological", TEN_BY_5000, 12, 10, rng(), classes_per_client=3, dealt="randomly")
    held = made.counts > 0
    assert (held.sum(axis=1) == 3).all()
    assert all(held[k, k % 10] for k in range(12))
    # With 12 x 3 places for 10 classes, an even deal would give each 3 or 4 holders.
    assert not set(held.sum(axis=0)) <= {3, 4}


def test_consecutive_classes_go_round_and_are_cut_equally():
    made = split("consecutive", TEN_BY_5000, 20, 10, rng(), classes_per_client=3)
    for client, counts in enumerate(made.counts):
        assert set(np.flatnonzero(counts)) == {(client + j) % 10 for j in range(3)}
    holders = made.counts[made.counts > 0].reshape(20, 3)
    assert holders.max() - holders.min() <= 1
    # A permutation, not the order of the file.
    assert (np.diff(made.parts[0][: made.counts[0, 0]]) != 1).any()


def test_disjoint_classes_have_one_owner_in_the_order_asked_for():
    rising = split("disjoint", TEN_BY_5000, 4, 10, rng())
    assert [np.flatnonzero(c).tolist() for c in rising.counts] == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
    paper = split("disjoint", TEN_BY_5000, 5, 10, rng(), order="fedlap-dp")
    assert [set(np.flatnonzero(c)) for c in paper.counts] == [set(own) for own in CLASS_ORDERS["fedlap-dp"]]
    assert split("disjoint", TEN_BY_5000, 2, 10, rng(), order=[[9], list(range(9))]).counts[0, 9] == 5000


def test_the_minimum_is_there_before_the_dirichlet():
    labels = np.arange(2000) % 10
    made = split("dirichlet-minimum", labels, 5, 10, rng(), alpha=0.01, per_class=7)
    assert made.counts.min() == 7
    assert heterogeneity(made.counts)["label_l1"] > 0.8


@pytest.mark.parametrize("alpha", [0.01, 0.16, 10.0])
@pytest.mark.parametrize("lengths", [[5000] * 10, [40, 900, 333, 7, 1]])
def test_doubly_stochastic_clients_are_equal_in_size_and_unequal_in_labels(alpha, lengths):
    labels = np.repeat(np.arange(len(lengths)), lengths)
    made = split("doubly-dirichlet", labels, 8, len(lengths), rng(), alpha=alpha)
    sizes = made.counts.sum(axis=1)
    assert sizes.max() - sizes.min() <= 1
    assert heterogeneity(made.counts)["label_l1"] > (0.5 if alpha < 1 else 0)


@pytest.mark.parametrize("seed", range(5))
def test_whole_numbers_keep_both_margins_and_stay_near(seed):
    rows, columns = np.array([31, 7, 62]), np.array([40, 20, 20, 20])
    fitting = np.outer(rows, columns) / 100
    whole = _whole_table(fitting, rows, columns)
    assert (whole.sum(1).tolist(), whole.sum(0).tolist()) == (rows.tolist(), columns.tolist())
    assert np.abs(whole - fitting).max() < 2
    # Also from a table whose margins are far off.
    whole = _whole_table(rng(seed).random((3, 4)) * 60, rows, columns)
    assert (whole.sum(1).tolist(), whole.sum(0).tolist()) == (rows.tolist(), columns.tolist())
    assert whole.min() >= 0


def test_an_even_mix_at_given_sizes():
    even = split("inner-dirichlet", TEN_BY_5000, 3, 10, rng(), alpha=1e5, sizes=[1000, 9000, 40_000])
    assert even.counts.sum(axis=1).tolist() == [1000, 9000, 40_000]
    assert heterogeneity(even.counts)["label_l1"] < 0.05


def naive_inner_dirichlet(alpha, sizes, stock, generator):
    """FedDyn's loop: a client at random among those with room, a class of its mix until one has rows left."""
    stock, counts = np.array(stock), np.zeros((len(sizes), len(stock)))
    mixes = generator.dirichlet(np.full(len(stock), alpha), len(sizes))
    room = np.array(sizes)
    while room.any():
        client = generator.choice(len(room), p=room / room.sum())
        room[client] -= 1
        c = generator.choice(len(stock), p=mixes[client])
        while not stock[c]:
            c = generator.choice(len(stock), p=mixes[client])
        counts[client, c] += 1
        stock[c] -= 1
    return counts


def test_rows_are_handed_out_as_by_the_naive_loop():
    sizes, stock, alpha, draws = [20, 40, 60], [30, 30, 30, 30], 0.6, 100
    labels = np.repeat(np.arange(4), stock)
    ours = [split("inner-dirichlet", labels, 3, 4, rng(s), alpha=alpha, sizes=sizes).counts for s in range(draws)]
    naive = [naive_inner_dirichlet(alpha, sizes, stock, rng(1000 + s)) for s in range(draws)]
    for name in ("label_l1", "effective_classes"):
        mine, theirs = ([heterogeneity(counts.astype(int))[name] for counts in both] for both in (ours, naive))
        error = math.sqrt((np.var(mine) + np.var(theirs)) / draws)
        assert np.mean(mine) == pytest.approx(np.mean(theirs), abs=4 * error), name
        assert error < 0.06, "too few draws to tell anything"


def test_mixed_skews_sizes_and_labels():
    measures = heterogeneity(split("mixed", TEN_BY_5000, 10, 10, rng(), alpha=0.2, size_alpha=0.5).counts)
    assert measures["size_cv"] > 0.4
    assert measures["label_l1"] > 0.5


def test_equal_sizes_add_up():
    assert equal_sizes(11, 4).tolist() == [3, 3, 3, 2]


def grouped_task(groups):
    task = twin_task(per_class=8)
    return replace(task, train=replace(task.train, groups=torch.tensor(groups)))


def natural(task, clients):
    return divide("natural", registry().load("partitioner", "natural"), task, clients, rng(), "task")


def test_natural_clients_are_the_groups():
    task = grouped_task([7] * 3 + [2] * 11 + [5] * 10)
    made = natural(task, 3)
    assert [part.tolist() for part in made.parts] == [list(range(3, 14)), list(range(14, 24)), [0, 1, 2]]
    # Two clients: the largest group alone, the others together.
    assert [len(part) for part in natural(task, 2).parts] == [11, 13]
    groups = task.train.groups
    assert [groups[part].unique().tolist() for part in natural(task, 2).parts] == [[2], [5, 7]]
    share = task.train.within(made.shares[1])
    assert share.groups.tolist() == [5] * 10


def test_natural_needs_groups_and_enough_of_them():
    with pytest.raises(ConfigError, match="do not say whose a row is"):
        natural(twin_task(per_class=8), 2)
    with pytest.raises(ConfigError, match="use 1 to 3 clients"):
        natural(grouped_task([0] * 8 + [1] * 8 + [2] * 8), 4)
    with pytest.raises(DataError, match="24 rows but groups"):
        grouped_task([0, 1])


def test_a_saved_split_is_used_again_and_refused_elsewhere(tmp_path):
    task = twin_task(per_class=8)
    made = split("dirichlet", task.train.labels.numpy(), 3, 3, rng(), alpha=0.3)
    path = tmp_path / "partition.json"
    path.write_text(made.to_json())
    load = registry().load("partitioner", "file")

    def read(task=task, clients=3, path=path):
        return divide("file", load, task, clients, rng(9), "task", path=str(path))

    again = read()
    assert again.hash == made.hash
    assert again.options == {"path": str(path)}
    with pytest.raises(ConfigError, match="set federation.clients = 3"):
        read(clients=4)
    with pytest.raises(DataError, match="24 rows, the data hold 30"):
        read(task=twin_task(per_class=10))
    with pytest.raises(DataError, match="cannot be read"):
        read(path=tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="needs 'path'"):
        divide("file", load, task, 3, rng(), "task")


def test_every_scheme_is_registered_under_its_name():
    offered = {c.name: c for c in registry().of_kind("partitioner")}
    assert set(SCHEMES) <= set(offered)
    assert all(offered[name].load() is function for name, function in SCHEMES.items())
