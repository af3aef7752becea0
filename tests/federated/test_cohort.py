"""Clients trained together end where each ends alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ddfed.config import Layer, to_toml
from ddfed.errors import ConfigError
from ddfed.runs import RunFolder
from ddfed.seeds import Streams
from ddfed_federated import cohort
from ddfed_federated.cohort import Member, fits, train_cohort
from ddfed_federated.parts.local import train_on_records
from ddfed_federated.rounds import RoundRow
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import simulate
from ddfed_federated.worker import load_share, load_task


def settings(**sections):
    base = {
        "method": "fedavg",
        "baselines": [],
        "data": {"train_limit": 200, "test_limit": 100},
        "distill": {"network": "convnet-d2-w8"},
        "local": {"epochs": 2, "batch": 16, "lr": 0.03},
        "federation": {"clients": 8, "rounds": 2, "partition": "dirichlet", "partition_options": {"alpha": 0.3}},
    }
    return resolve_simulate([Layer("test", base), Layer("case", sections)]).settings


def network(name="convnet-d2-w8"):
    domain, task = load_task(settings())
    torch.manual_seed(0)
    return domain.network(name, task.info)


@pytest.mark.parametrize(
    "local",
    [{}, {"momentum": 0.0}, {"weight_decay": 0.05}, {"batch": 0}, {"batch": 3}],
    ids=["plain", "no momentum", "decay", "whole", "small batches"],
)
@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_a_cohort_ends_where_each_client_ends_alone(local, mu):
    s = settings(local={**local, "proximal_mu": mu})
    shares = [load_share(s, client) for client in range(8)]
    assert len({len(share) for share in shares}) > 4  # of unequal sizes, so of unequal steps too
    streams = [Streams(0).child("client", k) for k in range(8)]
    net = network()
    start = [p.detach().clone() for p in net.parameters()]
    found = train_cohort(net, [Member(k, shares[k], streams[k]) for k in range(8)], s.local, mu)
    assert all(torch.equal(p, a) for p, a in zip(net.parameters(), start))
    for k in range(8):
        alone = network()

        def pull(net=alone):
            return 0.5 * mu * sum((p - a).square().sum() for p, a in zip(net.parameters(), start))

        train_on_records(alone, shares[k], s.local, streams[k], torch.device("cpu"), pull=pull)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found[k][name], value, atol=1e-5, rtol=0)
        assert not torch.equal(found[k][name], start[-1])


def test_only_networks_that_draw_and_count_nothing_fit():
    assert fits(network(), "sgd")
    assert not fits(network(), "adam")
    assert not fits(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), "sgd")
    assert not fits(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "sgd")


@pytest.fixture
def rows(tmp_path):
    def go(s):
        with RunFolder.create(tmp_path, "run", to_toml(s)) as folder:
            summary = simulate(s, folder)
        return {k: [RoundRow.from_json(r) for r in m["rows"]] for k, m in summary["methods"].items()}

    return go


def test_a_run_in_cohorts_is_the_same_run(rows, monkeypatch):
    trained = []
    monkeypatch.setattr(cohort, "_ROWS", 40)
    real = cohort.train_cohort
    monkeypatch.setattr(cohort, "train_cohort", lambda net, m, *a: trained.append(len(m)) or real(net, m, *a))
    # Every method that trains locally, partly asked, one client lost; SCAFFOLD corrects each step and goes alone.
    federation = {"participation": 0.75, "faults": ["1:3:crash", "2:*:flip"], "rounds": 2}
    beside = ["fedprox", "fedavgm", "fednova", "scaffold"]
    alone = rows(settings(baselines=beside, federation=federation))
    assert not trained
    together = rows(settings(baselines=beside, federation={**federation, "batched": True}))
    assert max(trained) > 1
    assert sum(trained) == 4 * 2 * 6
    for method, wanted in alone.items():
        for one, other in zip(wanted, together[method], strict=True):
            assert one.accuracy == pytest.approx(other.accuracy, abs=0.011)
            assert (one.releases, one.lost, one.bytes_up["weights"]) == (
                other.releases, other.lost, other.bytes_up["weights"],
            )  # fmt: skip


def test_cohorts_need_clients_that_share_a_process():
    with pytest.raises(ConfigError, match="federation.batched to false"):
        settings(federation={"batched": True, "workers": 2})
