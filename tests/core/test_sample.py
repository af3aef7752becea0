"""Samplers narrow a query before it reaches the gate."""

from __future__ import annotations

import pytest
import torch

from ddfed.errors import ConfigError
from ddfed.gate import PlainGate, Query
from ddfed.sample import KMeansSampler, UniformSampler
from ddfed.seeds import Streams, isolated
from ddfed.testing import TwinDomain, twin_task

TASK = twin_task()
GATE = PlainGate(TASK.train)


def network(seed: int = 0):
    with isolated(seed):
        return TwinDomain().network("small", TASK.info)


def test_uniform_changes_nothing():
    query = Query("q", (0, 1), rows=4)
    assert UniformSampler().narrow(query, GATE, network(), 0, Streams(0)) is query


def test_kmeans_shows_one_row_of_each_cluster_until_it_clusters_anew():
    sampler, query = KMeansSampler(every=5), Query("q", (2, 0), rows=6)
    first = sampler.narrow(query, GATE, network(), 0, Streams(0)).among
    again = sampler.narrow(query, GATE, network(1), 4, Streams(0)).among
    later = sampler.narrow(query, GATE, network(1), 5, Streams(0)).among
    assert first is not None and again is not None and later is not None
    assert torch.bincount(TASK.train.labels[first], minlength=3).tolist() == [6, 0, 6]
    assert torch.equal(first, again) and not torch.equal(first, later)


def test_kmeans_rows_lie_nearer_to_their_class_than_random_ones_of_the_same_number():
    """Every row has a representative at hand: the mean distance to the nearest shown row is smaller than by chance."""
    net, query = network(), Query("q", (0,), rows=8)
    rows = KMeansSampler().narrow(query, GATE, net, 0, Streams(0)).among
    members = TASK.train.class_index[0]
    features = net.embed(TASK.train.batch(members).inputs).detach()

    def cover(chosen: torch.Tensor) -> float:
        return float(torch.cdist(features, net.embed(TASK.train.batch(chosen).inputs).detach()).min(1).values.mean())

    generator = torch.Generator().manual_seed(0)
    chance = [cover(members[torch.randperm(len(members), generator=generator)[:8]]) for _ in range(20)]
    assert rows is not None and cover(rows) < min(chance)


def test_a_resumed_sampler_shows_what_it_showed():
    sampler, query = KMeansSampler(every=5), Query("q", (0, 1), rows=3)
    shown = sampler.narrow(query, GATE, network(), 0, Streams(0)).among
    again = KMeansSampler(every=5)
    again.load(sampler.state())
    assert shown is not None
    assert torch.equal(again.narrow(query, GATE, network(3), 3, Streams(0)).among, shown)


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match="no option 'evry'"):
        KMeansSampler(evry=3)
    with pytest.raises(ConfigError, match="at least 1"):
        KMeansSampler(every=0)


def test_a_clustering_starts_from_the_one_before(monkeypatch: pytest.MonkeyPatch):
    sampler, query = KMeansSampler(every=5), Query("q", (0,), rows=8)
    sampler.narrow(query, GATE, network(), 0, Streams(0))
    monkeypatch.setattr("ddfed.sample.choose_kmeans", lambda *given: pytest.fail("started from nothing"))
    rows = sampler.narrow(query, GATE, network(1), 5, Streams(0)).among
    resumed = KMeansSampler(every=5)
    resumed.load(sampler.state())
    assert rows is not None and len(rows.unique()) == 8
    later = sampler.narrow(query, GATE, network(2), 10, Streams(0)).among
    assert later is not None and torch.equal(later, resumed.narrow(query, GATE, network(2), 10, Streams(0)).among)


def test_a_clustering_from_the_one_before_covers_the_class_as_well_as_a_new_one():
    query, net = Query("q", (0,), rows=8), network(3)
    features = net.embed(TASK.train.batch(TASK.train.class_index[0]).inputs).detach()

    def cover(sampler: KMeansSampler) -> float:
        rows = sampler.narrow(query, GATE, net, 5, Streams(0)).among
        assert rows is not None
        return float(torch.cdist(features, net.embed(TASK.train.batch(rows).inputs).detach()).min(1).values.mean())

    warm = KMeansSampler(every=5)
    warm.narrow(query, GATE, network(), 0, Streams(0))
    assert cover(warm) < 1.1 * cover(KMeansSampler(every=5))
