"""Pool X: two snapshots of a network that was trained on real data, from a buffer or made beforehand."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddfed.config import Layer, resolve
from ddfed.data import Batch, TaskInfo
from ddfed.domain import Network
from ddfed.errors import ConfigError, DivergedError, suggest
from ddfed.gate import Gate, Query
from ddfed.pool.base import ModelPool, PoolContext, frozen, trained_network
from ddfed.pool.buffer import (
    CARD,
    OF_THE_DATA,
    TYPES,
    Buffer,
    Recorded,
    Trajectories,
    differences,
    make_card,
    put_snapshot,
    snapshot_of,
)
from ddfed.progress import human_bytes
from ddfed.settings import DataSettings, ExpertTraining

if TYPE_CHECKING:
    from ddfed.domain import Domain

LINES = ("none", "time", "distance")
#: Rows that an epoch (0-based) may draw, None for all.
Among = Callable[[int], Tensor | None]


# --- making experts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What some experts cost.

    Args:
        steps: of training, all experts together.
        batch: rows of a step.
        bytes: of what is kept.
    """

    steps: int
    batch: int
    bytes: int

    @classmethod
    def of(cls, how: ExpertTraining, rows: int, count: int, values: int, dtype: str = "float16") -> Cost:
        """Of ``count`` experts with ``values`` values each on ``rows`` rows."""
        size = count * (how.epochs + 1) * values * TYPES[dtype].itemsize
        return cls(count * how.epochs * steps_per_epoch(rows, how), how.batch, size)

    def __str__(self) -> str:
        return f"{self.steps:,} training steps of {self.batch} rows, {human_bytes(self.bytes)}"


def steps_per_epoch(rows: int, how: ExpertTraining) -> int:
    return how.passes * max(1, math.ceil(rows / how.batch))


def rows_of(gate: Gate, classes: tuple[int, ...]) -> int:
    """Real rows of some classes."""
    return int(gate.counts()[list(classes)].sum())


def record(ctx: PoolContext, how: ExpertTraining, number: int, rows: int, among: Among) -> Tensor:
    """Train an expert and keep a snapshot before its training and after every epoch, (epochs + 1, values).

    An epoch is ``passes`` times ceil(rows / batch) steps, whose batches the gate draws anew each time.

    Args:
        ctx: networks, gate, streams.
        how: how it is trained.
        number: which expert; its randomness hangs below ("expert", number).
        rows: real rows.
        among: see `curriculum`.

    Raises:
        DivergedError: weights stopped being finite.
    """
    per_epoch, found = steps_per_epoch(rows, how), list[Tensor]()

    def look(step: int, net: Network) -> None:
        if step % per_epoch:
            return
        found.append(snapshot_of(net).cpu())
        if not bool(torch.isfinite(found[-1]).all()):
            raise DivergedError(
                f"expert {number} diverged in epoch {step // per_epoch} (lr {how.lr}, rho {how.rho}). Lower the lr of "
                f"its training."
            )

    training = how.training(how.epochs * per_epoch)
    trained_network(ctx, training, "expert", number, on_step=look, among=lambda step: among(step // per_epoch))
    return torch.stack(found)


def curriculum(ctx: PoolContext, how: ExpertTraining, rows: int) -> Among:
    """Which rows an epoch draws from: all, or those that PAD shows it.

    Each class is ordered by the error |softmax - onehot| of a network trained for a tenth of the epochs. In the first
    fifth of the epochs the easiest share grows from 0.75 to 1; in the second all rows are shown; in the third the
    easiest tenth is left out, and the easiest fifth after it.

    Source: Li et al., Prioritize Alignment in Dataset Distillation, 2024, section 3.2.
    """
    if not how.curriculum:
        return lambda epoch: None
    few = max(1, how.epochs // 10) * steps_per_epoch(rows, how)
    scorer = trained_network(ctx, how.training(few), "expert", "scorer")

    def errors(batch: Batch) -> Tensor:
        classes = batch.classes.to(ctx.device)
        wrong = scorer(batch.inputs.to(ctx.device)).softmax(1)
        wrong[torch.arange(len(classes)), classes] -= 1
        return wrong.norm(dim=1, keepdim=True).cpu()

    found = ctx.gate.each(Query("difficulty", ctx.classes), errors, ctx.streams.torch("expert", "difficulty"))
    ordered = [
        found.rows[found.groups == group][found.values[found.groups == group, 0].argsort(stable=True)]
        for group in range(len(ctx.classes))
    ]

    def among(epoch: int) -> Tensor | None:
        low, high = shown(epoch / how.epochs)
        return torch.cat([members[int(low * len(members)) : math.ceil(high * len(members))] for members in ordered])

    return among


def shown(passed: float) -> tuple[float, float]:
    """Least and greatest rank of difficulty that is shown when a share ``passed`` of the training is over."""
    if passed < 0.2:
        return 0.0, 0.75 + 0.25 * passed / 0.2
    return (0.0 if passed < 0.4 else 0.1 if passed < 0.6 else 0.2), 1.0


def make_command(folder: Path, data: DataSettings, network: str, count: int, how: ExpertTraining) -> str:
    """The command that makes such experts."""
    words = ["ddfed", "experts", "make", str(folder), "--domain", data.domain, "--dataset", data.dataset]
    words += ["--data", str(data.root)] if data.root else []
    words += ["--network", network] if network else []
    words += ["--count", str(count), "--epochs", str(how.epochs)]
    given = {f"data.options.{name}": value for name, value in data.options.items()}
    given |= {"data.train_limit": data.train_limit} if data.train_limit else {}
    plain = ExpertTraining(epochs=how.epochs)
    given |= {f"training.{k}": v for k, v in how.model_dump().items() if v != getattr(plain, k)}
    for key, value in given.items():
        words += ["--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join(words)


# --- the pool ----------------------------------------------------------------------------------------------------


class ExpertPool(ModelPool):
    """X: a snapshot of an expert, and as its expert the same network some epochs later.

    Source: Cazenavette et al., MTT, CVPR 2022, algorithm 1; the growing window is DATM's (Guo et al., ICLR 2024,
    section 3.3), the line MCT's (Zhong et al., 2024).

    Options:
        buffer: folder of an expert buffer (`ddfed experts make`); ``{data}`` in it stands for the data set and its
            whitening. Empty: experts are trained beforehand, in memory.
        experts: how many are used, in shuffled turns; so many are made where there is no buffer.
        make: how experts are trained (`ddfed.settings.ExpertTraining`); of a buffer, what the command for a missing
            one says.
        span: epochs from start to target.
        min_start, max_start: the start is an epoch from ``min_start`` to below ``max_start``.
        grow: [from, over]: the upper end is ``from`` at first and grows to ``max_start`` over so many outer steps;
            None for never.
        line: ``none``; or a straight line between an expert's first and last snapshot stands in for it, and starts lie
            between epochs too: ``time``, it is gone along evenly, or ``distance``, as far after so many epochs as the
            expert itself had come.

    Raises:
        ConfigError: no buffer there (says the command that makes it, and its cost), one of other data or another
            network or of another training (says what differs), too few experts, or a window that leaves it.
        ArtifactError: a file of the buffer is damaged.
    """

    name = "X"
    defaults = {
        "buffer": "", "experts": 3, "make": {}, "span": 2, "min_start": 0, "max_start": 20, "grow": None,
        "line": "none",
    }  # fmt: skip

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        how = _checked(self.options)
        self._net, self._expert = frozen(ctx.fresh("expert", 0)), ctx.fresh("expert", 0).eval().requires_grad_(False)
        self._from: Trajectories
        if self.options["buffer"]:
            info = ctx.gate.info
            whitening = {"whitening": info.space.whitening} if info.space.whitening else {}
            data = DataSettings(domain=info.domain, dataset=info.dataset, options=whitening)
            self._from = _opened(self.options, how, data, info, ctx.gate, ctx.classes, "", self._net)
        else:
            rows = rows_of(ctx.gate, ctx.classes)
            among = curriculum(ctx, how, rows)
            self._from = Recorded([record(ctx, how, n, rows, among) for n in range(self.options["experts"])])
        self._lengths: dict[int, list[float]] = {}

    @classmethod
    def check(cls, options: Mapping[str, Any], data: DataSettings, domain: Domain, gate: Gate, network: str) -> None:
        settled = {**cls.defaults, **options}
        how = _checked(settled)
        domain.augmentation(how.augment, gate.info)
        if settled["buffer"]:
            net = domain.network(network or domain.default_network(gate.info), gate.info)
            _opened(settled, how, data, gate.info, gate, gate.held(), network, net)

    @classmethod
    def prepared(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        return {**options, "buffer": ""}

    def draw(self, step: int) -> Network:
        expert = self._turn(step)
        pick = self.ctx.streams.torch("experts", "start", step)
        low, high = self.options["min_start"], self.upper(step)
        if self.options["line"] == "none":
            start = int(torch.randint(low, high, (1,), generator=pick))
            ends = [self._from.snapshot(expert, at) for at in (start, start + self.options["span"])]
        else:
            time = low + (high - low) * float(torch.rand((), generator=pick))
            ends = self._on_line(expert, [time, time + self.options["span"]])
        put_snapshot(self._net, ends[0])
        put_snapshot(self._expert, ends[1])
        return self._net

    def upper(self, step: int) -> int:
        """The epoch below which a start of this step lies."""
        if self.options["grow"] is None:
            return int(self.options["max_start"])
        begin, over = self.options["grow"]
        last = self.options["max_start"]
        return min(begin + (last - begin) * step // over, last)

    @property
    def expert(self) -> Network:
        return self._expert

    def trained(self) -> Iterator[Network]:
        for expert in range(self.options["experts"]):
            put_snapshot(self._expert, self._from.snapshot(expert, -1))
            yield self._expert

    def _turn(self, step: int) -> int:
        """Which expert a step follows: all in a random order, then in another."""
        turn, place = divmod(step, self.options["experts"])
        generator = self.ctx.streams.torch("experts", "order", turn)
        return int(torch.randperm(self.options["experts"], generator=generator)[place])

    def _on_line(self, expert: int, times: list[float]) -> list[Tensor]:
        first, last = self._from.snapshot(expert, 0), self._from.snapshot(expert, -1)
        return [torch.lerp(first, last, self._share(expert, time)) for time in times]

    def _share(self, expert: int, time: float) -> float:
        """How far along the line an expert is after so many epochs."""
        final = self._from.snapshots - 1
        if self.options["line"] == "time" or time >= final:
            return min(time / final, 1.0)
        if expert not in self._lengths:
            self._lengths[expert] = self._from.lengths(expert)
        before, after = self._lengths[expert][int(time) : int(time) + 2]
        return before + (time - int(time)) * (after - before)


def _checked(options: Mapping[str, Any]) -> ExpertTraining:
    """How experts are made, if the options mean something; raises `ConfigError`."""
    how = resolve(ExpertTraining, [Layer("distill.pool_options.make", options["make"])]).settings
    if options["line"] not in LINES:
        raise ConfigError(
            f"pool 'X' has no line {options['line']!r}.{suggest(str(options['line']), LINES)} Possible: "
            f"{', '.join(map(repr, LINES))}"
        )
    low, high, grow = options["min_start"], options["max_start"], options["grow"]
    if options["experts"] < 1 or options["span"] < 1:
        raise ConfigError(
            f"pool 'X': experts and span must be 1 or more, got {options['experts']} and {options['span']}"
        )
    if not 0 <= low < high:
        raise ConfigError(f"pool 'X': starts lie from min_start to below max_start; got {low} and {high}")
    if grow is not None and not (len(grow) == 2 and low < grow[0] <= high and grow[1] >= 1):
        raise ConfigError(
            f"pool 'X': grow is [from, over], from above min_start ({low}) up to max_start ({high}) and over at least "
            f"one outer step; got {grow}"
        )
    if not options["buffer"]:
        _check_window(options, how.epochs, "distill.pool_options.make.epochs")
    return how


def _check_training(buffer: Buffer, how: ExpertTraining, folder: Path) -> None:
    """Refuse experts that were trained in another way than the run says; `_check_window` looks at their length."""
    made, wanted = buffer.card["training"], how.model_dump(mode="json", exclude={"epochs"})
    unlike = {key: made.get(key) for key, value in wanted.items() if made.get(key) != value}
    if unlike:
        differs = "; ".join(f"{key} {value} there, {wanted[key]} here" for key, value in unlike.items())
        taken = " ".join(f"--set distill.pool_options.make.{key}={value}" for key, value in unlike.items())
        raise ConfigError(
            f"the experts in {folder} were trained otherwise than this run says ({differs}). Take another folder "
            f"(distill.pool_options.buffer), or take these all the same by\n  {taken}"
        )


def _check_window(options: Mapping[str, Any], epochs: int, where: str) -> None:
    most = epochs - options["span"] + 1
    if options["max_start"] > most:
        raise ConfigError(
            f"pool 'X': a start below {options['max_start']} and {options['span']} epochs after it leave the {epochs} "
            f"epochs that the experts were trained ({where}). Lower max_start to {most} or less, or train them longer."
        )


def _opened(
    options: Mapping[str, Any],
    how: ExpertTraining,
    data: DataSettings,
    info: TaskInfo,
    gate: Gate,
    classes: tuple[int, ...],
    network: str,
    net: Network,
) -> Buffer:
    """The buffer that the options name, if it was made from these data with this network; see `ExpertPool`."""
    used = "-".join(filter(None, [info.dataset, info.space.whitening]))
    folder, count, rows = Path(options["buffer"].replace("{data}", used)), options["experts"], rows_of(gate, classes)
    command, elsewhere = (make_command(place, data, network, count, how) for place in (folder, Path("FOLDER")))
    if not (folder / CARD).exists():
        values = snapshot_of(net).numel()
        raise ConfigError(
            f"there is no expert buffer in {folder}. Make it by\n  {command}\n({Cost.of(how, rows, count, values)}); "
            f"or lower distill.pool_options.experts first, or train a few in memory at the start of every run "
            f"(--set distill.pool_options.buffer= --set distill.pool_options.experts=3)."
        )
    buffer = Buffer.open(folder)
    mine = make_card(info, gate.fingerprint(), rows, network, net, {}, 0, "float16", 0)
    unlike = differences(buffer.card, mine, OF_THE_DATA)
    if unlike:
        raise ConfigError(
            f"the experts in {folder} do not fit this run: {'; '.join(unlike)}. Take another folder "
            f"(distill.pool_options.buffer), or make such experts by\n  {elsewhere}"
        )
    _check_training(buffer, how, folder)
    if buffer.experts < count:
        raise ConfigError(
            f"{count} experts are asked for and {folder} has {buffer.experts}. Make the others by\n  {command}\nor use "
            f"fewer (--set distill.pool_options.experts={buffer.experts})."
        )
    _check_window(options, buffer.snapshots - 1, str(folder))
    buffer.check_files()
    return buffer
