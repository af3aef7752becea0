"""Clients with networks of different structures: who can work with them, and who says before a run that he cannot."""

from __future__ import annotations

import pytest
import torch
from playing import DOMAIN, TASK, client, method_of, play, server_context, settings

from ddfed.distill import distill
from ddfed.errors import ConfigError, UnknownNameError
from ddfed.gate import PlainGate
from ddfed.registry import registry
from ddfed.seeds import Streams
from ddfed_federated.methods.base import network_name
from ddfed_federated.parts.tables import Measures, Table
from ddfed_federated.simulate import check_simulate

MIXED = {"networks": ["small", "maps", "wide"]}


def feddm(**parts):
    return settings("feddm", federation=MIXED, distill={"pool": "R", "pool_options": {}, **parts})


def check(s) -> None:
    method_of(s).check(server_context(s))


def test_networks_are_dealt_in_turn():
    s = feddm()
    assert [network_name(s, k) for k in range(4)] == ["small", "maps", "wide", "small"]
    assert network_name(settings(), 2) == "small"


AVERAGING = [
    name for name in registry().names("federated") if registry().get("federated", name).facts["family"] == "averaging"
]
#: What two rounds are too few for.
FEW = {"dynafed": {"begins": 3, "span": 2}}


@pytest.mark.parametrize("method", AVERAGING)
def test_methods_that_average_weights_refuse_networks_that_differ(method):
    with pytest.raises(ConfigError, match=f"'{method}': clients train the global weights.*'maps', 'wide'.*'dense'"):
        check(settings(method, federation=MIXED))
    options = FEW.get(method, {})
    check(settings(method, federation={"networks": ["small", "small"]}, options=options))
    check(settings(method, options=options))


def test_the_list_of_averaging_methods_is_not_empty():
    assert {"fedavg", "fedprox", "fedavgm", "fedadam", "fednova", "scaffold", "moon"} <= set(AVERAGING)


@pytest.mark.parametrize("pool", ["exact", "ball"])
def test_pools_around_the_global_weights_refuse_networks_that_differ(pool):
    options = {"rho": 0.5} if pool == "ball" else {}
    with pytest.raises(ConfigError, match=f"pool '{pool}' judges sets with networks around the global weights"):
        check(feddm(pool=pool, pool_options=options))
    # Nothing judges the controls' items.
    check(settings("random-once", federation=MIXED, distill={"pool": pool, "pool_options": options}))


def test_class_means_of_the_global_models_answers_need_its_structure():
    part = Measures((Table("logits", lambda net, x, context: net(x)),))
    with pytest.raises(ConfigError, match="what the global model answers"):
        part.check(server_context(feddm()))
    part.check(server_context(settings()))


def test_an_unknown_network_of_a_client_is_found_before_a_run():
    with pytest.raises(UnknownNameError, match="smal"):
        check(settings("feddm", federation={"networks": ["smal"]}, distill={"pool": "R", "pool_options": {}}))
    with pytest.raises(UnknownNameError, match="smal"):
        check_simulate(settings("dense", federation={"networks": ["smal"]}, options={"generator": "mlp"}))


def test_an_engine_that_cannot_judge_with_a_clients_network_is_found_before_a_run():
    parts = {"pool": "R", "pool_options": {}, "objective": "statistics", "objective_options": {}}
    check(settings("feddm", federation={"networks": ["norms"]}, distill=parts))
    with pytest.raises(ConfigError, match="network TwinMapNet has none"):
        check(settings("feddm", federation={"networks": ["norms", "maps"]}, distill=parts))


def test_an_averaging_method_may_have_a_network_that_the_engine_could_not_judge_with():
    check_simulate(settings("fedavg", distill={"network": "norms"}))


def test_a_baseline_that_needs_one_structure_is_found_before_a_run():
    s = settings(
        "feddm", federation=MIXED, distill={"pool": "R", "pool_options": {}}, baselines=["random-once", "fedavg"]
    )
    with pytest.raises(ConfigError, match="'fedavg': clients train the global weights.*baselines"):
        check_simulate(s)
    check_simulate(s.model_copy(update={"baselines": ("random-once",)}))


@pytest.mark.parametrize(("who", "network"), [(0, "small"), (1, "maps"), (2, "wide")])
def test_a_client_distils_with_its_own_network(who, network):
    s = feddm()
    release, _ = client(s, 1, who=who)
    parts = s.distill.model_copy(update={"network": network})
    central = distill(PlainGate(TASK.train), DOMAIN, parts, Streams(0).child("client", who))
    assert torch.equal(release.set["x"], central.decoded()[0])
    other = s.distill.model_copy(update={"network": "maps" if network != "maps" else "small"})
    assert not torch.equal(
        release.set["x"], distill(PlainGate(TASK.train), DOMAIN, other, Streams(0).child("client", who)).decoded()[0]
    )


def test_a_federation_of_different_networks_trains_one_global_model_on_their_sets():
    s = feddm(steps=3)
    check_simulate(s)
    state, heard = play(s)
    assert [len(releases) for releases in heard] == [3, 3]
    assert set(state.weights) == set(DOMAIN.network("small", TASK.info).state_dict())
