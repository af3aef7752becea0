"""Settings of a federated run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ddfed.config import Layer, Resolved, resolve
from ddfed.errors import ConfigError, one_of
from ddfed.registry import registry
from ddfed.settings import (
    DataSettings,
    PartSettings,
    RunSettings,
    Settings,
    origin_of,
    recipe_layers,
    value_of,
    without_foreign_options,
)
from ddfed_federated.codecs import codec_name
from ddfed_federated.faults import FaultPlan, check_plan, parse_fault, shares_of
from ddfed_federated.targets import Targets


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
    late: Literal["drop", "use"] = Field(
        "drop", description="a set that comes after the deadline: drop it, or use it in the next round"
    )
    absent: Literal["drop", "reuse"] = Field(
        "drop", description="clients without a release in a round: go on without them, or reuse their last sets"
    )
    reuse_age: int = Field(3, ge=1, description="rounds after which a set is too old to be reused")
    reuse_decay: float = Field(
        1.0, gt=0, le=1, description="weight of an old set's items, to the power of its age in rounds"
    )
    restart: Literal["same", "fresh", "previous"] = Field(
        "same",
        description="where a client's set starts each round: the same real items, fresh ones, or its last set",
    )
    codec: str = Field("float32", description="float32, float16 or uint8 items on the wire")
    backend: str = Field("inprocess", description="where it runs: inprocess or ray")
    workers: int = Field(0, ge=0, description="inprocess: client processes; 0 runs clients one after another")
    batched: bool = Field(
        False,
        description="without workers: clients train locally in cohorts, one batched call for several networks",
    )
    client_threads: int = Field(1, ge=1, description="torch threads of a client; part of the numbers")
    server_threads: int = Field(1, ge=1, description="torch threads of the server; part of the numbers")
    ray_address: str = Field("", description="join a running Ray cluster instead of starting one")
    networks: tuple[str, ...] = Field(
        (), description="networks that clients train, dealt in turn; empty for distill.network at every client"
    )
    faults: tuple[str, ...] = Field(
        (), description="rehearsed faults 'ROUND:CLIENT:KIND', * for every round or client: drop, crash, late, nan, ..."
    )
    fault_rates: dict[str, float] = Field(
        default_factory=dict,
        description="probability of each kind of rehearsed fault, such as crash = 0.1; groups: garbage, byzantine",
    )
    fault_delay_s: float = Field(1.0, gt=0, description="mean seconds that a client with fault 'delay' waits")

    @property
    def in_turn(self) -> bool:
        """Whether clients work one after another in the server's own process."""
        return self.backend == "inprocess" and not self.workers

    @property
    def rates_of_faults(self) -> dict[str, float]:
        """`fault_rates`, with `dropout` as the rate of drops."""
        return {**({"drop": self.dropout} if self.dropout else {}), **self.fault_rates}

    without: tuple[str, ...] = Field(
        (), description="left out from the beginning: client=3 (has no records), class=7 (no client has any of it)"
    )

    @field_validator("without")
    @classmethod
    def _known_targets(cls, without: tuple[str, ...]) -> tuple[str, ...]:
        Targets.parse(without)
        return without

    @field_validator("faults")
    @classmethod
    def _known_faults(cls, faults: tuple[str, ...]) -> tuple[str, ...]:
        for fault in faults:
            parse_fault(fault)
        return faults

    @model_validator(mode="after")
    def _possible_rates(self) -> FederationSettings:
        if self.dropout and "drop" in self.fault_rates:
            raise ValueError("dropout is the rate of fault 'drop': set one of dropout and fault_rates.drop, not both")
        shares_of(self.rates_of_faults)
        return self


class SimulateSettings(Settings):
    """`ddfed simulate`."""

    method: str = Field("feddm", description="federated method; `ddfed methods list`")
    engine: str = Field(
        "", description="central recipe whose parts clients distil with, such as dsa; empty for the method's own"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="of the method itself; its page lists them")
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
    forget: tuple[str, ...] = Field(
        (),
        description="what the main method forgets when it is trained: client=3, class=7; beside it a run without them",
    )
    data: DataSettings = DataSettings()
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="settings of a single method beside the main one: methods.fedavg.local.lr = 0.03",
    )
    distill: PartSettings = PartSettings()
    server: ServerSettings = ServerSettings()
    local: LocalSettings = LocalSettings()
    federation: FederationSettings = FederationSettings()
    run: RunSettings = RunSettings()

    @field_validator("forget")
    @classmethod
    def _known_targets(cls, forget: tuple[str, ...]) -> tuple[str, ...]:
        Targets.parse(forget)
        return forget


#: What each method of a comparison has for itself; the rest is the run's.
OWN = ("distill", "server", "local", "options")
#: What an engine does not bring along: the federation decides on it.
_NOT_OF_ENGINE = ("ipc", "network", "protocol", "min_count", "top_up")


def resolve_simulate(layers: Sequence[Layer]) -> Resolved[SimulateSettings]:
    """Settings of a federated run: defaults < method < presets < engine < files < --set < options.

    Presets are the method's, then those that the domain's plugin registers with it as the fact ``federated``. Each
    baseline is resolved in the same way, and ``methods`` holds where it differs from the main method; what the user
    sets holds for all of them, except ``options`` and what stands in ``methods``. Data, federation, network and
    budget are the main method's, so that the comparison is one. Controls follow the main method in everything.

    Raises:
        ConfigError: an unknown key, a wrong value, an unknown method, or a combination that cannot run.
    """
    name = value_of(layers, "method", "feddm")
    method = registry().load("federated", name, origin_of(layers, "method", "the default"))
    below = _below(method, layers)
    common = [Layer(layer.origin, {k: v for k, v in layer.values.items() if k != "methods"}) for layer in layers]
    main = resolve(SimulateSettings, without_foreign_options([*below, *common], "distill")).settings
    methods = {}
    for baseline in dict.fromkeys(main.baselines):
        registry().get("federated", baseline, "baselines")
        if baseline != name:
            methods[baseline] = _apart(_beside(baseline, main, layers), main)
    differing = Layer("the methods compared", {"methods": {k: v for k, v in methods.items() if v}})
    resolved = resolve(SimulateSettings, [*without_foreign_options([*below, *common], "distill"), differing])
    for one in dict.fromkeys([name, *main.baselines]):
        check_options(settings_of(resolved.settings, one))
    _check(resolved.settings)
    return resolved


def settings_of(settings: SimulateSettings, name: str) -> SimulateSettings:
    """A run's settings as they are for one of its methods."""
    apart = settings.methods.get(name, {}) if name != settings.method else {}
    own: dict[str, Any] = {} if name == settings.method or _is_control(name) else {"options": {}}
    whole = settings.model_dump()
    if _is_control(name) and registry().load("federated", settings.method).one_shot:
        whole["federation"]["rounds"] = 1
    for section, values in apart.items():
        own[section] = {**whole[section], **values} if section != "options" else values
    return SimulateSettings.model_validate({**whole, "method": name, **own})


def options_of(settings: SimulateSettings) -> Any:
    """The options of ``settings.method``, validated.

    Raises:
        ConfigError: one that the method does not have, or a wrong value.
    """
    method = registry().load("federated", settings.method)
    return resolve(method.options, [Layer(f"options of {settings.method}", settings.options)]).settings


def check_options(settings: SimulateSettings) -> None:
    """Refuse options that a method does not have; a control has those of the method it is compared with."""
    if not _is_control(settings.method):
        options_of(settings)


def _is_control(name: str) -> bool:
    return bool(registry().load("federated", name).control)


def _below(method: Any, layers: Sequence[Layer]) -> list[Layer]:
    """What lies below the user's layers: the method's defaults, the presets that fit, and the engine's parts."""
    dataset = value_of(layers, "data.dataset", "digits")
    domain_name = value_of(layers, "data.domain", "image")
    domain = registry().get("domain", domain_name, origin_of(layers, "data.domain", "the default"))
    below = [Layer(f"method {method.name}", dict(method.defaults))]
    for owner, presets in ((method.name, method.presets), (domain_name, domain.facts.get("federated", ()))):
        ipc = value_of([*below, *layers], "distill.ipc", PartSettings().ipc)
        below += [
            Layer(f"preset {owner}/{preset.label}", dict(preset.values))
            for preset in presets
            if preset.fits(dataset, ipc, domain_name)
        ]
    engine = value_of([*below, *layers], "engine", "")
    return [*below, *(_engine_layers(engine, [*below, *layers]) if engine else [])]


def _engine_layers(engine: str, layers: Sequence[Layer]) -> list[Layer]:
    """A central recipe's parts. Networks drawn at random give way to those that the method judges with."""
    found = []
    for layer in recipe_layers(engine, origin_of(layers, "engine", "the default"), layers, "distill"):
        parts = {k: v for k, v in layer.values.get("distill", {}).items() if k not in _NOT_OF_ENGINE}
        if parts.get("pool", "R") == "R":
            parts = {k: v for k, v in parts.items() if k not in ("pool", "pool_options")}
        found.append(Layer(f"engine {layer.origin}", {"distill": parts}))
    return found


def _beside(baseline: str, main: SimulateSettings, layers: Sequence[Layer]) -> SimulateSettings:
    """What a baseline's settings are in the main method's run."""
    if _is_control(baseline):
        return main
    method = registry().load("federated", baseline, "baselines")
    mine = [
        Layer(layer.origin, {k: v for k, v in layer.values.items() if k in ("distill", "server", "local", "data")})
        for layer in layers
    ]
    shared = {
        "data": main.data.model_dump(),
        "federation": main.federation.model_dump(),
        "distill": {"network": main.distill.network, "ipc": main.distill.ipc},
        "run": main.run.model_dump(),
    }
    alone = [Layer(layer.origin, layer.values.get("methods", {}).get(baseline, {})) for layer in layers]
    stack = [*_below(method, mine), *mine, Layer("the main method", shared), *alone]
    return resolve(SimulateSettings, without_foreign_options(stack, "distill")).settings


def _apart(settings: SimulateSettings, main: SimulateSettings) -> dict[str, dict[str, Any]]:
    """Where settings differ from the main method's, field by field of each section that is a method's own."""
    theirs, ours = main.model_dump(mode="json"), settings.model_dump(mode="json")
    found = {
        section: {k: v for k, v in ours[section].items() if v != theirs[section].get(k)}
        for section in OWN
        if section != "options"
    }
    found["options"] = ours["options"]
    return {section: values for section, values in found.items() if values}


def _check(settings: SimulateSettings) -> None:
    """Combinations that would only fail after the work has begun."""
    federation = settings.federation
    registry().get("partitioner", federation.partition, "federation.partition")
    if federation.skew != "none":
        registry().get("skew", federation.skew, "federation.skew")
    registry().get("backend", federation.backend, "federation.backend")
    codec_name(federation.codec)
    _check_forgetting(settings)
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
    check_plan(FaultPlan.of(settings), federation)
    if federation.batched and not federation.in_turn:
        raise ConfigError(
            "clients train in cohorts where they work one after another in one process: set federation.batched to "
            "false, or federation.backend to 'inprocess' and federation.workers to 0"
        )
    if federation.late == "use" and federation.deadline_s and federation.in_turn:
        raise ConfigError(
            "clients that work one after another are not late but not asked yet: set federation.workers, or rehearse "
            "with the fault 'late' and without federation.deadline_s"
        )


def _check_forgetting(settings: SimulateSettings) -> None:
    """Refuse a method that keeps nothing by which it could forget."""
    names = registry().names("federated")
    if settings.forget and registry().load("federated", settings.method).forgets is None:
        able = [name for name in names if registry().load("federated", name).forgets is not None]
        raise ConfigError(
            f"method {settings.method!r} keeps no sets of its clients, so it cannot forget "
            f"{', '.join(settings.forget)}. {one_of(able)} can. To train without them from the beginning, set "
            f"federation.without."
        )
