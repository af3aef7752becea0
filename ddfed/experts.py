"""Making, listing and checking expert buffers: what `ddfed experts` does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddfed.central import load_task
from ddfed.data import Task
from ddfed.devices import keep_memory, memory_advice, resolve_device, set_threads
from ddfed.domain import Domain
from ddfed.errors import ArtifactError, RunFolderError
from ddfed.gate import PlainGate
from ddfed.pool import PoolContext
from ddfed.pool.buffer import CARD, Buffer, make_card, snapshot_of
from ddfed.pool.experts import Cost, curriculum, record, rows_of
from ddfed.progress import human_bytes
from ddfed.seeds import Streams, isolated
from ddfed.settings import ExpertSettings


@dataclass(frozen=True)
class Plan:
    """What is left to be made.

    Args:
        settings: what was asked for.
        domain: of the data.
        task: the data.
        buffer: where experts go.
        missing: their numbers.
        cost: of these.
    """

    settings: ExpertSettings
    domain: Domain
    task: Task
    buffer: Buffer
    missing: tuple[int, ...]
    cost: Cost


def plan(settings: ExpertSettings) -> Plan:
    """Look at data, folder and disk before an hour is spent; makes the folder with its card.

    Raises:
        ConfigError: wrong names, or a folder of other experts.
        RunFolderError: the folder cannot be written, or the disk has no room for all.
    """
    resolve_device(settings.run.device)
    domain, task = load_task(settings.data)
    network = settings.network or domain.default_network(task.info)
    domain.augmentation(settings.training.augment, task.info)
    with isolated(0):
        net = domain.network(network, task.info)
    how, values = settings.training, snapshot_of(net).numel()
    card = make_card(
        task.info,
        task.train.content_hash,
        len(task.train),
        network,
        net,
        how.model_dump(mode="json"),
        how.epochs + 1,
        settings.dtype,
        settings.run.seed,
    )
    whole = Cost.of(how, len(task.train), settings.count, values, settings.dtype)
    fresh = not (settings.folder / CARD).exists()
    if fresh:
        _check_room(settings.folder, whole.bytes)
    buffer = Buffer.create(settings.folder, card)
    kept = [n for n in buffer.numbers if not buffer.damage(n, whole=False)]
    missing = tuple(n for n in range(settings.count) if n not in kept)
    cost = Cost.of(how, len(task.train), len(missing), values, settings.dtype)
    _check_room(settings.folder, cost.bytes)
    return Plan(settings, domain, task, buffer, missing, cost)


def make(work: Plan, report: Callable[[int, int], None] = lambda done, total: None) -> Buffer:
    """Train the experts that are missing; each is written when it is done, so an interrupted making goes on.

    Args:
        work: from `plan`.
        report: told (training steps done, steps in all).

    Raises:
        DivergedError: an expert's weights stopped being finite.
        RunFolderError: no room; experts that were written stay.
    """
    settings, info = work.settings, work.task.info
    keep_memory()
    set_threads(settings.run.threads)
    gate = PlainGate(work.task.train, scope=info.dataset, chunk=settings.chunk)
    done = 0

    def told(what: str, step: int, steps: int) -> None:
        nonlocal done
        if "scorer" not in what:
            done += 1
            report(done, work.cost.steps)

    ctx = PoolContext(
        build=lambda: work.domain.network(work.buffer.card["network"]["name"], info),
        gate=gate,
        streams=Streams(settings.run.seed),
        classes=gate.held(),
        device=resolve_device(settings.run.device),
        augmentation_named=lambda name: work.domain.augmentation(name, info),
        report=told,
    )
    rows = rows_of(gate, ctx.classes)
    with memory_advice("training experts", f"Lower chunk (real rows per pass, now {settings.chunk})."):
        among = curriculum(ctx, settings.training, rows) if work.missing else lambda epoch: None
        for number in work.missing:
            work.buffer.write(number, record(ctx, settings.training, number, rows, among))
    return work.buffer


def _check_room(folder: Path, needed: int) -> None:
    """Raise `RunFolderError` when the disk has less room than that."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise RunFolderError(
            f"the experts take {human_bytes(needed)}, and {there} has room for {human_bytes(free)}. Make fewer "
            f"(--count), fewer epochs, or take a folder on another disk."
        )


def facts(buffer: Buffer) -> dict[str, Any]:
    """What lists show of a buffer."""
    card = buffer.card
    return {
        "folder": str(buffer.folder),
        "data": "/".join((card["task"]["domain"], card["task"]["dataset"])),
        "whitening": card["space"].get("whitening") or None,
        "rows": card["data"]["rows"],
        "network": card["network"]["name"],
        "experts": buffer.experts,
        "epochs": buffer.snapshots - 1,
        "flat": bool(card["training"].get("rho")),
        "storage": card["dtype"],
        "bytes": buffer.experts * buffer.bytes,
    }


def find(base: Path) -> list[Buffer]:
    """The buffers in a folder, itself or one or two levels below."""
    cards = [path for pattern in ("", "*/", "*/*/") for path in sorted(base.glob(pattern + CARD))]
    found = []
    for path in cards:
        try:
            found.append(Buffer.open(path.parent))
        except ArtifactError:
            continue  # cards of sets, and of other versions
    return found


def check(folder: Path) -> dict[str, Any]:
    """Read all of a buffer.

    Returns:
        `facts`, and ``damaged``: file name -> what is wrong with it.

    Raises:
        ArtifactError: there is no buffer.
    """
    buffer = Buffer.open(folder)
    wrong = {buffer.path(number).name: buffer.damage(number) for number in buffer.numbers}
    known = {CARD, *wrong}
    foreign = {
        path.name: "does not belong to a buffer"
        for path in sorted(folder.iterdir())
        if path.name not in known and not path.name.startswith(".")
    }
    return {**facts(buffer), "damaged": {**{name: why for name, why in wrong.items() if why}, **foreign}}
