"""The eight parts, made from settings and fitted together for one task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.domain import Augmentation, Domain, Network
from ddfed.errors import ConfigError, DataError, one_of
from ddfed.evaluate.protocols import Protocol
from ddfed.evaluate.training import train_in_stages
from ddfed.gate import Gate
from ddfed.ledger import Ledger
from ddfed.match import Objective, Precision, Together
from ddfed.outer import Outer
from ddfed.pool import Committee, ModelPool, PoolContext, Teachers
from ddfed.registry import manager, registry
from ddfed.sample import Sampler
from ddfed.seeds import Streams, isolated
from ddfed.select import initial_inputs
from ddfed.settings import PartSettings
from ddfed.stages import Stages
from ddfed.store import LabelStore, Lesson, Store, view_of
from ddfed.store.labels.taught import answers


@dataclass(frozen=True)
class StepEvent:
    """What observers see after an outer step: plain numbers.

    Args:
        scope: whose step: the run, or ``"client 3, round 2"``.
        step: 1-based number of the step just made.
        steps: how many there will be.
        values: ``loss`` and whatever the method adds.
        phase: empty for the outer loop; else what is done before it, such as ``"network teacher"``.
    """

    scope: str
    step: int
    steps: int
    values: Mapping[str, float]
    phase: str = ""


@dataclass
class Kit:
    """The parts, assembled for one task.

    A set made in stages has one store and one store of labels; each stage has its pool, engine and optimiser, as a run
    of its own would, and networks that begin trained on what was made before.
    """

    store: Store
    labels: LabelStore
    pool: ModelPool
    sampler: Sampler
    objective: Objective
    outer: Outer
    context: PoolContext
    augmentation: Augmentation | None
    teachers: Teachers
    teacher: Network | None
    parts: PartSettings
    streams: Streams
    stages: Stages
    stage: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)

    @property
    def redraws(self) -> bool:
        """Rows are drawn anew whenever somebody learns from them."""
        return self.store.drawn and self.labels.of_class

    def judged(self, items: Tensor, *names: str | int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows that a step judges, with their graph: the rows, the item and the view of each.

        Args:
            items: of the classes that are judged.
            names: of the step, where rows are drawn.
        """
        if not self.redraws:
            rows, origin = self.store.decode(items)
            return rows, items[origin], view_of(origin)
        smallest = int(torch.bincount(self.labels.classes[items])[self.labels.classes[items]].min())
        items = items.repeat(-(-self.store.batch // smallest))
        rows, origin = self.store.redrawn(items, self.context.streams.torch("rows", *names))
        return rows, items[origin], torch.zeros_like(origin)

    def decoded(self, step: int = 0) -> tuple[Tensor, Tensor]:
        """What pools train networks on after a step: rows and targets of what this stage sees, detached.

        Rows that are drawn are drawn anew for every step.
        """
        with torch.no_grad():
            if self.redraws:
                stream = self.context.streams.torch("rows of the pool", step)
                rows, items = self.store.redrawn(torch.arange(self.store.items), stream)
                return rows.to(self.context.device), self.labels.targets(items).detach().to(self.context.device)
            rows, items, views = self.trained_on()
            seen = self.stages.seen_in(self.stage)[items]
            rows, items, views = rows[seen], items[seen], views[seen]
            return rows.to(self.context.device), self.labels.targets(items, views).detach().to(self.context.device)

    def trained_on(self) -> tuple[Tensor, Tensor, Tensor]:
        """What networks are trained on: rows, and the item and the view of each."""
        return self.labels.expand(self.context.gate.info, *self.store.decode(torch.arange(self.store.items)))

    def teach(self, finished: bool = False) -> None:
        """Let the teacher answer for the rows as they are, if labels are taught."""
        if self.teacher is None:
            return
        context = self.context
        with torch.no_grad():
            rows, items, views = self.trained_on()
            self.labels.teach(
                Lesson(
                    self.teacher,
                    rows.to(context.device),
                    items,
                    views,
                    context.augmentation_named,
                    context.streams.child("labels"),
                    cell_axes=context.gate.info.cell_axes,
                    finished=finished,
                    report=context.report,
                )
            )

    def represent(self, inputs: Tensor) -> Tensor:
        """The teachers' features of some rows, side by side, (rows, width); no gradient."""
        teachers = self.teachers()  # trained when first asked for, which takes gradients
        with torch.no_grad():
            return torch.cat([teacher.embed(inputs.to(self.context.device)) for teacher in teachers], 1)

    def begin_labels(self) -> None:
        """Labels start as what the teachers make of the rows, or how trained networks answer them."""
        with torch.no_grad():
            rows, items, _ = self.trained_on()
        rows = rows.to(self.context.device)
        found = self.represent(rows) if self.labels.represents else self._answered(rows, self.labels.classes[items])
        # An item that decodes to several rows has one label.
        total = torch.zeros(self.store.items, found.shape[1]).index_add_(0, items, found.cpu())
        self.labels.begin(total / torch.bincount(items, minlength=self.store.items)[:, None])

    def _answered(self, rows: Tensor, classes: Tensor) -> Tensor:
        """The mean answer of the networks that are right about a row, of all where none is."""
        found, right = zip(*((z, z.argmax(1) == classes) for z in (answers(n, rows) for n in self.context.experts())))
        trusted = torch.stack(right).float()
        trusted[:, trusted.sum(0) == 0] = 1
        return (torch.stack(found) * trusted[..., None]).sum(0) / trusted.sum(0)[:, None]

    # --- stages ----------------------------------------------------------------------------------------------

    @property
    def now(self) -> PartSettings:
        """The parts of this stage: those of the run with the stage's own steps."""
        return _of_stage(self.parts, self.stages, self.stage)

    def leave(self) -> None:
        """Put what this stage learned in its place: averaged values, and what is asked of training."""
        self.outer.release()
        self.asked.append(self.objective.training())

    def enter(self, stage: int) -> None:
        """Go on to a later stage: networks trained on what was made, an engine and an optimiser of its own."""
        parts, self.stage = self.parts, stage
        streams = self.streams.child("stage", stage)
        self.context = replace(
            self.context, streams=streams, prepare=self._preparation(stage, streams), steps=self.now.steps
        )
        kind = registry().load("pool", parts.pool, "distill.pool")
        self.pool = kind(self.context, **kind.prepared(parts.pool_options))
        self.context.trained = self.pool.trained
        self.objective = objective_of(parts)
        self.outer = Outer(self.store, self.labels, self.now)

    def _preparation(self, stage: int, streams: Streams) -> Callable[[Network, tuple[str | int, ...]], None]:
        """Trains a network on the stages before this one as the protocol does, for ``stages.epochs`` epochs each."""
        info, device = self.context.gate.info, self.context.device
        with torch.no_grad():
            rows, items, views = self.trained_on()
            rows, targets = rows.to(device, copy=True), self.labels.targets(items, views).detach().to(device, copy=True)
        recipe = _protocol(self.parts).for_dataset(info.dataset).for_set(self.training())
        recipe = replace(recipe, epochs=self.parts.stages.epochs * self.stages.count)
        stages, augmentation = self.stages.rows(items), self.context.augmentation_named(recipe.augment)

        def prepare(net: Network, names: tuple[str | int, ...]) -> None:
            train_in_stages(
                net,
                lambda index: (rows[index], targets[index]),
                stages,
                self.labels.loss,
                recipe,
                augmentation,
                streams.child("prepare", *names),
                until=stage,
                cell_axes=info.cell_axes,
            )

        return prepare

    def training(self) -> dict[str, float | list[float]]:
        """What the stages made so far ask of whoever trains on them; a list with one value for each stage."""
        if self.stages.count == 1:
            return self.asked[0]
        listed = {key: [stage[key] for stage in self.asked] for key in self.asked[0]}
        return {**listed, **self.stages.described}

    # --- checkpoints -----------------------------------------------------------------------------------------

    def snapshot(self, step: int) -> dict[str, Any]:
        """What a checkpoint after ``step`` steps holds."""
        return {
            "step": step,
            "store": {k: v.detach() for k, v in self.store.params.items()},
            "labels": {k: v.detach() for k, v in self.labels.params.items()},
            "optimizer": self.outer.optimizer.state_dict(),
            "average": self.outer.average,
            "usual_norm": self.outer.usual_norm,
            "pool": self.pool.state(),
            "sampler": self.sampler.state(),
            "objective": self.objective.state(),
            "teachers": self.teachers.state(),
            "ledger": self.context.gate.ledger.to_json(),
            "asked": self.asked,
        }

    def restore(self, tree: Mapping[str, Any]) -> int:
        """Inverse of `snapshot`; returns the steps made. Teachers came back when the kit was assembled."""
        with torch.no_grad():
            for name, tensor in self.store.params.items():
                tensor.copy_(tree["store"][name])
            for name, tensor in self.labels.params.items():
                tensor.copy_(tree["labels"][name])
        self.asked = list(tree["asked"])
        stage = self.stages.at(max(0, int(tree["step"]) - 1), self.parts.steps)
        if stage:
            self.enter(stage)
        self.outer.optimizer.load_state_dict(dict(tree["optimizer"]))
        self.outer.average = {k: v.clone() for k, v in tree["average"].items()}
        self.outer.usual_norm = float(tree["usual_norm"])
        self.pool.load(tree["pool"])
        self.sampler.load(tree["sampler"])
        self.objective.load(tree["objective"])
        self.context.gate.ledger.counts = Ledger.from_json(tree["ledger"]).counts
        return int(tree["step"])


def assemble(
    gate: Gate,
    domain: Domain,
    parts: PartSettings,
    streams: Streams,
    *,
    scope: str = "run",
    classes: Sequence[int] | None = None,
    center: Mapping[str, Tensor] | None = None,
    public: Mapping[str, Tensor] | None = None,
    start: Mapping[str, Tensor] | None = None,
    device: torch.device | None = None,
    taught: Mapping[str, Any] | None = None,
) -> Kit:
    """The kit of a run; see `ddfed.distill.distill` for the arguments.

    Args:
        taught: state of the teachers from a checkpoint; they are not trained again.

    Raises:
        BudgetError, ConfigError, DataError: the parts do not fit each other or the data.
    """
    device = device or torch.device("cpu")
    info = gate.info
    held = tuple(classes) if classes is not None else gate.held(parts.min_count)
    if not held:
        raise DataError(
            f"no class of {info.dataset!r} has {parts.min_count} rows or more here, so there is nothing to distil"
        )
    absent = sorted(set(held) - set(gate.held()))
    if absent:
        names = one_of(info.classes[c] if 0 <= c < info.num_classes else c for c in absent)
        raise DataError(f"there is no row here of {names}; distil classes that are held (numbers {gate.held()})")
    network = parts.network or domain.default_network(info)
    augmentation = domain.augmentation(parts.augment, info)
    store = empty_store(parts, info, held)
    labels = empty_labels(parts, store, domain)
    context = PoolContext(
        build=lambda: domain.network(network, info.with_outputs(labels.outputs)),
        gate=gate,
        streams=streams,
        classes=held,
        center=center,
        public=dict(public or {}),
        augmentation=augmentation,
        device=device,
        augmentation_named=lambda name: domain.augmentation(name, info),
        steps=parts.steps,
        report=lambda what, done, total: manager().hook.ddfed_on_step(event=StepEvent(scope, done, total, {}, what)),
    )
    taught_info = info.with_outputs(parts.teacher.outputs or info.num_classes)
    builders = [partial(domain.network, name, taught_info) for name in parts.teacher.networks or (network,)]
    context.teachers = teachers = Teachers(context, parts.teacher.training(), builders)
    teachers.load(taught or {})
    # Selection makes no step, so it needs no network at all.
    context.coupled = store.coupled
    kind = registry().load("pool", parts.pool, "distill.pool")
    pool: ModelPool = kind(context, **parts.pool_options) if parts.steps else _NoPool(context)
    context.trained = pool.trained
    _initialise(store, gate, parts, context, start)
    stages = Stages.split(store.classes, parts.stages.count, parts.stages.window)
    kit = Kit(
        store=store,
        labels=labels,
        pool=pool,
        sampler=registry().load("sampler", parts.sampler, "distill.sampler")(**parts.sampler_options),
        objective=objective_of(parts),
        outer=Outer(store, labels, _of_stage(parts, stages, 0)),
        context=context,
        augmentation=augmentation,
        teachers=teachers,
        teacher=_committee(teachers()) if labels.taught else None,
        parts=parts,
        streams=streams,
        stages=stages,
    )
    check_labels(labels, kit.objective, parts)
    for judge in kit.objective.members:
        if judge.second_order and not domain.capabilities.second_order:
            raise ConfigError(
                f"objective {judge.name!r} differentiates the network twice, which networks of domain "
                f"{domain.name!r} do not allow. Match features instead (method 'dm')."
            )
        if judge.whole_set and parts.scope != "joint":
            raise ConfigError(
                f"objective {judge.name!r} judges all classes together, and scope = {parts.scope!r} steps class by "
                f"class. Set distill.scope = 'joint'."
            )
    if stages.count > 1:
        _check_stages(kit)
    if store.coupled:
        _check_coupled(kit)
    kit.teach()
    if labels.begins_taught:
        kit.begin_labels()
    return kit


def _of_stage(parts: PartSettings, stages: Stages, stage: int) -> PartSettings:
    first, end = stages.steps(stage, parts.steps)
    return parts.model_copy(update={"steps": end - first})


def _protocol(parts: PartSettings) -> Protocol:
    """The protocol, which a set made in stages trains networks by while it is made."""
    found = registry().load("protocol", parts.protocol, "distill.protocol")
    if not isinstance(found, Protocol):
        raise ConfigError(
            f"a set made in stages has networks trained by its protocol, and {parts.protocol} trains none. Set "
            f"distill.protocol to one that does, such as E-dsa, or distill.stages.count = 1."
        )
    return found


def _check_stages(kit: Kit) -> None:
    """Refuse parts that cannot be made one after another."""
    parts, store, context = kit.parts, kit.store, kit.context
    context.augmentation_named(_protocol(parts).for_dataset(context.gate.info.dataset).augment)
    if parts.steps < kit.stages.count:
        raise ConfigError(
            f"{kit.stages.count} stages need an outer step each, got distill.steps = {parts.steps}. Raise it, or lower "
            f"distill.stages.count."
        )
    together = sorted(set(store.params) & set(store.shared))
    if together:
        raise ConfigError(
            f"store {parts.store!r} learns {together[0]!r} for all items together, so a finished part of them would "
            f"still change. Use a store of separate items, such as 'pixels', or distill.stages.count = 1."
        )
    if kit.labels.of_batches:
        raise ConfigError(
            f"labels {parts.labels!r} store whole training batches, which mix the parts of a set made in stages. Use "
            f"labels 'teacher', or distill.stages.count = 1."
        )
    if any(isinstance(value, list) for value in kit.objective.training().values()):
        raise ConfigError(
            f"objective {parts.objective!r} learns the steps of one training on the whole set, and stages are trained "
            f"on one after another. Set distill.stages.count = 1."
        )


def _check_coupled(kit: Kit) -> None:
    """Refuse parts that would take rows apart which a network must see together."""
    parts, why = kit.parts, f"store {kit.parts.store!r} decodes to rows that a network must see together"
    instead = "take a store of separate rows, such as 'pixels'"
    for judge in kit.objective.members if parts.steps else ():
        if not judge.takes_coupled:
            raise ConfigError(f"{why}, and objective {judge.name!r} takes them apart; {instead}, or another engine.")
    if parts.scope != "joint":
        raise ConfigError(f"{why}, and scope = {parts.scope!r} steps class by class. Set distill.scope = 'joint'.")
    if kit.augmentation is not None:
        raise ConfigError(f"{why}, and augment = {parts.augment!r} changes each alone. Set distill.augment = 'none'.")
    if kit.labels.of_batches or kit.labels.taught:
        raise ConfigError(f"{why}, and labels {parts.labels!r} are made row by row; {instead}, or labels 'hard'.")
    if kit.stages.count > 1:
        raise ConfigError(f"{why}, and stages take them apart. Set distill.stages.count = 1.")


def _committee(teachers: Sequence[Network]) -> Network:
    return teachers[0] if len(teachers) == 1 else Committee(teachers).eval()


def objective_of(parts: PartSettings) -> Objective:
    """The engine of ``parts``, with its terms if there are any.

    Raises:
        UnknownNameError, ConfigError: an unknown engine, term or option, or a term that cannot ride on the engine.
    """

    def made(name: str, options: Mapping[str, Any], origin: str) -> Objective:
        engine: Objective = registry().load("objective", name, origin)(Precision(parts.bf16, parts.compile), **options)
        return engine

    host = made(parts.objective, parts.objective_options, "distill.objective")
    terms = [(term.weight, made(term.objective, term.options, "distill.terms")) for term in parts.terms]
    return Together(host, terms) if terms else host


def empty_store(parts: PartSettings, info: TaskInfo, classes: Sequence[int]) -> Store:
    """The parametrisation of ``parts`` for these classes, with as many items as the budget holds."""
    kind = registry().load("decoder", parts.store, "distill.store")
    per_class = kind.items_per_class(info, parts.ipc, len(classes), **parts.store_options)
    return kind(info, torch.tensor(list(classes)).repeat_interleave(per_class), **parts.store_options)


def empty_labels(parts: PartSettings, store: Store, domain: Domain) -> LabelStore:
    """The label store of ``parts`` for the items of a store; representations are as wide as the teachers'."""
    info, options = store.info, dict(parts.labels_options)
    kind = registry().load("labels", parts.labels, "distill.labels")
    if kind.represents:
        names = parts.teacher.networks or (parts.network or domain.default_network(info),)
        options = {"width": sum(_width(domain, name, info) for name in names), **options}
    return kind(store.classes, info.num_classes, store.rows_per_item, **options)


def _width(domain: Domain, network: str, info: TaskInfo) -> int:
    """Values that enter a network's last layer."""
    with isolated(0), torch.no_grad():
        return domain.network(network, info).eval().embed(torch.zeros(1, *info.shape)).shape[1]


def check_labels(labels: LabelStore, objective: Objective, parts: PartSettings) -> None:
    """Refuse labels that neither the engine nor the teacher can be about.

    Raises:
        ConfigError: representations for an engine that holds real rows against their classes, or answers by class of a
            teacher that learned none.
    """
    judging = [member for member in objective.members if not member.represents] if parts.steps else []
    if labels.represents and judging:
        raise ConfigError(
            f"labels {labels.name!r} are representations, and objective {judging[0].name!r} holds real rows against "
            f"their classes. Use distill.objective = 'ridge', or labels of classes such as 'vectors'."
        )
    asks = {
        f"labels {labels.name!r}": labels.taught,
        f"pool {parts.pool!r}": bool(parts.steps) and registry().load("pool", parts.pool).of_teachers,
    }
    for what in (what for what, asked in asks.items() if asked and parts.teacher.objective != "classes"):
        raise ConfigError(
            f"{what} asks teachers for their answers by class, and distill.teacher.objective = "
            f"{parts.teacher.objective!r} learns no class. Set it to 'classes', or use distill.labels = "
            f"'representations' with another pool."
        )


class _NoPool(ModelPool):
    """Stands in when there is no outer step."""

    name = "none"

    def draw(self, step: int) -> Any:
        raise ConfigError("this recipe makes no outer step")


def _initialise(
    store: Store, gate: Gate, parts: PartSettings, context: PoolContext, start: Mapping[str, Tensor] | None
) -> None:
    if start is not None:
        store.load(start)
        return
    if parts.init == "noise":
        store.fill_noise(context.streams)
        return
    per_class = store.items // len(context.classes)
    selector = registry().load("selector", parts.init, "distill.init")
    data = gate.raw(f"initialisation by {parts.init}")
    inputs = initial_inputs(
        data,
        selector,
        per_class * store.seeds_per_item,
        context,
        parts.init_options,
        top_up=parts.top_up,
        ipc=parts.ipc,
        coupled=store.coupled,
    )
    store.fill(inputs.view(store.items, store.seeds_per_item, *inputs.shape[1:]), context.streams.child("store"))
