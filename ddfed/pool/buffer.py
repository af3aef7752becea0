"""Expert buffers: what networks trained on real data were at each of their epochs, in memory or in a folder.

A folder holds ``card.json`` (what the experts were trained on, and how) and one ``expert-0000.safetensors`` for each:
the tensor ``weights``, (snapshots, values), the first snapshot before training and one after every epoch. A snapshot
is every floating entry of the network's state in its order, one after another. Snapshots are read one at a time from
mapped files, so that of a buffer of many gigabytes only what is looked at is in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

import ddfed
from ddfed.data import TaskInfo
from ddfed.errors import ArtifactError, ConfigError, DivergedError
from ddfed.files import read_json, write_bytes, write_json

SCHEMA, KIND, CARD = 1, "ddfed experts", "card.json"
TYPES = {"float16": torch.float16, "float32": torch.float32}
#: What the card says that must agree: dotted key -> what people call it.
OF_THE_DATA = {
    "task.domain": "modality",
    "task.dataset": "data set",
    "task.classes": "classes",
    "data.sha256": "training rows",
    "space": "space",
    "network.entries": "network",
}
OF_THE_TRAINING = {"snapshots": "snapshots", "dtype": "storage", "seed": "seed"}


# --- networks as vectors -----------------------------------------------------------------------------------------


def entries(net: nn.Module) -> list[list[Any]]:
    """Name and shape of everything a snapshot holds, as JSON."""
    return [[name, list(value.shape)] for name, value in _floating(net).items()]


def snapshot_of(net: nn.Module) -> Tensor:
    """Everything a snapshot holds, (values,), a copy."""
    return torch.cat([value.detach().flatten().clone() for value in _floating(net).values()])


def put_snapshot(net: nn.Module, values: Tensor) -> None:
    """Inverse of `snapshot_of`, in place."""
    held = _floating(net)
    parts = values.split([value.numel() for value in held.values()])
    with torch.no_grad():
        for value, part in zip(held.values(), parts):
            value.copy_(part.view(value.shape))


def _floating(net: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in net.state_dict().items() if value.is_floating_point()}


# --- trajectories ------------------------------------------------------------------------------------------------


class Trajectories(ABC):
    """Snapshots of some experts.

    Attributes:
        experts: how many there are.
        snapshots: of each; one more than its epochs.
    """

    experts: int
    snapshots: int

    @abstractmethod
    def snapshot(self, expert: int, number: int) -> Tensor:
        """One snapshot, (values,) float32; negative numbers count from the end.

        Raises:
            ArtifactError: the file is gone or damaged.
        """

    def lengths(self, expert: int) -> list[float]:
        """How far each snapshot is from the first, never falling, as shares of the last; one number a snapshot."""
        first, found = self.snapshot(expert, 0), [0.0]
        for number in range(1, self.snapshots):
            found.append(max(found[-1], float((self.snapshot(expert, number) - first).norm())))
        return [distance / (found[-1] or 1.0) for distance in found]


class Recorded(Trajectories):
    """Experts in memory.

    Args:
        paths: one tensor for each, (snapshots, values).
    """

    def __init__(self, paths: Sequence[Tensor]) -> None:
        self.paths, self.experts, self.snapshots = list(paths), len(paths), len(paths[0])

    def snapshot(self, expert: int, number: int) -> Tensor:
        return self.paths[expert][number].float()


class Buffer(Trajectories):
    """Experts in a folder.

    Args:
        folder: where.
        card: what `make_card` gave, as it was written.
    """

    def __init__(self, folder: Path, card: Mapping[str, Any]) -> None:
        self.folder, self.card = folder, card
        self.snapshots = int(card["snapshots"])
        self.values = sum(math.prod(shape) for _, shape in card["network"]["entries"])
        names = [path.stem.removeprefix("expert-") for path in folder.glob("expert-*.safetensors")]
        self.numbers = sorted(int(name) for name in names if name.isdecimal())
        self.experts = len(self.numbers)

    @classmethod
    def open(cls, folder: Path) -> Buffer:
        """A buffer that exists.

        Raises:
            ArtifactError: no buffer, a damaged card, or one of a newer version.
        """
        card = read_json(folder / CARD)
        if not isinstance(card, dict) or card.get("kind") != KIND:
            raise ArtifactError(f"{folder / CARD} is not the card of an expert buffer")
        if card.get("schema") != SCHEMA:
            raise ArtifactError(
                f"{folder / CARD} has schema {card.get('schema')!r}; this ddfed {ddfed.__version__} reads {SCHEMA}. "
                f"Install a newer ddfed, or make the buffer again."
            )
        try:
            return cls(folder, card)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{folder / CARD} lacks or garbles a field: {error!r}") from None

    @classmethod
    def create(cls, folder: Path, card: Mapping[str, Any]) -> Buffer:
        """A new buffer, or one to go on with that was made alike.

        Raises:
            ConfigError: the folder holds other experts; says what differs.
            RunFolderError: the folder cannot be written.
        """
        if (folder / CARD).exists():
            held = cls.open(folder)
            training = {f"training.{key}": f"training.{key}" for key in card["training"]}
            unlike = differences(held.card, card, {**OF_THE_DATA, **OF_THE_TRAINING, **training})
            if unlike:
                raise ConfigError(
                    f"{folder} holds other experts: {'; '.join(unlike)}. Make these in another folder, or go on with "
                    f"the settings of those."
                )
            return held
        write_json(folder / CARD, dict(card))
        return cls(folder, card)

    def path(self, number: int) -> Path:
        """The file of an expert, by the number in its name."""
        return self.folder / f"expert-{number:04d}.safetensors"

    @property
    def stamp(self) -> str:
        """What every file of this buffer carries: a hash of the card."""
        return hashlib.sha256(json.dumps(self.card, sort_keys=True).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Bytes of one expert's weights."""
        return self.snapshots * self.values * TYPES[self.card["dtype"]].itemsize

    def write(self, number: int, path: Tensor) -> None:
        """Add an expert, (snapshots, values); a reader never sees half of it.

        Raises:
            DivergedError: values that are not finite, or too large for the type they are stored in.
            RunFolderError: no room, or no right to write; nothing half-written is left.
        """
        stored = path.detach().cpu().to(TYPES[self.card["dtype"]]).contiguous()
        if not bool(torch.isfinite(stored).all()):
            advice = "training.lr" if not bool(torch.isfinite(path).all()) else "training.lr, or take dtype = 'float32'"
            raise DivergedError(f"expert {number} has weights that are not finite {self.card['dtype']}. Lower {advice}")
        about = json.dumps({"card": self.stamp, "expert": number, "sha256": _digest(stored)})
        # One entry, as several come in any order: the same expert gives the same bytes.
        write_bytes(self.path(number), save_tensors({"weights": stored}, {"about": about}))
        self.numbers = sorted({*self.numbers, number})
        self.experts = len(self.numbers)

    def snapshot(self, expert: int, number: int) -> Tensor:
        path = self.path(self.numbers[expert])
        try:
            with safe_open(path, "pt") as file:
                return file.get_slice("weights")[range(self.snapshots)[number]].float()
        except (OSError, SafetensorError, IndexError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}. {self._remedy(path)}") from None

    def damage(self, number: int, whole: bool = True) -> str:
        """What is wrong with the file of an expert, or an empty string.

        Args:
            number: in its name.
            whole: read all of it; otherwise its head alone, which shows truncation but no changed weight.
        """
        try:
            with safe_open(self.path(number), "pt") as file:
                about = json.loads((file.metadata() or {}).get("about", "{}"))
                if about.get("card") != self.stamp or about.get("expert") != number:
                    return "belongs to another buffer"
                shape = tuple(file.get_slice("weights").get_shape())
                if shape != (self.snapshots, self.values):
                    return f"holds weights of shape {shape}, not {(self.snapshots, self.values)}"
                if whole and _digest(file.get_tensor("weights")) != about.get("sha256"):
                    return "was changed since it was written"
        except (OSError, SafetensorError, ValueError) as error:
            return f"is truncated or no safetensors file ({error})"
        return ""

    def check_files(self, whole: bool = False) -> None:
        """Raise `ArtifactError` for the first file that is damaged; see `damage`."""
        for number in self.numbers:
            wrong = self.damage(number, whole)
            if wrong:
                raise ArtifactError(f"{self.path(number)} {wrong}. {self._remedy(self.path(number))}")

    def _remedy(self, path: Path) -> str:
        return f"Delete {path.name} and run the command that made the buffer again: it makes what is missing."


def _digest(weights: Tensor) -> str:
    return hashlib.sha256(weights.contiguous().view(torch.uint8).numpy().data).hexdigest()


# --- cards -------------------------------------------------------------------------------------------------------


def make_card(
    info: TaskInfo,
    fingerprint: str,
    rows: int,
    network: str,
    net: nn.Module,
    training: Mapping[str, Any],
    snapshots: int,
    dtype: str,
    seed: int,
) -> dict[str, Any]:
    """What a buffer says of itself, as JSON.

    Args:
        info: the task.
        fingerprint: of the training rows (`ddfed.gate.Gate.fingerprint`).
        rows: how many.
        network: its name.
        net: one of them.
        training: how they are trained.
        snapshots: of each expert.
        dtype: one of `TYPES`.
        seed: root of the randomness.
    """
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "ddfed": ddfed.__version__,
        "torch": torch.__version__,
        "task": {"domain": info.domain, "dataset": info.dataset, "classes": list(info.classes)},
        "data": {"sha256": fingerprint, "rows": rows},
        "space": info.space.to_card(),
        "network": {"name": network, "entries": entries(net)},
        "training": dict(training),
        "snapshots": snapshots,
        "dtype": dtype,
        "seed": seed,
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any], fields: Mapping[str, str]) -> list[str]:
    """What two cards do not agree on, in words; ``there`` is the buffer's."""
    found = []
    for key, title in fields.items():
        one, two = _at(there, key), _at(here, key)
        # Through JSON, so that what was read compares with what was made.
        if json.dumps(one, sort_keys=True) != json.dumps(two, sort_keys=True):
            found.append(f"{title} ({_told(there, key, one)} there, {_told(here, key, two)} here)")
    return found


def _at(card: Mapping[str, Any], key: str) -> Any:
    node: Any = card
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _told(card: Mapping[str, Any], key: str, value: Any) -> str:
    if key == "data.sha256":
        return f"{_at(card, 'data.rows')} rows with SHA-256 {str(value)[:12]}..."
    if key == "network.entries":
        return f"{_at(card, 'network.name') or 'a network'} with {sum(math.prod(s) for _, s in value or [])} values"
    if key == "task.classes":
        return f"{len(value or [])} classes"
    if key == "space":
        return str((value or {}).get("whitening") or (value or {}).get("kind"))
    return str(value)
