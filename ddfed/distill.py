"""THE LOOP. Every method is a choice of parts for it; none has a loop of its own.

store -> decode -> label -> augment -> objective(pool, real rows) -> cotangent -> outer step
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddfed.artifact import SyntheticSet
from ddfed.data import TaskInfo
from ddfed.devices import keep_memory, memory_advice
from ddfed.domain import Augmentation, Domain, Network
from ddfed.errors import ConfigError, DataError, DivergedError, one_of
from ddfed.gate import Gate
from ddfed.match import Cotangent, Judgement, Objective, Precision
from ddfed.pool import ModelPool, PoolContext, trained_network
from ddfed.registry import manager, registry
from ddfed.sample import Sampler
from ddfed.seeds import Streams
from ddfed.select import select_rows
from ddfed.settings import PartSettings
from ddfed.store import LabelStore, Lesson, Store, view_of


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
class Checkpointing:
    """Where a run saves itself and goes on from.

    Args:
        save: takes a tree of tensors and JSON values.
        every: outer steps between saves.
        resume: a tree that ``save`` was given, or None.
    """

    save: Callable[[dict[str, Any]], None]
    every: int = 100
    resume: dict[str, Any] | None = None


@dataclass
class Kit:
    """The parts, assembled for one task."""

    store: Store
    labels: LabelStore
    pool: ModelPool
    sampler: Sampler
    objective: Objective
    outer: Outer
    context: PoolContext
    augmentation: Augmentation | None
    teacher: Network | None


def distill(
    gate: Gate,
    domain: Domain,
    parts: PartSettings,
    streams: Streams,
    *,
    scope: str = "run",
    classes: Sequence[int] | None = None,
    center: Mapping[str, Tensor] | None = None,
    start: Mapping[str, Tensor] | None = None,
    device: torch.device | None = None,
    checkpointing: Checkpointing | None = None,
) -> SyntheticSet:
    """Distil what the gate answers for into a synthetic set.

    Args:
        gate: the one way to real data.
        domain: modality adapter.
        parts: the eight parts.
        streams: every random number of the run hangs below these.
        scope: name for observers and messages.
        classes: classes to distil; those the gate holds by default.
        center: weights for the pools ``exact`` and ``ball``.
        start: stored values to start from instead of ``parts.init`` (names of the store's tensors).
        device: where networks and rows live; the CPU by default.
        checkpointing: how to save and resume; a resumed run equals the uninterrupted one.

    Returns:
        The set, with its recipe, data facts and privacy events in the card.

    Raises:
        BudgetError: fewer real items than the initialisation needs.
        DataError: no class has enough rows, or a class asked for has none.
        DivergedError: the loss stopped being finite.
        MemoryExceededError: a step did not fit in memory.
    """
    keep_memory()
    with memory_advice(f"{scope}: setting up", _less_memory(parts)):
        kit = _assemble(gate, domain, parts, streams, scope, classes, center, start, device or torch.device("cpu"))
    first = 0
    if checkpointing and checkpointing.resume:
        first = _restore(kit, checkpointing.resume)
    for step in range(first, parts.steps):
        with memory_advice(f"{scope}: outer step {step + 1}", _less_memory(parts)):
            loss = _outer_step(kit, parts, gate, streams, step, scope)
            kit.pool.advance(step, lambda: _decoded(kit), kit.labels.loss)
        manager().hook.ddfed_on_step(event=StepEvent(scope, step + 1, parts.steps, {"loss": loss}))
        if checkpointing and ((step + 1) % checkpointing.every == 0 or step + 1 == parts.steps):
            checkpointing.save(_snapshot(kit, step + 1))
    kit.outer.release()
    with memory_advice(f"{scope}: labels after the last step", _less_memory(parts)):
        _teach(kit)
    for stored in (*kit.store.params.values(), *kit.labels.params.values()):
        if not bool(torch.isfinite(stored).all()):
            raise DivergedError(
                f"{scope}: the stored values are not finite after outer step {parts.steps} (lr {parts.lr}, label_lr "
                f"{parts.label_lr}). Lower distill.lr or distill.label_lr, or set distill.clamp = true."
            )
    return SyntheticSet(
        info=gate.info,
        store=kit.store,
        labels=kit.labels,
        protocol=parts.protocol,
        training=kit.objective.training(),
        provenance={"settings": parts.model_dump(mode="json"), "seed": streams.root, "torch": torch.__version__},
        privacy={"statement": gate.ledger.statement(), "events": gate.ledger.to_json()},
    )


def _less_memory(parts: PartSettings) -> str:
    return (
        f"Lower distill.chunk (real rows per pass, now {parts.chunk}), the engine's rows and chunks in "
        f"distill.objective_options, or distill.ipc (now {parts.ipc}); or step class by class "
        f"(--set distill.scope=sequential)."
    )


def _outer_step(kit: Kit, parts: PartSettings, gate: Gate, streams: Streams, step: int, scope: str) -> float:
    """One step of the outer loop: judged together, or class by class with a step after each."""
    net = kit.pool.draw(step)
    all_classes = kit.context.classes
    total = 0.0
    for classes in [all_classes] if parts.scope == "joint" else [(c,) for c in all_classes]:
        items = torch.nonzero(torch.isin(kit.labels.classes, torch.tensor(classes))).flatten()
        rows, origin = kit.store.decode(items)
        # Decoded once; objectives see a leaf, and what they return is pushed through the decoder.
        x = rows.detach().to(kit.context.device).requires_grad_()
        targets = kit.labels.targets(items[origin], view_of(origin))
        y = targets.detach().to(kit.context.device).requires_grad_(targets.requires_grad)
        cotangent = kit.objective(
            Judgement(
                net=net,
                x=x,
                y=y,
                row_class=kit.labels.classes[items[origin]],
                classes=classes,
                gate=gate,
                augmentation=kit.augmentation,
                label_loss=kit.labels.loss,
                skill=kit.pool.skill,
                step=step,
                streams=streams,
                device=kit.context.device,
                sampler=kit.sampler,
                expert=kit.pool.expert,
                place=kit.pool.place(step),
            )
        )
        if not math.isfinite(cotangent.loss) or not bool(torch.isfinite(cotangent.x).all()):
            raise DivergedError(
                f"{scope}: the loss of outer step {step + 1} is {cotangent.loss} (lr {parts.lr}, network "
                f"{parts.network!r}, store {parts.store!r}). Lower distill.lr, or set distill.clamp = true."
            )
        if not cotangent.skip:
            kit.outer.step(rows, targets, cotangent, step)
        total += cotangent.loss
    return total


def _decoded(kit: Kit) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        rows, items, views = _trained_on(kit)
        return rows.to(kit.context.device), kit.labels.targets(items, views).detach().to(kit.context.device)


def _trained_on(kit: Kit) -> tuple[Tensor, Tensor, Tensor]:
    """What networks are trained on: rows, and the item and the view of each."""
    return kit.labels.expand(kit.context.gate.info, *kit.store.decode(torch.arange(kit.store.items)))


def _teach(kit: Kit) -> None:
    if kit.teacher is None:
        return
    with torch.no_grad():
        rows, items, views = _trained_on(kit)
        named, streams = kit.context.augmentation_named, kit.context.streams.child("labels")
        kit.labels.teach(Lesson(kit.teacher, rows.to(kit.context.device), items, views, named, streams))


class Outer:
    """Part 7: the optimiser of the stored values and labels, with clamping and averaging.

    Args:
        store: stored values.
        labels: label store; its parameters, if any, are a group of their own.
        parts: step sizes and choices.
    """

    def __init__(self, store: Store, labels: LabelStore, parts: PartSettings) -> None:
        self.store, self.clamp, self.decay, self.parts = store, parts.clamp, parts.ema, parts
        groups: list[dict[str, Any]] = [{"params": list(store.params.values()), "lr": parts.lr}]
        if labels.params:
            groups.append({"params": list(labels.params.values()), "lr": parts.label_lr})
        self.optimizer: torch.optim.Optimizer
        if parts.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=parts.lr, momentum=parts.momentum)
        else:
            self.optimizer = torch.optim.Adam(groups, lr=parts.lr, betas=parts.betas)
        for group in self.optimizer.param_groups:
            group["peak"] = group["lr"]
        self.usual_norm = 0.0
        self.average = {k: v.detach().clone() for k, v in store.params.items()} if self.decay else {}
        if self.clamp:
            store.constrain()

    def step(self, rows: Tensor, targets: Tensor, cotangent: Cotangent, number: int) -> None:
        """Push the cotangents through decoder and labels, and make outer step ``number`` (0-based)."""
        if self.parts.schedule == "cosine":
            low, passed = self.parts.lr_floor, number / self.parts.steps
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * passed)))
        self.optimizer.zero_grad()
        rows.backward(cotangent.x.to(rows))
        if cotangent.y is not None:
            targets.backward(cotangent.y.to(targets))
        if self.parts.clip:
            self._clip()
        self.optimizer.step()
        if self.clamp:
            self.store.constrain()
        for name, mean in self.average.items():
            mean.lerp_(self.store.params[name].detach(), 1 - self.decay)

    def _clip(self) -> None:
        """Shorten gradients that are longer than ``clip`` times the usual (RaT-BPTT, section 4: decay .9)."""
        stored = [p for group in self.optimizer.param_groups for p in group["params"]]
        most = self.parts.clip * self.usual_norm if self.usual_norm else math.inf
        norm = min(float(torch.nn.utils.clip_grad_norm_(stored, most)), most)
        self.usual_norm = 0.9 * self.usual_norm + 0.1 * norm if self.usual_norm else norm

    def release(self) -> None:
        """Put the averaged values, if any, in place of the last ones."""
        with torch.no_grad():
            for name, mean in self.average.items():
                self.store.params[name].copy_(mean)


def _assemble(
    gate: Gate,
    domain: Domain,
    parts: PartSettings,
    streams: Streams,
    scope: str,
    classes: Sequence[int] | None,
    center: Mapping[str, Tensor] | None,
    start: Mapping[str, Tensor] | None,
    device: torch.device,
) -> Kit:
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
    context = PoolContext(
        build=lambda: domain.network(network, info),
        gate=gate,
        streams=streams,
        classes=held,
        center=center,
        augmentation=augmentation,
        device=device,
        augmentation_named=lambda name: domain.augmentation(name, info),
        report=lambda what, done, total: manager().hook.ddfed_on_step(event=StepEvent(scope, done, total, {}, what)),
    )
    store = empty_store(parts, info, held)
    _initialise(store, gate, parts, context, start)
    labels = registry().load("labels", parts.labels, "distill.labels")(
        store.classes, info.num_classes, store.rows_per_item, **parts.labels_options
    )
    pool = registry().load("pool", parts.pool, "distill.pool")
    kit = Kit(
        store=store,
        labels=labels,
        # Selection makes no step, so it needs no network at all.
        pool=pool(context, **parts.pool_options) if parts.steps else _NoPool(context),
        sampler=registry().load("sampler", parts.sampler, "distill.sampler")(**parts.sampler_options),
        objective=registry().load("objective", parts.objective, "distill.objective")(
            Precision(parts.bf16, parts.compile), **parts.objective_options
        ),
        outer=Outer(store, labels, parts),
        context=context,
        augmentation=augmentation,
        teacher=trained_network(context, parts.teacher.training(), "teacher") if labels.taught else None,
    )
    if kit.objective.second_order and not domain.capabilities.second_order:
        raise ConfigError(
            f"objective {parts.objective!r} differentiates the network twice, which networks of domain {domain.name!r} "
            f"do not allow. Match features instead (method 'dm')."
        )
    _teach(kit)
    return kit


def empty_store(parts: PartSettings, info: TaskInfo, classes: Sequence[int]) -> Store:
    """The parametrisation of ``parts`` for these classes, with as many items as the budget holds."""
    kind = registry().load("decoder", parts.store, "distill.store")
    per_class = kind.items_per_class(info, parts.ipc, len(classes), **parts.store_options)
    return kind(info, torch.tensor(list(classes)).repeat_interleave(per_class), **parts.store_options)


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
    shape = (store.items, store.seeds_per_item, *gate.info.shape)
    per_class = store.items // len(context.classes)
    if parts.init == "noise":
        store.fill(torch.randn(shape, generator=context.streams.torch("init noise")), context.streams.child("store"))
        return
    selector = registry().load("selector", parts.init, "distill.init")
    data = gate.raw(f"initialisation by {parts.init}")
    rows = select_rows(
        data,
        selector,
        per_class * store.seeds_per_item,
        context,
        parts.init_options,
        top_up=parts.top_up,
        ipc=parts.ipc,
    )
    store.fill(data.batch(rows).inputs.view(shape), context.streams.child("store"))


def _snapshot(kit: Kit, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "store": {k: v.detach() for k, v in kit.store.params.items()},
        "labels": {k: v.detach() for k, v in kit.labels.params.items()},
        "optimizer": kit.outer.optimizer.state_dict(),
        "average": kit.outer.average,
        "usual_norm": kit.outer.usual_norm,
        "pool": kit.pool.state(),
        "sampler": kit.sampler.state(),
        "objective": kit.objective.state(),
        "ledger": kit.context.gate.ledger.to_json(),
    }


def _restore(kit: Kit, tree: Mapping[str, Any]) -> int:
    from ddfed.ledger import Ledger

    with torch.no_grad():
        for name, tensor in kit.store.params.items():
            tensor.copy_(tree["store"][name])
        for name, tensor in kit.labels.params.items():
            tensor.copy_(tree["labels"][name])
    kit.outer.optimizer.load_state_dict(dict(tree["optimizer"]))
    kit.outer.average = {k: v.clone() for k, v in tree["average"].items()}
    kit.outer.usual_norm = float(tree["usual_norm"])
    kit.pool.load(tree["pool"])
    kit.sampler.load(tree["sampler"])
    kit.objective.load(tree["objective"])
    kit.context.gate.ledger.counts = Ledger.from_json(tree["ledger"]).counts
    return int(tree["step"])


__all__ = ["Checkpointing", "Outer", "StepEvent", "distill", "empty_store"]
