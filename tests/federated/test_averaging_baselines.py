"""SCAFFOLD, FedNova and MOON: each against its formula written out, and against FedAvg where they must agree."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from playing import DOMAIN, TASK, client, method_of, play, server, server_context, settings, shares

from ddfed.config import Layer, to_toml
from ddfed.domain import Network
from ddfed.errors import ConfigError, FederationError
from ddfed.federation import Broadcast, Release
from ddfed.runs import RunFolder
from ddfed_federated.parts.contrast import Compared, contrast
from ddfed_federated.parts.local import gradient_mass
from ddfed_federated.rounds import Progressing
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import check_simulate, simulate


def close(one, two, atol=1e-6) -> bool:
    return all(torch.allclose(one[k], two[k], atol=atol) for k in one)


def noisy(weights, seed, size=0.1):
    generator = torch.Generator().manual_seed(seed)
    return {
        k: v + size * torch.randn(v.shape, generator=generator) if v.is_floating_point() else v + seed
        for k, v in weights.items()
    }


# --- steps and their weight ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_mass_of_gradients_is_what_pytorchs_sgd_makes_of_them(steps, momentum):
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        weight.sum().backward()
        optimizer.step()
    assert gradient_mass(steps, momentum) == pytest.approx(-float(weight.detach()), rel=1e-5)


# --- FedNova ---------------------------------------------------------------------------------------------------------


def _answers(s, rows):
    weights = server_context(s).network().state_dict()
    return weights, [
        Release(k, 1, {"weights": noisy(weights, k + 1)}, examples=n, phase="weights") for k, n in enumerate(rows)
    ]


@pytest.mark.parametrize("network", ["small", "norms"])
def test_fednova_with_equal_steps_is_fedavg(network):
    """33 to 64 rows make two steps of 32: the shares differ, the steps do not."""
    common = {"local": {"batch": 32}, "distill": {"network": network}}
    nova, average = settings("fednova", **common), settings("fedavg", **common)
    _, releases = _answers(nova, [33, 40, 64])
    one = server(nova, method_of(nova).begin(server_context(nova)), releases)
    two = server(average, method_of(average).begin(server_context(average)), releases)
    assert close(one.weights, two.weights)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_is_its_formula_written_out(momentum):
    s = settings("fednova", local={"batch": 16, "epochs": 3, "momentum": momentum})
    rows = [5, 40, 100]
    weights, releases = _answers(s, rows)
    merged = server(s, method_of(s).begin(server_context(s)), releases).weights
    mass = []
    for n in rows:
        steps, velocity, way = 3 * math.ceil(n / 16), 0.0, 0.0
        for _ in range(steps):
            velocity = momentum * velocity + 1
            way += velocity
        mass.append(way)
    effective = sum(n / sum(rows) * a for n, a in zip(rows, mass))
    for name, before in weights.items():
        mean = torch.zeros_like(before)
        for n, a, release in zip(rows, mass, releases):
            mean += n / sum(rows) * (before - release.weights[name]) / a
        assert torch.allclose(merged[name], before - effective * mean, atol=1e-5)


def test_fednova_stays_where_the_objective_is_stationary_and_fedavg_drifts():
    """Constant gradients that cancel by records, -3 g of 10 rows and g of 30: one step against three."""
    rows, pulls = [10, 30], [-3.0, 1.0]
    common = {"local": {"batch": 10, "epochs": 1, "momentum": 0.0}}
    found = {}
    for method in ("fednova", "fedavg"):
        s = settings(method, **common)
        weights = server_context(s).network().state_dict()
        releases = [
            Release(k, 1, {"weights": {name: w - 0.1 * pull * n / 10 for name, w in weights.items()}}, examples=n)
            for k, (n, pull) in enumerate(zip(rows, pulls))
        ]
        found[method] = server(s, method_of(s).begin(server_context(s)), releases).weights
    assert close(found["fednova"], weights)
    # (1/4) 0.3 - (3/4) 0.3
    assert close(found["fedavg"], {name: w - 0.15 for name, w in weights.items()})


# --- SCAFFOLD --------------------------------------------------------------------------------------------------------


def test_scaffold_with_zero_control_and_one_client_is_fedavg():
    everything = [torch.arange(len(TASK.train))]
    one, heard = play(settings("scaffold"), everything, rounds=1)
    two, _ = play(settings("fedavg"), everything, rounds=1)
    assert close(one.weights, two.weights)
    assert set(heard[0][0].payload) == {"weights", "statistics"}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_is_its_algorithm_written_out(momentum):
    """Local steps with -eta (g - c_k + c) by hand; the new c_k is the mean gradient, weighted as momentum weighs."""
    s = settings("scaffold", local={"batch": 0, "epochs": 4, "lr": 0.05, "momentum": momentum})
    net = server_context(s).network()
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    control, own = noisy({k: 0 * v for k, v in weights.items()}, 1), noisy({k: 0 * v for k, v in weights.items()}, 2)
    release, state = client(s, 1, state=own, broadcast=Broadcast(1, weights, control, phase="weights"))

    rows = TASK.train.all()
    velocity = {k: torch.zeros_like(v) for k, v in weights.items()}
    gradients, kept = [], {k: v.clone() for k, v in weights.items()}
    for _ in range(4):
        net.load_state_dict(kept)
        loss = F.cross_entropy(net(rows.inputs), rows.classes)
        gradient = dict(zip(kept, torch.autograd.grad(loss, list(net.parameters()))))
        gradients.append(gradient)
        for k in kept:
            velocity[k] = momentum * velocity[k] + gradient[k] - own[k] + control[k]
            kept[k] = kept[k] - 0.05 * velocity[k]
    assert close(release.weights, kept, 1e-5)
    influence = [sum(momentum**j for j in range(4 - i)) for i in range(4)]
    for k in kept:
        mean = sum(a * g[k] for a, g in zip(influence, gradients)) / sum(influence)
        assert torch.allclose(state[k], mean, atol=1e-4)
        assert torch.allclose(release.statistics[k], mean - own[k], atol=1e-4)


@pytest.mark.parametrize("weighting", ["uniform", "count"])
def test_scaffolds_server_is_its_formula_written_out(weighting):
    s = settings(
        "scaffold",
        federation={"clients": 5},
        options={"server_lr": 0.5, "weighting": weighting},
        distill={"network": "norms"},
    )
    context = server_context(s)
    state = method_of(s).begin(context)
    control = noisy(state.memory["control"], 9)
    state = state.having(control=control)
    rows = [10, 30]
    releases = [
        Release(k, 1, {"weights": noisy(state.weights, k + 1), "statistics": noisy(control, k + 5)}, examples=n)
        for k, n in enumerate(rows)
    ]
    after = server(s, state, releases)
    p = [0.25, 0.75] if weighting == "count" else [0.5, 0.5]
    for name, before in state.weights.items():
        a, b = (r.weights[name] for r in releases)
        if name in control:
            expected = before + 0.5 * (p[0] * (a - before) + p[1] * (b - before))
            changes = [r.statistics[name] for r in releases]
            # m / K times the mean over m = 2 of K = 5 clients
            assert torch.allclose(after.memory["control"][name], control[name] + 2 / 5 * sum(changes) / 2, atol=1e-6)
        else:
            expected = (0.25 * a + 0.75 * b).to(before.dtype)
        assert torch.allclose(after.weights[name], expected, atol=1e-6), name


def test_identical_clients_have_no_drift_and_scaffold_is_fedavg():
    everything = [torch.arange(len(TASK.train))] * 3
    common = {"local": {"batch": 0}, "federation": {"clients": 3}}
    one, _ = play(settings("scaffold", **common), everything, rounds=3)
    two, _ = play(settings("fedavg", **common), everything, rounds=3)
    assert close(one.weights, two.weights, 1e-5)


def test_the_servers_control_is_the_mean_of_the_clients_once_all_have_answered():
    s = settings("scaffold", federation={"clients": 3}, local={"lr": 0.05})
    state, heard = play(s, shares(3), rounds=3)
    for name, control in state.memory["control"].items():
        # What each client remembers is the sum of what it sent.
        own = [sum(releases[k].statistics[name] for releases in heard) for k in range(3)]
        assert torch.allclose(control, sum(own) / 3, atol=1e-5)


def test_scaffold_turns_clients_of_one_class_towards_all():
    """With a class each, ways are nearer to one another in the second round than FedAvg's are."""
    parts = [TASK.train.class_index[c] for c in range(3)]
    common = {"federation": {"clients": 3}, "local": {"batch": 0, "epochs": 5, "lr": 0.05, "momentum": 0.0}}

    def spread(method: str) -> float:
        _, heard = play(settings(method, **common), parts, rounds=2)
        flat = torch.stack([torch.cat([v.flatten() for v in r.weights.values()]) for r in heard[-1]])
        return float((flat - flat.mean(0)).norm())

    assert spread("scaffold") < 0.5 * spread("fedavg")


# --- MOON ------------------------------------------------------------------------------------------------------------


def test_moon_without_its_term_is_fedavg():
    one, _ = play(settings("moon", options={"mu": 0.0}), rounds=2)
    two, _ = play(settings("fedavg"), rounds=2)
    assert close(one.weights, two.weights, 1e-7)


def test_moons_term_says_nothing_in_the_first_round_and_something_in_the_second():
    s, plain = settings("moon", local={"lr": 0.1}), settings("fedavg", local={"lr": 0.1})
    weights = server_context(s).network().state_dict()
    first, state = client(s, 1, weights=weights)
    assert close(first.weights, client(plain, 1, weights=weights)[0].weights)
    assert close(state, first.weights, 0)
    second, _ = client(s, 2, state=state, weights=weights)
    assert not close(second.weights, client(plain, 2, weights=weights)[0].weights, 1e-5)


def test_moons_features_move_from_the_last_model_to_the_global_one():
    """Without the cross-entropy's pull (mu is large), the term itself must fall."""
    s = settings("moon", options={"mu": 100.0}, local={"lr": 0.001, "epochs": 5, "momentum": 0.0})
    context = server_context(s)
    near, far = context.network(), context.network()
    far.load_state_dict(noisy(near.state_dict(), 3, 0.3))
    release, _ = client(s, 2, state=far.state_dict(), weights=near.state_dict())
    x = TASK.train.all().inputs

    @torch.no_grad()
    def term(weights) -> float:
        shown = Compared(context.network(weights), near, far)(x)
        return float(contrast(shown[:, -2:], 0.5).mean())

    # The model begins at the global one, where the first cosine is 1; the last model's must fall.
    assert term(release.weights) < term(near.state_dict()) - 1e-3


def test_the_gradient_of_moons_term_is_that_of_the_formula_row_by_row():
    torch.manual_seed(0)
    nets = [DOMAIN.network("small", TASK.info).double() for _ in range(3)]
    x = TASK.train.all().inputs[:6].double()
    shown = Compared(*nets)(x)
    assert torch.equal(shown[:, :-2], nets[0](x))
    got = torch.autograd.grad(contrast(shown[:, -2:], 0.5).mean(), list(nets[0].body.parameters()))

    total = torch.zeros((), dtype=torch.float64)
    for row in x:
        z, near, far = (net.embed(row[None])[0] for net in nets)
        one = torch.exp((z @ near.detach()) / (z.norm() * near.detach().norm()) / 0.5)
        two = torch.exp((z @ far.detach()) / (z.norm() * far.detach().norm()) / 0.5)
        total = total - torch.log(one / (one + two)) / len(x)
    for a, b in zip(got, torch.autograd.grad(total, list(nets[0].body.parameters()))):
        assert torch.allclose(a, b, atol=1e-12)


def test_networks_that_stand_still_are_not_trained():
    nets: list[Network] = [DOMAIN.network("norms", TASK.info) for _ in range(3)]
    seen = Compared(*nets)
    assert {id(p) for p in seen.parameters()} == {id(p) for p in nets[0].parameters()}
    seen.train().requires_grad_(True)
    assert not any(net.training or any(p.requires_grad for p in net.parameters()) for net in nets[1:])


# --- whole runs ------------------------------------------------------------------------------------------------------


def small(**sections):
    base = {
        "baselines": [],
        "data": {"train_limit": 200, "test_limit": 50},
        "distill": {"network": "convnet-d2-w16"},
        "local": {"epochs": 1},
        "federation": {"clients": 3, "rounds": 3, "participation": 0.7},
    }
    return resolve_simulate([Layer("test", base), Layer("case", sections)]).settings


class _Stop(Exception):
    pass


@pytest.mark.parametrize("method", ["scaffold", "moon", "fednova"])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, method):
    s = small(method=method)

    def weights(folder):
        return folder.load_checkpoint()["state"]["weights"]

    straight = RunFolder.create(tmp_path, "straight", to_toml(s))
    with straight:
        simulate(s, straight)

    def stop(row):
        if row.round == 3:
            raise _Stop

    broken = RunFolder.create(tmp_path, "broken", to_toml(s))
    with pytest.raises(_Stop), broken:
        simulate(s, broken, Progressing(finished=stop))
    again = RunFolder.open(broken.path, writable=True)
    with again:
        simulate(s, again, resume=True)
    assert close(weights(again), weights(straight), 0)


def test_scaffold_costs_twice_the_bytes_and_the_others_none(tmp_path):
    s = small(method="scaffold", baselines=["moon", "fednova", "fedavg"], federation={"rounds": 1})
    folder = RunFolder.create(tmp_path, "bytes", to_toml(s))
    with folder:
        found = {name: m["rows"][0] for name, m in simulate(s, folder)["methods"].items()}
    for way in ("bytes_up", "bytes_down"):
        weights = found["fedavg"][way]["weights"]
        assert found["scaffold"][way]["statistics"] == pytest.approx(weights, rel=0.01)
        for name in found:
            assert found[name][way]["weights"] == weights
        assert {found[name][way]["statistics"] for name in ("moon", "fednova", "fedavg")} == {0}


@pytest.mark.parametrize("method", ["scaffold", "fednova"])
def test_an_optimiser_whose_steps_are_no_sums_of_gradients_is_refused(method):
    with pytest.raises(ConfigError, match="local.optimizer is 'adam'"):
        check_simulate(small(method=method, local={"optimizer": "adam"}))
    with pytest.raises(ConfigError, match=f"methods.{method}.local.optimizer"):
        check_simulate(small(method="fedavg", baselines=[method], local={"optimizer": "adam"}))


@pytest.mark.parametrize("method", ["scaffold", "fednova"])
def test_no_weights_at_all_is_an_error_of_the_round(method):
    s = settings(method)
    with pytest.raises(FederationError, match="no client sent weights"):
        server(s, method_of(s).begin(server_context(s)), [])
