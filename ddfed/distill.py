"""THE LOOP. Every method is a choice of parts for it; none has a loop of its own.

store -> decode -> label -> augment -> objective(pool, real rows) -> cotangent -> outer step
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddfed.artifact import SyntheticSet
from ddfed.devices import keep_memory, memory_advice
from ddfed.domain import Domain
from ddfed.errors import DivergedError
from ddfed.gate import Gate
from ddfed.keeping import Keeper
from ddfed.kit import Kit, StepEvent, assemble, empty_store
from ddfed.match import Cotangent, Judgement
from ddfed.registry import manager
from ddfed.seeds import Streams
from ddfed.settings import PartSettings


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


def distill(
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
    checkpointing: Checkpointing | None = None,
    judge: Callable[[SyntheticSet], float] | None = None,
) -> SyntheticSet:
    """Distil what the gate answers for into a synthetic set.

    Args:
        gate: the one way to real data.
        domain: modality adapter.
        parts: the eight parts.
        streams: every random number of the run hangs below these.
        scope: name for observers and messages.
        classes: classes to distil; those the gate holds by default.
        center: weights for the pools around given weights, such as ``exact`` and ``ball``.
        public: what is known beside the rows behind the gate, by name, for engines that use it
            (`ddfed.match.Judgement.public`).
        start: stored values to start from instead of ``parts.init`` (names of the store's tensors).
        device: where networks and rows live; the CPU by default.
        checkpointing: how to save and resume; a resumed run equals the uninterrupted one.
        judge: how good a set is on validation rows, for ``parts.keep``; None where there are none.

    Returns:
        The set, with its recipe, data facts and privacy events in the card.

    Raises:
        BudgetError: fewer real items than the initialisation needs.
        DataError: no class has enough rows, or a class asked for has none.
        DivergedError: the loss stopped being finite.
        MemoryExceededError: a step did not fit in memory.
    """
    keep_memory()
    keeper = Keeper(parts, judge and (lambda kit, step: judge(_released(kit, gate))))
    saved = checkpointing.resume if checkpointing else None
    taught = saved.get("teachers", {}) if saved else {}
    with memory_advice(f"{scope}: setting up", _less_memory(parts)):
        kit = assemble(
            gate,
            domain,
            parts,
            streams,
            scope=scope,
            classes=classes,
            center=center,
            public=public,
            start=start,
            device=device,
            taught=taught,
        )
    first = kit.restore(saved) if saved else 0
    keeper.load(saved["keeper"] if saved else {})
    for stage in range(kit.stage, kit.stages.count):
        with memory_advice(f"{scope}: setting up stage {stage + 1}", _less_memory(parts)):
            if stage != kit.stage:
                kit.enter(stage)
        begin, end = kit.stages.steps(stage, parts.steps)
        for step in range(max(begin, first), end):
            with memory_advice(f"{scope}: outer step {step + 1}", _less_memory(parts)):
                loss = outer_step(kit, kit.now, gate, kit.context.streams, step - begin, scope)
                kit.pool.advance(step - begin, partial(kit.decoded, step - begin), kit.labels.loss)
            manager().hook.ddfed_on_step(event=StepEvent(scope, step + 1, parts.steps, {"loss": loss}))
            keeper.look(kit, step + 1)
            if checkpointing and ((step + 1) % checkpointing.every == 0 or step + 1 == parts.steps):
                checkpointing.save({**kit.snapshot(step + 1), "keeper": keeper.state()})
        kit.leave()
    keeper.restore(kit)
    with memory_advice(f"{scope}: labels after the last step", _less_memory(parts)):
        kit.teach(finished=True)
    for stored in (*kit.store.params.values(), *kit.labels.params.values()):
        if not bool(torch.isfinite(stored).all()):
            raise DivergedError(
                f"{scope}: the stored values are not finite after outer step {parts.steps} (lr {parts.lr}, label_lr "
                f"{parts.label_lr}). Lower distill.lr or distill.label_lr, or set distill.clamp = true."
            )
    return _released(kit, gate).with_provenance(**keeper.provenance)


def _released(kit: Kit, gate: Gate) -> SyntheticSet:
    """The set as the kit holds it."""
    return SyntheticSet(
        info=gate.info,
        store=kit.store.released(),
        labels=kit.labels,
        protocol=kit.parts.protocol,
        training=kit.training() if kit.asked else kit.objective.training(),
        provenance={
            "settings": kit.parts.model_dump(mode="json"),
            "seed": kit.streams.root,
            "torch": torch.__version__,
        },
        privacy={"statement": gate.ledger.statement(), "events": gate.ledger.to_json()},
    )


def _less_memory(parts: PartSettings) -> str:
    return (
        f"Lower distill.chunk (real rows per pass, now {parts.chunk}), the engine's rows and chunks in "
        f"distill.objective_options, or distill.ipc (now {parts.ipc}); or step class by class "
        f"(--set distill.scope=sequential)."
    )


def outer_step(kit: Kit, parts: PartSettings, gate: Gate, streams: Streams, step: int, scope: str) -> float:
    """One step of the outer loop: judged together, or class by class with a step after each."""
    net = kit.pool.draw(step)
    all_classes = kit.context.classes
    total = 0.0
    for classes in [all_classes] if parts.scope == "joint" else [(c,) for c in all_classes]:
        seen = kit.stages.seen_in(kit.stage)
        items = torch.nonzero(torch.isin(kit.labels.classes, torch.tensor(classes)) & seen).flatten()
        rows, items, views = kit.judged(items, step, *(classes if parts.scope == "sequential" else ()))
        # Decoded once; objectives see a leaf, and what they return is pushed through the decoder.
        x = rows.detach().to(kit.context.device).requires_grad_()
        targets = kit.labels.targets(items, views)
        y = targets.detach().to(kit.context.device).requires_grad_(targets.requires_grad)
        cotangent = kit.objective(
            Judgement(
                net=net,
                x=x,
                y=y,
                row_class=kit.labels.classes[items],
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
                progress=step / parts.steps,
                vectors=kit.labels.vectors,
                items=items,
                teachers=kit.teachers,
                represent=kit.represent if kit.labels.represents else None,
                coupled=kit.store.coupled,
                public=kit.context.public,
            )
        )
        if not math.isfinite(cotangent.loss) or not bool(torch.isfinite(cotangent.x).all()):
            raise DivergedError(
                f"{scope}: the loss of outer step {step + 1} is {cotangent.loss} (lr {parts.lr}, network "
                f"{parts.network!r}, store {parts.store!r}). Lower distill.lr, or set distill.clamp = true."
            )
        if not cotangent.skip:
            kit.outer.step(rows, targets, _of_this_stage(kit, items, cotangent), step)
        total += cotangent.loss
    return total


def _of_this_stage(kit: Kit, items: Tensor, cotangent: Cotangent) -> Cotangent:
    """Nothing for the rows of earlier stages; a new optimiser without a gradient leaves them as they are."""
    made = kit.stages.made_in(kit.stage)[items].to(cotangent.x.device)
    if bool(made.all()):
        return cotangent

    def of_made(values: Tensor) -> Tensor:
        return values * made.view(-1, *[1] * (values.ndim - 1)).to(values)

    return replace(cotangent, x=of_made(cotangent.x), y=None if cotangent.y is None else of_made(cotangent.y))


__all__ = ["Checkpointing", "StepEvent", "distill", "empty_store", "outer_step"]
