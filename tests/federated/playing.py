"""Federated methods as pure functions, without a grid: one answer, one merge, or whole rounds; and small whole runs."""

from __future__ import annotations

from dataclasses import replace

import torch

from ddfed.config import Layer
from ddfed.federation import Broadcast, Release, check_release
from ddfed.gate import PlainGate
from ddfed.registry import registry
from ddfed.seeds import Streams
from ddfed.testing import TwinDomain, twin_task
from ddfed_federated.methods import ClientContext, FederatedMethod, ServerContext, ServerState
from ddfed_federated.settings import SimulateSettings, options_of, resolve_simulate

TASK = twin_task()
DOMAIN = TwinDomain()


def settings(method: str = "feddm", **sections) -> SimulateSettings:
    pool = registry().load("federated", method).defaults.get("distill", {}).get("pool")
    # The usual radius is for networks a thousand times larger.
    near = {"pool_options": {"rho": 0.5}} if pool == "ball" else {}
    base = {
        "method": method,
        "data": {"domain": "twin", "dataset": "blobs"},
        "distill": {"ipc": 2, "steps": 5, "lr": 0.1, "min_count": 1, "network": "small", **near},
        "server": {"epochs": 5},
        "local": {"epochs": 2},
        "federation": {"rounds": 2},
        "baselines": [],
    }
    return resolve_simulate([Layer("test", base), Layer("case", sections)]).settings


def small_run(*base: dict, **sections) -> SimulateSettings:
    """Settings of a whole run of seconds on a few hundred digits; later ones win. For the fixture `run`."""
    small = {
        "baselines": [],
        "data": {"train_limit": 300, "test_limit": 100},
        "distill": {"ipc": 2, "steps": 3, "network": "convnet-d2-w16", "min_count": 1},
        "server": {"epochs": 5},
        "local": {"epochs": 1},
        "federation": {"clients": 4, "rounds": 2},
    }
    return resolve_simulate(
        [Layer("small", small), *(Layer("test", b) for b in base), Layer("case", sections)]
    ).settings


def method_of(s: SimulateSettings) -> FederatedMethod:
    return registry().load("federated", s.method)


def _options(s: SimulateSettings):
    return None if method_of(s).control else options_of(s)


def client_context(s: SimulateSettings, who: int = 0) -> ClientContext:
    return ClientContext(who, s, DOMAIN, Streams(s.run.seed).child("client", who), _options(s), test=TASK.test)


def server_context(s: SimulateSettings) -> ServerContext:
    return ServerContext(s, DOMAIN, TASK, Streams(s.run.seed).child("server side"), _options(s))


def client(s, number, data=None, state=None, weights=None, who=0, phase=0, broadcast=None):
    """One client's answer: (release, new memory)."""
    part = method_of(s).phases[phase]
    if broadcast is None:
        weights = weights or server_context(s).network().state_dict()
        broadcast = Broadcast(number, weights, phase=part.name)
    gate = PlainGate(TASK.train if data is None else data)
    return part.client(state or {}, gate, broadcast, client_context(s, who))


def server(s, state: ServerState, releases: list[Release], phase: int = 0) -> ServerState:
    """One merge; the engine's counting of rounds included after the last phase."""
    merged = method_of(s).phases[phase].server(state, releases, server_context(s))
    last = phase % len(method_of(s).phases) == len(method_of(s).phases) - 1
    return replace(merged, round=state.round + 1) if last else merged


def shares(clients: int) -> list[torch.Tensor]:
    """Rows dealt in turn, so that every client has every class."""
    return [torch.arange(k, len(TASK.train), clients) for k in range(clients)]


def play(s: SimulateSettings, parts: list[torch.Tensor] | None = None, rounds: int | None = None):
    """Whole rounds as the engine holds them, with every release checked: (state, releases of each phase held)."""
    method, context = method_of(s), server_context(s)
    parts = shares(3) if parts is None else parts
    memory: dict[int, dict[str, torch.Tensor]] = {k: {} for k in range(len(parts))}
    state, heard = method.begin(context), []
    for number in range(0 if method.setup else 1, (rounds or method.rounds(s)) + 1):
        for phase in method.phases if number else method.setup:
            releases = []
            for who, broadcast in phase.broadcasts(number, state, context, range(len(parts))).items():
                gate = PlainGate(TASK.train.subset(parts[who]))
                release, memory[who] = phase.client(memory[who], gate, broadcast, client_context(s, who))
                check_release(release, TASK.info, broadcast, phase.client.expects(who, state, context))
                releases.append(release)
            heard.append(releases)
            state = phase.server(state, [r for r in releases if r.payload], context)
        state = replace(state, round=number)
    return state, heard
