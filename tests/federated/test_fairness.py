"""Accuracy for each client, how far clients are apart, and what it took to reach an accuracy."""

from __future__ import annotations

import html
from dataclasses import replace

import numpy as np
import pytest
import torch
from playing import small_run

from ddfed.config import to_toml
from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.evaluate import accuracy
from ddfed.runs import RunFolder
from ddfed.testing import twin_task
from ddfed_federated.efficiency import to_target, to_targets
from ddfed_federated.fairness import BY_GROUPS, BY_LABELS, class_accuracies, per_client, spread
from ddfed_federated.partition import Partition
from ddfed_federated.report import client_line, federated_page
from ddfed_federated.simulate import simulate
from ddfed_federated.worker import load_partition, load_task


class Guess(Network):
    """Says what it is told to, from the mean of a row's first channel: right for some rows, wrong for others."""

    def __init__(self, width=32, classes=3):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.head = torch.nn.Linear(width, classes)

    def embed(self, x):
        return x.flatten(1)


@pytest.fixture(scope="module")
def task():
    return twin_task(per_class=20)


def dealt(counts, task):
    """A split with these rows per (client, class)."""
    counts = np.array(counts)
    stock = [rows.tolist() for rows in task.train.class_index]
    parts = [np.sort([stock[c].pop() for c in range(3) for _ in range(row[c])]).astype(np.int64) for row in counts]
    return Partition(parts, counts, "by hand")


def test_a_clients_accuracy_is_that_of_test_rows_drawn_by_its_labels(task):
    net, made = Guess(), dealt([[10, 0, 10], [0, 20, 0], [10, 0, 10]], task)
    found = per_client(net, task, made)
    each = [accuracy(net, task.test.subset(rows)) for rows in task.test.class_index]
    assert class_accuracies(net, task.test).tolist() == each
    assert len(set(each)) > 1
    assert found["accuracies"] == [
        pytest.approx(a) for a in ((each[0] + each[2]) / 2, each[1], (each[0] + each[2]) / 2)
    ]
    assert found["basis"] == BY_LABELS
    # By rows it is the accuracy on the whole split, whose classes are as frequent as the training split's.
    assert found["weighted"] == pytest.approx(accuracy(net, task.test))


def test_classes_that_are_not_tested_do_not_count(task):
    net, made = Guess(), dealt([[15, 5, 0], [0, 15, 0], [5, 0, 20], [0, 0, 0]], task)
    lacking = replace(task, test=task.test.subset(torch.nonzero(task.test.labels != 1).flatten()))
    found = per_client(net, lacking, made)
    zero = accuracy(net, task.test.subset(task.test.class_index[0]))
    assert found["accuracies"][0] == pytest.approx(zero)
    assert found["accuracies"][1] is None and found["accuracies"][3] is None
    assert found["min"] == min(a for a in found["accuracies"] if a is not None)


def test_a_client_is_judged_on_rows_as_it_sees_them(task):
    net, made = Guess(), dealt([[10, 0, 10], [10, 20, 10]], task)
    asked = []

    def seeing(client, data):
        asked.append((client, data.labels.unique().tolist()))
        return data.seen(lambda rows: 1 - rows) if client else data

    found = per_client(net, task, made, seeing)
    assert asked == [(0, [0, 2]), (1, [0, 1, 2])]
    plain = per_client(net, task, made)["accuracies"]
    assert found["accuracies"][0] == pytest.approx(plain[0])
    turned = class_accuracies(net, task.test.seen(lambda rows: 1 - rows))
    assert found["accuracies"][1] == pytest.approx(turned @ [0.25, 0.5, 0.25])
    assert found["accuracies"][1] != plain[1]


def test_natural_clients_are_judged_on_rows_of_their_groups(task):
    net = Guess()
    train, test = torch.arange(60) % 4, torch.arange(60) % 5
    grouped = replace(task, train=replace(task.train, groups=train), test=replace(task.test, groups=test))
    parts = [np.flatnonzero(np.isin(train, own)) for own in ([0, 3], [1, 2])]
    counts = np.stack([np.bincount(task.train.labels[part], minlength=3) for part in parts])
    made = Partition(parts, counts, "natural")
    found = per_client(net, grouped, made)
    assert found["basis"] == BY_GROUPS
    wanted = [accuracy(net, task.test.subset(np.flatnonzero(np.isin(test, own)))) for own in ([0, 3], [1, 2])]
    assert found["accuracies"] == wanted
    # Another split of the same data, or a group without test rows, goes by labels.
    assert per_client(net, grouped, replace(made, scheme="iid"))["basis"] == BY_LABELS
    unseen = replace(grouped, test=replace(task.test, groups=torch.zeros(60, dtype=torch.int64)))
    assert per_client(net, unseen, made)["basis"] == BY_LABELS


def test_spread_of_eleven_clients():
    accuracies = [k / 10 for k in range(11)]
    found = spread([*accuracies, None], [1] * 10 + [10, 5])
    assert found["mean"] == pytest.approx(0.5)
    assert found["weighted"] == pytest.approx((4.5 + 10) / 20)
    assert found["sd"] == pytest.approx(np.sqrt(0.1))
    assert [found[k] for k in ("min", "p10", "p50", "p90")] == [pytest.approx(v) for v in (0, 0.1, 0.5, 0.9)]
    assert found["worst_tenth"] == pytest.approx(0.05)  # two of eleven
    assert spread([0.3], [4])["worst_tenth"] == 0.3
    with pytest.raises(ConfigError, match="no client has an accuracy"):
        spread([None], [0])
    with pytest.raises(ConfigError, match="1 accuracies but 2 sizes"):
        spread([0.5], [1, 2])


def row(number, accuracy, up, down, seconds=2.0, client=1.0, asked=2):
    return {
        "round": number,
        "accuracy": accuracy,
        "asked": asked,
        "bytes_up": {"weights": up, "control": 0},
        "bytes_down": {"weights": down},
        "seconds": seconds,
        "client_seconds": (client, 2 * client),
    }


def test_what_it_took_is_summed_up_to_the_first_round_that_got_there():
    rows = [row(1, 0.2, 1_000_000, 0), row(2, 0.6, 3_000_000, 20_000_000), row(3, 0.5, 1, 1), row(4, 0.9, 1, 1)]
    assert to_target(rows, 0.55) == {
        "rounds": 2,
        "bytes": 24_000_000,
        "seconds": 4,
        # Two clients: 0.5 and 1.5 s up at 1 MB/s, 2 s down at 5 MB/s, 1 s of work in each round.
        "link_seconds": 6,
    }
    assert to_target(rows, 0.95) is None
    assert to_target(rows, 0.2)["rounds"] == 1
    # Nobody was asked in a round: nothing was sent.
    assert to_target([row(1, 0.5, 0, 0, asked=0)], 0.5)["link_seconds"] == 1


def test_the_lowest_target_is_of_the_best_method():
    methods = {"a": [row(1, 0.8, 1, 1), row(2, 0.5, 1, 1)], "b": [row(1, 0.3, 1, 1), row(2, 0.6, 1, 1)]}
    found = to_targets(methods, [0.7])
    assert [t["accuracy"] for t in found] == [pytest.approx(0.54), 0.7]
    assert [{k: m and m["rounds"] for k, m in t["methods"].items()} for t in found] == [
        {"a": 1, "b": 2},
        {"a": 1, "b": None},
    ]


def settings(**sections):
    return small_run({"baselines": ["fedavg"], "targets": [0.999]}, **sections)


def test_a_run_tells_who_is_served_how_well(run):
    s = settings(federation={"skew": "blur"})
    summary, folder = run(s)
    domain, task = load_task(s)
    for method in summary["methods"].values():
        clients = method["clients"]
        assert clients["basis"] == BY_LABELS and len(clients["accuracies"]) == 4
        assert clients["min"] <= clients["p50"] <= clients["p90"] <= 1
    assert [t["accuracy"] for t in summary["targets"]][-1] == 0.999
    assert summary["targets"][-1]["methods"] == {"feddm": None, "fedavg": None}
    measures, sets = summary["partition"]["measures"], summary["partition"]["sets"]
    assert set(measures) - set(sets) == {"gradient_dissimilarity"}
    assert measures["gradient_dissimilarity"] > 1
    page = federated_page(summary, domain, None).save(folder.path / "report.html").read_text()
    for said in ("worst tenth %", "not reached", "blur(sigma=1.0)", "gradient dissimilarity", "their sets", BY_LABELS):
        assert html.escape(said) in page
    assert client_line(summary).startswith("Worst tenth of the clients: feddm ")
    saved = Partition.from_json((folder.path / "partition.json").read_text())
    assert saved.hash == load_partition(s).hash == summary["partition"]["hash"]


def test_a_split_of_one_run_is_that_of_another(run):
    first, folder = run(settings(baselines=[]), "first")
    options = {"partition": "file", "partition_options": {"path": str(folder.path / "partition.json")}}
    again, _ = run(settings(baselines=[], run={"seed": 1}, federation=options), "again")
    assert again["partition"]["hash"] == first["partition"]["hash"]
    assert again["artifact"] != first["artifact"]


def test_a_resumed_run_keeps_what_it_measured(run, tmp_path):
    from ddfed_federated.rounds import Progressing

    whole, _ = run(settings(), "whole")

    class Stop(Exception):
        pass

    def stop(row):
        if row.method == "fedavg":
            raise Stop

    s = settings()
    folder = RunFolder.create(tmp_path, "cut", to_toml(s))
    with folder, pytest.raises(Stop):
        simulate(s, folder, Progressing(finished=stop))
    with RunFolder.open(folder.path, writable=True) as again:
        resumed = simulate(s, again, resume=True)
    for name in ("feddm", "fedavg"):
        assert resumed["methods"][name]["clients"] == whole["methods"][name]["clients"]


def test_wrong_targets_are_refused():
    with pytest.raises(ConfigError, match="targets"):
        settings(targets=[90])
