"""Labels that a network trained on real data gives: soft labels of rows, of their windows, of augmented views."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.domain import Draw, Network
from ddfed.errors import ArtifactError, ConfigError
from ddfed.store.base import view_of
from ddfed.store.labels.base import LabelStore, Lesson, Replay, checked_options, stored_classes, stored_values


def answers(teacher: Network, rows: Tensor, chunk: int = 256) -> Tensor:
    """Logits of ``rows``, (rows, classes), on the CPU."""
    with torch.no_grad():
        return torch.cat([teacher(part).float().cpu() for part in rows.split(chunk)])


class TeacherLabels(LabelStore):
    """The teacher's logits of every decoded row, consumed by soft cross-entropy at a temperature.

    -sum softmax(t / T) log softmax(z / T), without the factor T^2 of Hinton et al. (as the decoupled line).

    Options:
        temperature: T, of both sides.
    """

    name = "teacher"
    loss_name = "soft cross-entropy of softmax(logits / temperature)"
    defaults = {"temperature": 1.0}
    taught = True

    def __init__(self, classes: Tensor, num_classes: int, views: int = 1, **options: Any) -> None:
        super().__init__(classes, num_classes, views, **options)
        if not self.options["temperature"] > 0:
            raise ConfigError(
                f"label store {self.name!r}: temperature must be above 0, got {self.options['temperature']}"
            )
        self._logits: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """(items, views, classes).

        Raises:
            ConfigError: nobody has taught these labels yet.
        """
        if self._logits is None:
            raise ConfigError(f"label store {self.name!r} holds a teacher's answers; call teach() first")
        return self._logits

    def teach(self, lesson: Lesson) -> None:
        views = int(lesson.views.max()) + 1 if len(lesson.views) else 1
        logits = torch.zeros(len(self.classes), views, self.num_classes)
        logits[lesson.items, lesson.views] = answers(lesson.teacher, lesson.rows)
        self._logits = logits

    def targets(self, items: Tensor, views: Tensor | None = None) -> Tensor:
        return self.logits[items, torch.zeros_like(items) if views is None else views]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        temperature = self.options["temperature"]
        return -((targets / temperature).softmax(1) * (logits / temperature).log_softmax(1)).sum(1)

    def vectors(self, targets: Tensor) -> Tensor:
        return (targets / self.options["temperature"]).softmax(1) - 1 / self.num_classes

    def check_rows(self, info: TaskInfo, views: int) -> None:
        if self.logits.shape[1] != views:
            raise ArtifactError(
                f"label store {self.name!r} holds {self.logits.shape[1]} labels per item, "
                f"but {views} rows of an item are trained on"
            )

    def tensors(self) -> dict[str, Tensor]:
        return {"classes": self.classes, "logits": self.logits}

    @classmethod
    def load(cls, tensors: dict[str, Tensor], num_classes: int, **options: Any) -> LabelStore:
        store = cls(stored_classes(tensors, num_classes), num_classes, **checked_options(cls, options))
        store._logits = stored_values(tensors, cls.name, "logits", (len(store.classes), None, num_classes))
        return store


class GiftLabels(TeacherLabels):
    """The teacher's probabilities refined by the hard class, consumed by cosine distance.

    loss = 1 - cos(z, y), y = p / |p| + refine * s / |s|, with p the teacher's softmax and s the one-hot class
    smoothed by ``smoothing``. A matter of the evaluation alone, and nearly indifferent to its optimiser.

    Source: Shang et al., GIFT: Unlocking Full Potential of Labels in Distilled Dataset at Near-zero Cost, ICLR 2025.

    Options:
        temperature: of the teacher's softmax.
        refine: weight of the smoothed class.
        smoothing: share of the smoothed class that the other classes have together.
    """

    name = "gift"
    loss_name = "1 - cosine similarity to the refined label"
    defaults = {"temperature": 1.0, "refine": 0.1, "smoothing": 0.1}

    def __init__(self, classes: Tensor, num_classes: int, views: int = 1, **options: Any) -> None:
        super().__init__(classes, num_classes, views, **options)
        if not 0 <= self.options["smoothing"] < 1 or self.options["refine"] < 0:
            raise ConfigError(
                f"label store 'gift': smoothing must lie in [0, 1) and refine not below 0, got "
                f"{self.options['smoothing']} and {self.options['refine']}"
            )

    def targets(self, items: Tensor, views: Tensor | None = None) -> Tensor:
        taught = (super().targets(items, views) / self.options["temperature"]).softmax(1)
        smoothing = self.options["smoothing"]
        own = F.one_hot(self.classes[items], self.num_classes).to(taught)
        smooth = own * (1 - smoothing) + (1 - own) * smoothing / max(1, self.num_classes - 1)
        return F.normalize(taught) + self.options["refine"] * F.normalize(smooth)

    @staticmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(logits, targets)

    def vectors(self, targets: Tensor) -> Tensor:
        return targets - targets.mean(1, keepdim=True)


class DenseLabels(TeacherLabels):
    """The teacher's logits of every row and of a fixed grid of its windows; all of them are trained on.

    A window is a part of the row, ``share`` of its length along each cell axis, resized to the whole. The
    windows are made from the rows when they are needed; what is stored is ``grid ** axes`` more labels per row.

    Source: Kang et al., Label-Augmented Dataset Distillation, WACV 2025. Its constants are taken as reported
    there (five by five windows), not checked against code.

    Options:
        temperature: as in `TeacherLabels`.
        grid: windows along each cell axis, evenly spaced from one end to the other.
        share: length of a window, in (0, 1].
    """

    name = "dense"
    loss_name = "soft cross-entropy of softmax(logits / temperature), on rows and on windows of them"
    defaults = {"temperature": 1.0, "grid": 5, "share": 0.625}

    def __init__(self, classes: Tensor, num_classes: int, views: int = 1, **options: Any) -> None:
        super().__init__(classes, num_classes, views, **options)
        grid, share = self.options["grid"], self.options["share"]
        if not (isinstance(grid, int) and 1 <= grid <= 64 and 0 < share <= 1):
            raise ConfigError(
                f"label store 'dense': grid must be an integer from 1 to 64 and share in (0, 1], got {grid} and {share}"
            )

    def expand(self, info: TaskInfo, rows: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = windows(rows, self._axes(info), self.options["grid"], self.options["share"])
        count = made.shape[1]
        full = view_of(items)
        first = int(full.max()) + 1 if len(full) else 0
        views = (first + full[:, None] * count + torch.arange(count)).flatten()
        return (
            torch.cat([rows, made.flatten(0, 1)]),
            torch.cat([items, items.repeat_interleave(count)]),
            torch.cat([full, views]),
        )

    def check_rows(self, info: TaskInfo, views: int) -> None:
        super().check_rows(info, views * (1 + self.options["grid"] ** len(self._axes(info))))

    def _axes(self, info: TaskInfo) -> tuple[int, ...]:
        if not info.cell_axes:
            raise ConfigError(
                f"label store 'dense' needs items with cell axes to cut windows along; {info.domain!r} has none. "
                f"Use 'teacher'."
            )
        return info.cell_axes


def windows(rows: Tensor, axes: tuple[int, ...], grid: int, share: float) -> Tensor:
    """Evenly spaced parts of each row, resized linearly to its whole length.

    Args:
        rows: (rows, *item).
        axes: negative item axes along which parts are taken.
        grid: parts along each axis.
        share: length of a part.

    Returns:
        (rows, grid ** len(axes), *item); the last axis varies fastest.
    """
    parts = [rows]
    for axis in axes:
        length = rows.shape[axis]
        size = max(1, round(share * length))
        starts = [round(i * (length - size) / max(1, grid - 1)) for i in range(grid)]
        up = F.interpolate(torch.eye(size)[:, None], length, mode="linear", align_corners=False)[:, 0].to(rows)
        parts = [
            (part.narrow(axis, start, size).movedim(axis, -1) @ up).movedim(-1, axis)
            for part in parts
            for start in starts
        ]
    return torch.stack(parts, 1)


class BlockLabels(TeacherLabels):
    """A pool of training batches with their augmentation draws and the teacher's logits, reused cyclically.

    A block is some rows, one draw for each and the logits of the rows so augmented. Training replays the blocks
    in turn, as often as its epochs ask; what a block holds never changes, so a small pool serves a long training.

    Source: Xiao and He, Are Large-scale Soft Labels Necessary for Large-scale Dataset Distillation?, NeurIPS 2024
    (label pool of random (epoch, batch) blocks). Drawing a small pool equals drawing all blocks and pruning them
    at random, as the draws are independent. Mixing of rows is not part of a block.

    Options:
        temperature: as in `TeacherLabels`.
        augment: the domain's augmentation that blocks are drawn from.
        blocks: batches in the pool.
        batch: rows of a block; all rows when there are fewer.
    """

    name = "blocks"
    loss_name = "soft cross-entropy of softmax(logits / temperature), on stored augmented batches"
    defaults = {"temperature": 1.0, "augment": "none", "blocks": 25, "batch": 256}

    def __init__(self, classes: Tensor, num_classes: int, views: int = 1, **options: Any) -> None:
        super().__init__(classes, num_classes, views, **options)
        for name in ("blocks", "batch"):
            if not (isinstance(self.options[name], int) and self.options[name] >= 1):
                raise ConfigError(f"label store 'blocks': {name} must be an integer from 1, got {self.options[name]!r}")
        self._blocks: dict[str, Tensor] = {}

    def teach(self, lesson: Lesson) -> None:
        super().teach(lesson)
        augmentation = lesson.augmentation_named(self.options["augment"])
        generator = lesson.streams.torch("label blocks")
        rows = self._orders(len(lesson.rows), generator)
        ops, us, logits = [], [], []
        for block in rows:
            x = lesson.rows[block.to(lesson.rows.device)]
            draw = Draw(torch.zeros(len(block), dtype=torch.int64), torch.zeros(len(block), 1))
            if augmentation is not None:
                draw = augmentation.draw(len(block), generator, one_op=True)
                x = augmentation(x, draw, torch.arange(len(block)))
            ops.append(draw.op.clone())
            us.append(draw.u)
            logits.append(answers(lesson.teacher, x))
        self._blocks = {"rows": rows, "op": torch.stack(ops), "u": torch.stack(us), "answers": torch.stack(logits)}

    def _orders(self, count: int, generator: torch.Generator) -> Tensor:
        """Row numbers of the blocks, (blocks, batch): random orders of all rows, one after another."""
        blocks, batch = self.options["blocks"], min(self.options["batch"], count)
        orders = [torch.randperm(count, generator=generator) for _ in range(-(-blocks * batch // count))]
        return torch.cat(orders)[: blocks * batch].view(blocks, batch)

    @property
    def replay(self) -> Replay:
        _ = self.logits  # says so when nobody has taught these labels
        draws = tuple(Draw(op, u) for op, u in zip(self._blocks["op"], self._blocks["u"]))
        return Replay(self.options["augment"], self._blocks["rows"], draws, self._blocks["answers"])

    def check_rows(self, info: TaskInfo, views: int) -> None:
        super().check_rows(info, views)
        if int(self._blocks["rows"].max()) >= len(self.classes) * views:
            raise ArtifactError(f"label store 'blocks': a block names a row beyond the {len(self.classes) * views}")

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), **{f"block_{name}": tensor for name, tensor in self._blocks.items()}}

    @classmethod
    def load(cls, tensors: dict[str, Tensor], num_classes: int, **options: Any) -> LabelStore:
        store = super().load(tensors, num_classes, **options)
        assert isinstance(store, BlockLabels)
        logits = stored_values(tensors, cls.name, "block_answers", (None, None, num_classes))
        shape = tuple(logits.shape[:2])
        u = stored_values(tensors, cls.name, "block_u", (*shape, None))
        if bool((u < 0).any()) or bool((u >= 1).any()):
            raise ArtifactError("label store 'blocks': block_u leaves the range [0, 1)")
        whole: dict[str, Tensor] = {}
        for name in ("rows", "op"):
            found = tensors.get(f"block_{name}")
            if found is None or found.dtype != torch.int64 or tuple(found.shape) != shape or int(found.min()) < 0:
                raise ArtifactError(f"label store 'blocks' needs block_{name}: int64, at least 0, of shape {shape}")
            whole[name] = found.clone()
        store._blocks = {**whole, "u": u, "answers": logits}
        return store
