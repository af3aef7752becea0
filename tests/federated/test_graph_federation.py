"""One graph among clients: who holds which nodes, what is lost between them, and whole federations on graph/digits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ddfed.config import Layer, to_toml
from ddfed.data import Task
from ddfed.domain import Network, check_per_example
from ddfed.errors import ConfigError
from ddfed.runs import RunFolder
from ddfed.testing import TwinDomain, twin_task
from ddfed_federated.measures import kept_ties
from ddfed_federated.partition import Partition, divide
from ddfed_federated.splits.cuts import iid as iid_scheme
from ddfed_graph.graph import Graph, GraphData
from ddfed_graph.shares import dirichlet_nodes, follow, louvain

pytest.importorskip("scipy")
pytest.importorskip("networkx")


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def digits() -> Task:
    pytest.importorskip("torch_geometric")
    pytest.importorskip("sklearn")
    from ddfed_graph.domain import GraphDomain

    return GraphDomain().load("digits", None, {})


SPLITS = {"louvain": louvain, "dirichlet-nodes": dirichlet_nodes}


def made(task: Task, name: str, clients: int, seed: int = 0, **options) -> Partition:
    return divide(name, SPLITS[name], task, clients, rng(seed), "task", **options)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("clients", [1, 5, 13])
def test_every_node_is_held_once_and_the_seed_decides(digits, name, clients):
    one, two = made(digits, name, clients), made(digits, name, clients)
    every = torch.cat(one.shares).sort().values
    assert torch.equal(every, torch.arange(len(digits.train.graph)))
    assert one.hash == two.hash
    assert clients == 1 or made(digits, name, clients, seed=1).hash != one.hash
    # The rows of a client are those whose nodes it holds.
    for nodes, rows in zip(one.shares, one.parts):
        mine = set(nodes.tolist())
        assert [int(v) in mine for v in digits.train.inputs] == [r in set(rows.tolist()) for r in range(200)]


def test_schemes_that_see_labels_deal_the_rows_and_the_other_nodes_follow(digits):
    split = divide("iid", iid_scheme, digits, 5, rng())
    assert [len(part) for part in split.parts] == [40] * 5
    assert torch.equal(torch.cat(split.shares).sort().values, torch.arange(1797))
    for nodes, rows in zip(split.shares, split.parts):
        assert torch.isin(digits.train.inputs[torch.from_numpy(rows)], nodes).all()


def test_rows_that_are_free_are_all_there_is_to_hold():
    task = TwinDomain().load("blobs", None, {})
    split = divide("iid", iid_scheme, task, 4, rng())
    assert split.units is None
    assert task.train.ties(split.shares) == {}
    assert task.train.severed(split.shares) is task.train
    mine = task.train.within(split.shares[1])
    assert torch.equal(mine.inputs, task.train.inputs[torch.from_numpy(split.parts[1])])


@pytest.mark.parametrize("clients", [2, 5, 10])
def test_louvain_clients_keep_to_their_capacity(digits, clients):
    sizes = [len(nodes) for nodes in made(digits, "louvain", clients).shares]
    assert max(sizes) <= np.ceil(1797 / clients + 20)


def test_louvain_finds_the_blocks_of_a_graph_of_blocks():
    blocks = [range(8 * b, 8 * b + 8) for b in range(4)]
    edges = [(i, j) for block in blocks for i in block for j in block if i < j] + [(0, 8), (16, 24)]
    graph = Graph.of(torch.rand(32, 3), torch.tensor(edges).T)
    task = _task(graph, torch.arange(32), torch.arange(32) % 2)
    shares = louvain(task, 4, rng())
    assert sorted(map(tuple, shares)) == [tuple(block) for block in blocks]


def test_communities_larger_than_a_client_are_cut():
    n = 200
    full = torch.combinations(torch.arange(n)).T
    task = _task(Graph.of(torch.rand(n, 2), full), torch.arange(n), torch.arange(n) % 2)
    sizes = [len(nodes) for nodes in louvain(task, 2, rng())]
    assert sum(sizes) == n
    assert max(sizes) <= 120


def _task(graph: Graph, nodes, labels) -> Task:
    from ddfed.data import TaskInfo
    from ddfed.space import Space

    info = TaskInfo("graph", "made", (graph.features.shape[1],), ("a", "b"), Space(low=-np.inf, high=np.inf))
    data = GraphData(nodes, labels, info, graph=graph)
    return Task(info, data, data)


def test_lost_edges_are_counted_as_one_would_by_hand(digits):
    split = made(digits, "louvain", 5)
    owner = {int(node): client for client, nodes in enumerate(split.shares) for node in nodes}
    pairs = {tuple(sorted(pair)) for pair in digits.train.graph.edges.T.tolist()}
    kept = sum(owner[i] == owner[j] for i, j in pairs)
    assert digits.train.ties(split.shares) == {"edges": (kept, len(pairs))}
    assert digits.train.severed(split.shares).graph.links == kept
    assert sum(digits.train.within(nodes).graph.links for nodes in split.shares) == kept
    assert 0 < kept < len(pairs)


def test_a_client_has_its_induced_graph_and_nothing_else(digits):
    split = made(digits, "louvain", 5)
    nodes, rows = split.shares[2], torch.from_numpy(split.parts[2])
    mine = digits.train.within(nodes)
    assert len(mine.graph) == len(nodes)
    assert torch.equal(mine.graph.features, digits.train.graph.features[nodes])
    assert torch.equal(nodes[mine.inputs], digits.train.inputs[rows])
    assert torch.equal(mine.labels, digits.train.labels[rows])
    assert torch.equal(mine.graph.dense(torch.arange(len(nodes))), digits.train.graph.dense(nodes))


def test_nodes_follow_most_of_their_edges(tiny_follow):
    graph, seeds, expected = tiny_follow
    assert [part.tolist() for part in follow(graph, seeds)] == expected


@pytest.fixture(
    params=[
        # Node 2 has two edges to client 0 and one to client 1; 4 is reached in the second ring; 6-7 nobody reaches.
        ([(0, 2), (1, 2), (3, 2), (3, 4), (4, 5), (6, 7)], [[0, 1], [3]], [[0, 1, 2, 6, 7], [3, 4, 5]]),
        # A tie goes to the smaller client.
        ([(0, 2), (1, 2)], [[0, 3], [1]], [[0, 3], [1, 2]]),
    ]
)
def tiny_follow(request):
    edges, seeds, expected = request.param
    n = 1 + max(max(pair) for pair in edges) if len(edges) > 2 else 4
    graph = Graph.of(torch.zeros(n, 1), torch.tensor(edges).T)
    return graph, [torch.tensor(nodes) for nodes in seeds], expected


def test_dirichlet_over_nodes_is_skewed_and_loses_more_edges(digits):
    skewed, even = (made(digits, "dirichlet-nodes", 5, alpha=a) for a in (0.1, 100.0))
    spread = [np.std(split.counts / split.counts.sum(0), axis=0).mean() for split in (skewed, even)]
    assert spread[0] > 3 * spread[1]
    kept = [digits.train.ties(split.shares)["edges"][0] for split in (made(digits, "louvain", 5), even)]
    assert kept[0] > 2 * kept[1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("louvain", {"resolution": 0.0}, "resolution must be above 0"),
        ("louvain", {"alpha": 0.5}, "no option 'alpha'"),
        ("dirichlet-nodes", {"alpha": -1.0}, "alpha must be"),
        ("dirichlet-nodes", {"min_size": 1000}, "fewer clients"),
    ],
)
def test_wrong_options_of_a_split_say_what_is_possible(digits, name, options, message):
    with pytest.raises(ConfigError, match=message):
        made(digits, name, 5, **options)


def test_splits_of_graphs_refuse_other_data_and_too_many_clients(digits):
    with pytest.raises(ConfigError, match="is none. Take dirichlet"):
        made(TwinDomain().load("blobs", None, {}), "louvain", 2)
    with pytest.raises(ConfigError, match="1797 nodes"):
        made(digits, "louvain", 1798)


def test_a_split_of_nodes_comes_back_from_its_file(digits):
    split = made(digits, "louvain", 5)
    again = Partition.from_json(split.to_json())
    assert again.hash == split.hash
    assert all(map(torch.equal, again.shares, split.shares))
    record = json.loads(split.to_json())
    record["units"][0][0] = record["units"][1][0]
    with pytest.raises(Exception, match="held 2 times|held 0 times"):
        Partition.from_json(json.dumps(record))


def test_kept_edges_in_words():
    assert kept_ties({"edges": (4312, 5278)}) == "edges kept 4,312 of 5,278 (81.7 %)"
    assert kept_ties({}) == ""


def test_clipping_per_example_is_refused_where_rows_are_coupled():
    pytest.importorskip("torch_geometric")
    from ddfed_graph.domain import GraphDomain

    domain = GraphDomain()
    nodes, graphs = (domain.load(name, None, {}).info for name in ("digits", "digit-graphs"))
    with pytest.raises(ConfigError, match="K hops away.*class sums of propagated features"):
        check_per_example(domain, nodes, Network())
    check_per_example(domain, graphs, Network())  # whole graphs are records of their own
    blobs = twin_task().info
    check_per_example(TwinDomain(), blobs, Network())
    mixing = Network()
    mixing.mixes_rows = True
    with pytest.raises(ConfigError, match="mixes rows"):
        check_per_example(TwinDomain(), blobs, mixing)


# --- whole runs ---------------------------------------------------------------------------------------------------


def settings(**sections):
    from ddfed_federated.settings import resolve_simulate

    base = {
        "baselines": ["random-once", "fedavg"],
        "data": {"domain": "graph"},
        "distill": {"steps": 3, "network": "gcn-w16"},
        "server": {"epochs": 5},
        "local": {"epochs": 2},
        "federation": {"clients": 5, "rounds": 2},
    }
    return resolve_simulate([Layer("test", base), Layer("case", sections)]).settings


@pytest.fixture
def run(tmp_path):
    from ddfed_federated.simulate import simulate

    def go(s, name="run"):
        folder = RunFolder.create(tmp_path, name, to_toml(s))
        with folder:
            return simulate(s, folder), folder

    return go


def numbers(summary) -> list:
    timed = ("seconds", "client_seconds")
    rows = [row for method in summary["methods"].values() for row in method["rows"]]
    return [
        *({k: v for k, v in row.items() if k not in timed} for row in rows),
        *(reference["accuracies"] for reference in summary["references"].values()),
    ]


def test_a_federation_on_a_graph_gives_the_same_numbers_twice(digits, run):
    s = settings()
    assert (s.federation.partition, s.distill.protocol) == ("louvain", "E-gcn")
    one, folder = run(s)
    two, _ = run(s)
    assert numbers(one) == numbers(two)
    assert one["artifact"] == two["artifact"]
    assert list(one["references"]) == ["local", "central", "central-cut"]
    assert len(one["references"]["local"]["accuracies"]) == 5
    kept, every = one["partition"]["ties"]["edges"]
    assert 0 < kept < every == digits.train.graph.links
    assert sum(one["partition"]["units"]) == 1797
    card = json.loads((folder.path / "card.json").read_text())
    assert card["provenance"]["federated"]["kept"] == kept_ties({"edges": (kept, every)})


def test_a_pool_of_workers_gives_the_same_numbers(digits, run):
    plain, pooled = (run(settings(federation={"workers": n}, references=[]), f"w{n}")[0] for n in (0, 2))
    assert numbers(plain) == numbers(pooled)


def test_reports_say_what_was_lost(digits, run):
    from ddfed_federated.report import federated_page, method_rows
    from ddfed_graph.domain import GraphDomain

    summary, folder = run(settings(baselines=[]))
    federated_page(summary, GraphDomain(), None).save(folder.path / "report.html")
    words = kept_ties(summary["partition"]["ties"])
    assert words in (folder.path / "report.html").read_text()
    assert [row[0] for row in method_rows(summary)] == ["feddm", "local", "central", "central-cut"]


def test_a_label_split_of_a_graph_and_clients_without_records(digits, run):
    summary, _ = run(
        settings(federation={"partition": "dirichlet", "partition_options": {"alpha": 0.1}}, references=[])
    )
    assert summary["methods"]["feddm"]["rows"][-1]["releases"] == 5
    # 60 clients of 30 nodes: some hold no labelled node, and say so instead of failing.
    many = settings(federation={"clients": 60, "rounds": 1}, baselines=["fedavg"], references=["local"])
    summary, _ = run(many, "many")
    counts = np.array(summary["partition"]["counts"])
    assert (counts.sum(1) == 0).any()
    assert summary["methods"]["feddm"]["rows"][0]["lost"] == ()
    assert len(summary["references"]["local"]["accuracies"]) == (counts.sum(1) > 0).sum()


def test_broken_items_of_a_client_are_refused(digits, run):
    summary, _ = run(settings(federation={"faults": ["1:1:shape", "2:2:nan"]}, baselines=[], references=[]))
    first, second = summary["methods"]["feddm"]["rows"]
    assert "the task has floats of (64,)" in first["lost"][0]
    assert "not finite" in second["lost"][0]


def test_references_without_meaning_are_refused(run):
    from ddfed_federated.settings import resolve_simulate

    s = resolve_simulate([Layer("test", {"references": ["central-cut"], "data": {"train_limit": 300}})]).settings
    with pytest.raises(ConfigError, match="'central' is the same"):
        run(s)
