"""Drawn neighbours: who is drawn, how often, and what sums of them are on average."""

from __future__ import annotations

import torch

from ddfed_graph.graph import Graph, Nodes
from ddfed_graph.sampling import entries, generator_for, sample
from ddfed_graph.structure import _block, receptive_field


def star() -> Graph:
    """Node 0 with 12 neighbours, three of which are linked; node 13 is alone."""
    edges = torch.cat([torch.stack([torch.zeros(12).long(), torch.arange(1, 13)]), torch.tensor([[1, 2], [2, 3]])], 1)
    weights = torch.linspace(0.5, 2, edges.shape[1])
    return Graph.of(torch.randn(14, 3, generator=torch.Generator().manual_seed(0)), edges, weights)


def test_all_edges_of_some_nodes():
    graph, nodes = star(), torch.tensor([2, 13, 0, 2])
    owners, found = entries(graph, nodes)
    assert owners.tolist() == [0] * 3 + [2] * 12 + [3] * 3
    assert torch.equal(graph.edges[0][found], nodes[owners])
    assert graph.edges[1][found].tolist() == [0, 1, 3, *range(1, 13), 0, 1, 3]


def test_a_draw_is_without_replacement_and_takes_all_where_there_are_no_more():
    graph, nodes = star(), torch.tensor([0, 2, 13, 5])
    for seed in range(20):
        owners, found, factors = sample(graph, nodes, 3, torch.Generator().manual_seed(seed))
        assert torch.bincount(owners, minlength=4).tolist() == [3, 3, 0, 1]
        assert len(found.unique()) == len(found) and torch.equal(graph.edges[0][found], nodes[owners])
        assert factors.tolist() == [4.0] * 3 + [1.0] * 4


def test_every_neighbour_is_drawn_equally_often():
    graph, generator = star(), torch.Generator().manual_seed(0)
    drawn = torch.cat([sample(graph, torch.tensor([0]), 3, generator)[1] for _ in range(4000)])
    counts = torch.bincount(graph.edges[1][drawn], minlength=14)[1:13] / 4000
    # 3 of 12; the deviation of a share from 4,000 draws is 0.007.
    assert float((counts - 0.25).abs().max()) < 0.03


def test_sums_over_drawn_neighbours_have_the_true_ones_as_expectations():
    graph, nodes, generator = star(), torch.arange(14), torch.Generator().manual_seed(1)
    whole = _block(graph, nodes, None, None)[0]
    drawn = [_block(graph, nodes, 4, generator)[0] for _ in range(3000)]
    for step in ("gcn", "mean", "laplacian"):
        mean = torch.stack([getattr(block, step)(graph.features) for block in drawn]).mean(0)
        torch.testing.assert_close(mean, getattr(whole, step)(graph.features), atol=0.05, rtol=0)


def test_a_field_grows_by_its_fanouts_and_the_last_one_holds_on():
    generator = torch.Generator().manual_seed(0)
    graph = Graph.of(torch.ones(2000, 1), torch.randint(2000, (2, 20000), generator=generator))
    found = receptive_field(Nodes(graph, torch.arange(4), (3, 2)), 3)
    counts = [len(hop.rows) for hop in reversed(found.hops)]
    assert counts[0] == 12 and counts[1] == 2 * len(found.hops[1].after) and counts[2] == 2 * len(found.hops[0].after)
    assert len(found.hops[1].after) <= 16 and found.nodes is not None


def test_the_seed_hangs_on_the_nodes():
    one, two, three = (torch.rand(3, generator=generator_for(torch.tensor(ids))) for ids in ([1, 2], [1, 2], [2, 1]))
    assert torch.equal(one, two) and not torch.equal(one, three)
