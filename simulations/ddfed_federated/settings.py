"""Settings of a federated run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ddfed.config import Layer, Resolved, resolve
from ddfed.errors import ConfigError
from ddfed.registry import registry
from ddfed.settings import (
    DataSettings,
    PartSettings,
    RunSettings,
    Settings,
    origin_of,
    value_of,
    without_foreign_options,
)
from ddfed_federated.codecs import codec_name


class ServerSettings(Settings):
    """How the server trains the global model on the union of the sets (FedDM, section 3.3 and its code)."""

    epochs: int = Field(500, ge=1, description="passes over the union in each round")
    lr: float = Field(0.01, gt=0, description="step size of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD")
    batch: int = Field(256, ge=0, description="rows per step; 0 for all")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="sgd or adam")
    augment: str = Field("none", description="augmentation of the union while the global model trains")
    weighting: Literal["uniform", "count"] = Field(
        "uniform", description="count: an item weighs as many records as it stands for"
    )
    warm_start: bool = Field(True, description="go on from the last global model instead of a fresh one")
    history: int = Field(1, ge=1, description="train on the sets of this many last rounds")


class LocalSettings(Settings):
    """How a client of an averaging method trains."""

    epochs: int = Field(10, ge=1, description="local passes in each round")
    lr: float = Field(0.01, gt=0, description="step size of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(0.0, ge=0, description="of SGD")
    batch: int = Field(64, ge=0, description="rows per step; 0 for all")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="sgd or adam")
    proximal_mu: float = Field(0.01, ge=0, description="FedProx's mu; other methods ignore it")
    server_momentum: float = Field(0.9, ge=0, lt=1, description="FedAvgM's beta")
    server_lr: float = Field(1.0, gt=0, description="FedAvgM's step size")
    adam_eta: float = Field(0.01, gt=0, description="FedAdam's server step size")
    adam_tau: float = Field(1e-3, gt=0, description="FedAdam's degree of adaptivity")


class FederationSettings(Settings):
    """Who takes part, how the data lie, and where it runs."""

    clients: int = Field(10, ge=1, description="number of clients")
    rounds: int = Field(5, ge=1, description="number of rounds")
    partition: str = Field(
        "dirichlet", description="how the data lie: dirichlet, iid, pathological, shards, natural, file, ..."
    )
    partition_options: dict[str, Any] = Field(
        default_factory=dict,
        description="of the partitioner, such as alpha",
        json_schema_extra={"common": ["alpha"]},
    )
    skew: str = Field(
        "none", description="what clients' instruments make of their rows: none, noise; of images rotation, blur, ..."
    )
    skew_options: dict[str, Any] = Field(default_factory=dict, description="of the skew, such as sigma")
    participation: float = Field(1.0, gt=0, le=1, description="share of the clients asked in each round")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability that an asked client drops out of a round")
    min_replies: int = Field(1, ge=1, description="a round with fewer valid releases is skipped")
    deadline_s: float | None = Field(None, gt=0, description="seconds after which a round goes on without the missing")
    restart: Literal["same", "fresh", "previous"] = Field(
        "same",
        description="where a client's set starts each round: the same real items, fresh ones, or its last set",
    )
    codec: str = Field("float32", description="float32, float16 or uint8 items on the wire")
    backend: str = Field("inprocess", description="where it runs: inprocess or ray")
    workers: int = Field(0, ge=0, description="inprocess: client processes; 0 runs clients one after another")
    client_threads: int = Field(1, ge=1, description="torch threads of a client; part of the numbers")
    server_threads: int = Field(1, ge=1, description="torch threads of the server; part of the numbers")
    ray_address: str = Field("", description="join a running Ray cluster instead of starting one")
    faults: tuple[str, ...] = Field(
        (), description="rehearsed faults 'ROUND:CLIENT:KIND' with raise, nan, shape, labels, exit or hang"
    )

    @field_validator("faults")
    @classmethod
    def _known_faults(cls, faults: tuple[str, ...]) -> tuple[str, ...]:
        for fault in faults:
            parts = fault.split(":")
            if len(parts) != 3 or not (parts[0].isdigit() and parts[1].isdigit()) or parts[2] not in FAULTS:
                raise ValueError(f"{fault!r} is not ROUND:CLIENT:KIND with KIND one of {', '.join(FAULTS)}")
        return faults


FAULTS = ("raise", "nan", "shape", "labels", "exit", "hang")


class SimulateSettings(Settings):
    """`ddfed simulate`."""

    method: str = Field("feddm", description="federated method; `ddfed methods list`")
    baselines: tuple[str, ...] = Field(
        ("random-once", "random-fresh", "fedavg"), description="methods run beside it on the same split"
    )
    references: tuple[Literal["local", "central", "central-cut"], ...] = Field(
        (),
        description="trainings on real rows to compare with: each client alone, all in one place, and all in one place "
        "without what ties rows of different clients",
    )
    targets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="accuracies in (0, 1] for which rounds, bytes and seconds are told, beside 90 % of the best"
    )
    data: DataSettings = DataSettings()
    distill: PartSettings = PartSettings()
    server: ServerSettings = ServerSettings()
    local: LocalSettings = LocalSettings()
    federation: FederationSettings = FederationSettings()
    run: RunSettings = RunSettings()


def resolve_simulate(layers: Sequence[Layer]) -> Resolved[SimulateSettings]:
    """Settings of a federated run: defaults < method < presets < files < --set < options.

    Presets are the method's, then those that the domain's plugin registers with it as the fact ``federated``.

    Raises:
        ConfigError: an unknown key, a wrong value, an unknown method, or a combination that cannot run.
    """
    method = registry().load(
        "federated", value_of(layers, "method", "feddm"), origin_of(layers, "method", "the default")
    )
    dataset = value_of(layers, "data.dataset", "digits")
    name = value_of(layers, "data.domain", "image")
    domain = registry().get("domain", name, origin_of(layers, "data.domain", "the default"))
    below = [Layer(f"method {method.name}", dict(method.defaults))]
    for owner, presets in ((method.name, method.presets), (name, domain.facts.get("federated", ()))):
        ipc = value_of([*below, *layers], "distill.ipc", PartSettings().ipc)
        below += [
            Layer(f"preset {owner}/{preset.label}", dict(preset.values))
            for preset in presets
            if preset.fits(dataset, ipc, name)
        ]
    resolved = resolve(SimulateSettings, without_foreign_options([*below, *layers], "distill"))
    _check(resolved.settings)
    return resolved


def _check(settings: SimulateSettings) -> None:
    """Combinations that would only fail after the work has begun."""
    federation = settings.federation
    for baseline in settings.baselines:
        registry().get("federated", baseline, "baselines")
    registry().get("partitioner", federation.partition, "federation.partition")
    if federation.skew != "none":
        registry().get("skew", federation.skew, "federation.skew")
    registry().get("backend", federation.backend, "federation.backend")
    codec_name(federation.codec)
    if settings.distill.store != "pixels" or settings.distill.labels != "hard":
        raise ConfigError(
            f"a federated set travels as rows with hard labels, so distill.store must be 'pixels' and distill.labels "
            f"'hard'; got {settings.distill.store!r} and {settings.distill.labels!r}"
        )
    if settings.distill.stages.count > 1:
        raise ConfigError(
            f"the server trains on all clients' items at once, and a set made in {settings.distill.stages.count} "
            f"stages must be trained on stage by stage. Set distill.stages.count = 1."
        )
    serial = federation.backend == "inprocess" and federation.workers == 0
    for fault in federation.faults:
        kind = fault.rsplit(":", 1)[1]
        if kind == "exit" and serial:
            raise ConfigError(f"fault {fault!r} would end this process: set federation.workers to 1 or more")
        if kind == "hang" and (serial or federation.deadline_s is None):
            raise ConfigError(f"fault {fault!r} never answers: set federation.deadline_s and federation.workers")
