"""A central run from settings to summary: load, distil, save, evaluate."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import ddfed
from ddfed.artifact import SyntheticSet
from ddfed.data import Task, TaskInfo
from ddfed.devices import resolve_device, set_threads
from ddfed.distill import Checkpointing, StepEvent, distill, empty_store
from ddfed.domain import Domain, Network
from ddfed.errors import ConfigError, one_of
from ddfed.evaluate import Bench, Measurement, RidgeProtocol, check_baseline, evaluate
from ddfed.gate import PlainGate
from ddfed.hookspecs import hookimpl
from ddfed.kit import check_labels, empty_labels, objective_of
from ddfed.ledger import PrivacyEvent
from ddfed.match import Objective
from ddfed.registry import manager, registry
from ddfed.runs import RunFolder
from ddfed.seeds import Streams, isolated
from ddfed.select import check_budget
from ddfed.settings import DataSettings, DistillSettings, EvaluateSettings, PartSettings


@dataclass
class Watching:
    """Who is told what as a run goes."""

    step: Callable[[StepEvent], None] = lambda _: None
    training: Callable[[str, int, int], None] = lambda *_: None


def load_task(data: DataSettings) -> tuple[Domain, Task]:
    """The domain and its data, cut to the limits.

    Raises:
        UnknownNameError, MissingDependencyError, DataError: before any work is done.
    """
    domain = registry().load("domain", data.domain, "data.domain")()
    task = domain.load(data.dataset, data.root, data.options)
    return domain, task.limit(data.train_limit, data.test_limit)


def check_parts(parts: PartSettings, domain: Domain, info: TaskInfo) -> None:
    """Find what can be known to be wrong before an hour is spent: names, sizes, combinations.

    Raises:
        ConfigError: unknown network, augmentation, engine, pool, store, labels, selector or protocol, or a network
            or store that cannot take the task's items.
    """
    network = parts.network or domain.default_network(info)
    judges = [domain.network(network, info)]
    teachers = [domain.network(name, info) for name in parts.teacher.networks] or judges
    domain.augmentation(parts.augment, info)
    if parts.init != "noise":
        selector = registry().load("selector", parts.init, "distill.init; 'noise' is possible too")
        selector.settle(parts.init_options)
    for kind, name in (
        ("objective", parts.objective),
        ("pool", parts.pool),
        ("labels", parts.labels),
        ("protocol", parts.protocol),
        ("sampler", parts.sampler),
    ):
        registry().get(kind, name, f"distill.{kind}")
    registry().load("sampler", parts.sampler, "distill.sampler")(**parts.sampler_options)
    objective = objective_of(parts)
    pool = registry().load("pool", parts.pool, "distill.pool")
    for net in (teachers if pool.of_teachers else judges) if parts.steps else ():
        _check_network(objective, net, domain, info)
    domain.augmentation(parts.teacher.augment, info)
    store = empty_store(parts, info, range(info.num_classes))
    labels = empty_labels(parts, store, domain)
    check_labels(labels, objective, parts)
    domain.augmentation(labels.options.get("augment", "none"), info)
    labels.expand(info, torch.zeros(0, *info.shape), torch.zeros(0, dtype=torch.int64))


def _check_network(objective: Objective, net: Network, domain: Domain, info: TaskInfo) -> None:
    """Refuse a network that the engine cannot judge with, naming those of the domain that would do."""
    try:
        objective.check(net)
    except ConfigError as error:
        would_do = [name for name in domain.models if _suits(objective, name, domain, info)]
        advice = f" Of domain {domain.name!r} these would do: {one_of(would_do)}." if would_do else ""
        raise ConfigError(f"{error}{advice}") from error


def _suits(objective: Objective, name: str, domain: Domain, info: TaskInfo) -> bool:
    try:
        with isolated(0):
            objective.check(domain.network(name, info))
    except ConfigError:
        return False
    return True


def check_distill(settings: DistillSettings) -> None:
    """`check_parts`, the data, the budget and the evaluation of a central run.

    Raises:
        DdfedError: says what is wrong, before a run folder exists.
    """
    resolve_device(settings.run.device)
    domain, task = load_task(settings.data)
    parts = settings.distill
    check_parts(parts, domain, task.info)
    for network in settings.evaluate.networks:
        domain.network(network, task.info)
    for baseline in settings.evaluate.baselines or domain.default_baselines(task.info):
        check_baseline(baseline)
    if parts.keep.every and task.validation is None:
        raise ConfigError(
            f"distill.keep.every = {parts.keep.every} chooses an iterate by validation rows, and {task.info.dataset!r} "
            f"has none. Set distill.keep.every = 0 for the last iterate."
        )
    if settings.evaluate.protocol:
        registry().get("protocol", settings.evaluate.protocol, "evaluate.protocol")
    if parts.init != "noise" and not parts.top_up:
        held = PlainGate(task.train).held(parts.min_count)
        store = empty_store(parts, task.info, held)
        check_budget(task.train, store.items // max(1, len(held)) * store.seeds_per_item, held, parts.ipc)
    if parts.steps:
        pool = registry().load("pool", parts.pool, "distill.pool")
        pool.check(parts.pool_options, settings.data, domain, PlainGate(task.train), parts.network)


class _Recorder:
    """Writes steps to ``events.jsonl``, thinned so that long runs stay readable."""

    def __init__(self, folder: RunFolder, watching: Watching) -> None:
        self.folder, self.watching = folder, watching

    @hookimpl
    def ddfed_on_step(self, event: StepEvent) -> None:
        every = max(1, event.steps // 200)
        if not event.phase and (event.step % every == 0 or event.step in (1, event.steps)):
            self.folder.event("step", step=event.step, **event.values)
        self.watching.step(event)


def run_distill(
    settings: DistillSettings, folder: RunFolder, watching: Watching | None = None, resume: bool = False
) -> dict[str, Any]:
    """Distil, save the artifact, evaluate it beside its baselines, and write the summary.

    Args:
        settings: complete.
        folder: where the run writes itself down.
        watching: told of steps and training epochs.
        resume: go on from the folder's checkpoint.

    Returns:
        The summary, also in ``summary.json``.
    """
    watching, run = watching or Watching(), settings.run
    threads, device = set_threads(run.threads), resolve_device(run.device)
    domain, task = load_task(settings.data)
    begun = time.perf_counter()
    syn = _distilled(settings, folder, watching, domain, task, device, resume)
    syn.save(folder.path)
    distilled_s = time.perf_counter() - begun
    # A stopped evaluation goes on at the row where it was.
    known = [Measurement.from_json(row) for row in _measured(folder)] if resume else []
    rows = judged(
        syn,
        task,
        domain,
        settings.evaluate,
        settings.method,
        run.seed,
        device,
        watching,
        known,
        lambda row: folder.event("evaluation", **row.to_json()),
    )
    summary = _summary(settings, folder, task, syn, rows, distilled_s, threads, device, domain.facts(syn, task))
    folder.write_summary(summary)
    return summary


def judged(
    syn: SyntheticSet,
    task: Task,
    domain: Domain,
    how: EvaluateSettings,
    name: str,
    seed: int,
    device: torch.device,
    watching: Watching,
    known: Sequence[Measurement] = (),
    on_row: Callable[[Measurement], None] = lambda row: None,
) -> list[Measurement]:
    """The table of a set as a run's settings ask for it; see `ddfed.evaluate.evaluate`."""
    return evaluate(
        syn,
        task,
        domain,
        name=name,
        networks=how.networks,
        protocol=how.protocol,
        epochs=how.epochs,
        repeats=how.repeats,
        baselines=how.baselines,
        teacher_steps=how.teacher_steps,
        streams=Streams(seed).child("evaluate"),
        device=device,
        report=watching.training,
        known=known,
        on_row=on_row,
    )


def _measured(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of the table that a stopped run had finished."""
    found = [event for event in folder.events() if event["kind"] == "evaluation"]
    return [{key: value for key, value in row.items() if key != "kind"} for row in found]


def task_facts(task: Task) -> dict[str, Any]:
    """What a summary says of the data."""
    info = task.info
    return {
        "domain": info.domain,
        "dataset": info.dataset,
        "classes": list(info.classes),
        "train": len(task.train),
        "test": len(task.test),
        "source": info.source,
    }


def versions() -> dict[str, str]:
    """What a summary says of the programs."""
    return {"ddfed": ddfed.__version__, "torch": torch.__version__, "python": platform.python_version()}


def _distilled(
    settings: DistillSettings,
    folder: RunFolder,
    watching: Watching,
    domain: Domain,
    task: Task,
    device: torch.device,
    resume: bool,
) -> SyntheticSet:
    gate = PlainGate(task.train, scope=task.info.dataset, chunk=settings.distill.chunk)
    saved = folder.load_checkpoint() if resume and folder.has_checkpoint else None
    if resume:
        done = saved["step"] if saved else 0
        finished = done == settings.distill.steps
        folder.truncate_events(
            lambda e: (e["kind"] == "step" and e["step"] <= done) or (e["kind"] == "evaluation" and finished)
        )
    recorder = _Recorder(folder, watching)
    manager().register(recorder)
    try:
        syn = distill(
            gate,
            domain,
            settings.distill,
            Streams(settings.run.seed),
            device=device,
            checkpointing=Checkpointing(folder.checkpoint, settings.run.checkpoint_every, saved),
            judge=_tried(settings, task, domain, gate, device),
        )
    finally:
        manager().unregister(recorder)
    return syn.with_provenance(
        recipe=settings.method,
        settings=settings.model_dump(mode="json", exclude={"run": {"out", "name"}}),
        data_sha256=task.train.content_hash,
        ddfed=ddfed.__version__,
    )


def _tried(
    settings: DistillSettings, task: Task, domain: Domain, gate: PlainGate, device: torch.device
) -> Callable[[SyntheticSet], float] | None:
    """How good a set is on the validation rows: the accuracy of networks trained on it as its protocol says."""
    keep, rows = settings.distill.keep, task.validation
    if not keep.every or rows is None:
        return None
    # Validation rows judge here, so they cannot choose an epoch as well.
    trial, networks = replace(task, test=rows, validation=None), settings.evaluate.networks[:1]

    def judge(syn: SyntheticSet) -> float:
        gate.ledger.append(PrivacyEvent("raw", "accuracy on validation rows, which chooses the iterate", gate.scope))
        streams = Streams(settings.run.seed).child("keep")
        bench = Bench(syn, trial, domain, repeats=keep.repeats, baselines=(), streams=streams, device=device)
        # A regression has no epochs to cut.
        epochs = None if isinstance(bench.recipe(), RidgeProtocol) else keep.epochs
        return bench.tables(networks, epochs=epochs)[0].mean

    return judge


def _summary(
    settings: DistillSettings,
    folder: RunFolder,
    task: Task,
    syn: SyntheticSet,
    rows: list[Measurement],
    distilled_s: float,
    threads: int,
    device: torch.device,
    facts: dict[str, Any],
) -> dict[str, Any]:
    recipe = registry().load("recipe", settings.method)
    published = [vars(p) for p in recipe.published if (p.dataset, p.ipc) == (task.info.dataset, settings.distill.ipc)]
    return {
        "kind": "central",
        "status": "finished",
        "task": task_facts(task),
        "method": settings.method,
        "title": recipe.title,
        "citation": recipe.citation,
        "departures": list(recipe.departures),
        "seed": settings.run.seed,
        "settings": settings.model_dump(mode="json"),
        "losses": [[e["step"], e["loss"]] for e in folder.events() if e["kind"] == "step"],
        "evaluation": [row.to_json() for row in rows],
        "published": published,
        "artifact": syn.content_hash,
        "items": len(syn),
        "stored_bytes": syn.store.size_bytes,
        "facts": facts,
        "privacy": dict(syn.privacy),
        "seconds": {"distil": round(distilled_s, 2), "evaluate": round(sum(r.seconds for r in rows), 2)},
        "machine": {"threads": threads, "device": str(device)},
        "versions": versions(),
    }
