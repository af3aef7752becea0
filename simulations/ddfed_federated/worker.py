"""What a client process does with a message: load its share, call the method, release.

Called by the Flower client app; the same function in-process, in a process pool, under Ray and deployed.
"""

from __future__ import annotations

import dataclasses
import os
import time
from functools import lru_cache

from torch import Tensor

from ddfed import central
from ddfed.data import RealData, Task
from ddfed.devices import keep_memory, resolve_device
from ddfed.domain import Domain
from ddfed.errors import ConfigError
from ddfed.federation import Broadcast, Release
from ddfed.gate import PlainGate
from ddfed.registry import registry
from ddfed.seeds import Streams
from ddfed.space import Space
from ddfed_federated import partition as partitions
from ddfed_federated.methods import ClientContext
from ddfed_federated.settings import SimulateSettings, options_of
from ddfed_federated.skew import seen_by
from ddfed_federated.targets import Targets


def load_task(settings: SimulateSettings) -> tuple[Domain, Task]:
    """The domain and its data, once per process and settings; a site's own data in the space that the server gives."""
    domain, task = _load_task(settings.data.model_dump_json())
    space = settings.federation.partition_options.get("space")
    return domain, task if space is None else task.in_space(Space(tuple(space["mean"]), tuple(space["std"])))


@lru_cache(maxsize=2)
def _load_task(data_json: str) -> tuple[Domain, Task]:
    from ddfed.settings import DataSettings

    return central.load_task(DataSettings.model_validate_json(data_json))


def load_partition(settings: SimulateSettings) -> partitions.Partition:
    """The split of the training data, a function of data, scheme and seed alone."""
    federation = settings.federation
    return _load_partition(
        settings.data.model_dump_json(),
        federation.model_dump_json(include={"partition", "partition_options", "clients"}),
        settings.run.seed,
    )


@lru_cache(maxsize=4)
def _load_partition(data_json: str, scheme_json: str, seed: int) -> partitions.Partition:
    from ddfed_federated.settings import FederationSettings

    federation = FederationSettings.model_validate_json(scheme_json)
    _, task = _load_task(data_json)
    scheme = registry().get("partitioner", federation.partition, "federation.partition")
    return partitions.divide(
        scheme.name,
        scheme.load(),
        task,
        federation.clients,
        Streams(seed).numpy("partition"),
        scheme.facts.get("sees", "labels"),
        **federation.partition_options,
    )


def load_share(settings: SimulateSettings, client: int) -> RealData:
    """What a client holds, as it sees it.

    Raises:
        ConfigError: no such client.
    """
    _, task = load_task(settings)
    shares = load_partition(settings).shares
    if not 0 <= client < len(shares):
        raise ConfigError(f"partition id {client} is outside 0 to {len(shares) - 1}")
    return seen_by(client, task.train.within(shares[client]), settings)


def answer(
    settings_json: str, client: int, broadcast: Broadcast, state: dict[str, Tensor]
) -> tuple[Release, dict[str, Tensor]]:
    """One client's answer to one broadcast.

    Args:
        settings_json: the run's `SimulateSettings`.
        client: partition id.
        broadcast: from the server.
        state: the client's memory from its last round with this method.

    Raises:
        DdfedError: whatever is wrong with the client's data or settings; the server goes on without it.
    """
    keep_memory()
    settings = SimulateSettings.model_validate_json(settings_json)
    method = registry().load("federated", settings.method)
    domain, task = load_task(settings)
    data = Targets.parse(settings.federation.without).without(load_share(settings, client), client)
    # Its own chunk and ledger; the scope keeps clients apart for the accountant.
    gate = PlainGate(data, scope=f"client {client}", chunk=settings.distill.chunk)
    streams = Streams(settings.run.seed).child("client", client)
    # A control must draw the items that the method itself starts from, so streams do not name the method.
    options = None if method.control else options_of(settings)
    # A client judges its own model on test rows as it sees its own rows.
    test = seen_by(client, task.test, settings) if method.personal else task.test
    context = ClientContext(client, settings, domain, streams, options, resolve_device(settings.run.device), test)
    fault = _fault(settings, broadcast.round, client)
    if fault:
        _before(fault, client)
    remembered = {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"{method.name}/")}
    begun = time.perf_counter()
    release, new = method.phase(broadcast.phase).client(remembered, gate, broadcast, context)
    seconds = time.perf_counter() - begun
    release = dataclasses.replace(release, metrics={**release.metrics, "seconds": seconds}, ledger=gate.ledger)
    others = {k: v for k, v in state.items() if not k.startswith(f"{method.name}/")}
    return _after(fault, release), {**others, **{f"{method.name}/{k}": v for k, v in new.items()}}


def _fault(settings: SimulateSettings, number: int, client: int) -> str:
    """The rehearsed fault of this client in this round, if any."""
    for fault in settings.federation.faults:
        at, who, kind = fault.split(":")
        if (int(at), int(who)) == (number, client):
            return kind
    dropout = settings.federation.dropout
    if dropout and Streams(settings.run.seed).numpy("dropout", number, client).random() < dropout:
        return "raise"
    return ""


def _before(fault: str, client: int) -> None:
    if fault == "raise":
        raise RuntimeError(f"client {client} dropped out (rehearsed)")
    if fault == "exit":
        os._exit(1)
    if fault == "hang":
        time.sleep(3600)


def _after(fault: str, release: Release) -> Release:
    if fault not in ("nan", "shape", "labels") or not release.payload:
        return release
    payload = {kind: {k: v.clone() for k, v in arrays.items()} for kind, arrays in release.payload.items()}
    first = next(iter(payload.values()))
    name = next(iter(first))
    if fault == "nan":
        first[name].view(-1)[0] = float("nan")
    elif fault == "shape":
        first[name] = first[name].flatten(1)[:, :-1]
    elif "set" in payload:
        payload["set"]["y"] = payload["set"]["y"] + 1000
    return dataclasses.replace(release, payload=payload)
