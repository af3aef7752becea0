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
from ddfed_federated.cohort import Cohorts
from ddfed_federated.faults import FaultPlan, Kind
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
    """What a client holds, as it sees it, without what is left out of the run.

    Raises:
        ConfigError: no such client.
    """
    _, task = load_task(settings)
    partition = load_partition(settings)
    if not 0 <= client < partition.clients:
        raise ConfigError(f"partition id {client} is outside 0 to {partition.clients - 1}")
    seen = seen_by(client, task.train.within(partition.share(client)), settings)
    return Targets.parse(settings.federation.without).without(seen, client)


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
    data = load_share(settings, client)
    # Its own chunk and ledger; the scope keeps clients apart for the accountant.
    gate = PlainGate(data, scope=f"client {client}", chunk=settings.distill.chunk)
    streams = Streams(settings.run.seed).child("client", client)
    # A control must draw the items that the method itself starts from, so streams do not name the method.
    options = None if method.control else options_of(settings)
    # A client judges its own model on test rows as it sees its own rows.
    test = seen_by(client, task.test, settings) if method.personal else task.test
    cohorts = _cohorts(settings) if settings.federation.batched else None
    device = resolve_device(settings.run.device)
    context = ClientContext(client, settings, domain, streams, options, device, test, cohorts)
    fault = _fault(settings, broadcast, client)
    scene = FaultPlan.of(settings).scene(client, settings.federation.clients, task.info.num_classes, broadcast)
    fault.before(scene)
    remembered = {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"{method.name}/")}
    begun = time.perf_counter()
    release, new = method.phase(broadcast.phase).client(remembered, gate, broadcast, context)
    seconds = time.perf_counter() - begun
    release = dataclasses.replace(release, metrics={**release.metrics, "seconds": seconds}, ledger=gate.ledger)
    others = {k: v for k, v in state.items() if not k.startswith(f"{method.name}/")}
    return fault.after(release, scene), {**others, **{f"{method.name}/{k}": v for k, v in new.items()}}


def _cohorts(settings: SimulateSettings) -> Cohorts:
    sizes = load_partition(settings).counts.sum(axis=1).tolist()
    return Cohorts(settings, lambda client: load_share(settings, client), sizes)


def _fault(settings: SimulateSettings, broadcast: Broadcast, client: int) -> Kind:
    """The rehearsed fault of this client in this phase.

    Raises:
        ConfigError: this is no simulation: nobody rehearses faults on other people's machines.
    """
    kind = FaultPlan.of(settings).at(broadcast.round, broadcast.phase, client)
    if kind.name and os.environ.get("DDFED_SIMULATION") != "1":
        raise ConfigError(
            f"fault {kind.name!r} is rehearsed in simulations only; leave federation.faults, fault_rates "
            f"and dropout alone in a deployment"
        )
    return kind
