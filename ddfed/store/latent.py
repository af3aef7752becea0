"""Items as inputs of a generator that somebody brought: a decoder of an autoencoder, a GAN, a diffusion model.

Cazenavette et al., Generalizing Dataset Distillation via Deep Generative Prior (GLaD), CVPR 2023; Zhao and Bilen,
Synthesizing Informative Training Samples with GAN (IT-GAN), 2022.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ddfed.data import TaskInfo
from ddfed.errors import ArtifactError, ConfigError
from ddfed.registry import registry
from ddfed.seeds import Streams
from ddfed.store.base import UNSEEDED, Store
from ddfed.store.cells import Grid, along, resizing


class Generator(nn.Module, ABC):
    """A differentiable map from latents to network inputs.

    Under the store ``latent`` its weights stay as they are; the store ``sampler`` learns them.

    Registered under the kind ``generator``: a factory ``(info, **options) -> Generator``. A card names a generator and
    never a module to import, so that a foreign artifact cannot make a program run code that was not installed.
    """

    #: of one item
    latent_shape: tuple[int, ...]

    @abstractmethod
    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        """Latents (rows, *latent_shape) and classes (rows,) -> rows in model space, (rows, *item)."""

    def invert(self, rows: Tensor, classes: Tensor) -> Tensor | None:
        """Latents of given rows, or None where only searching finds them."""
        return None


def check_made(made: Tensor, rows: int, info: TaskInfo, generator: str) -> None:
    """Raise `ConfigError` when a generator made something else than ``rows`` rows of the task."""
    if made.shape != (rows, *info.shape):
        raise ConfigError(
            f"generator {generator!r} makes rows of shape {tuple(made.shape[1:])}, items of {info.dataset!r} have "
            f"{info.shape}"
        )


class Resize(Generator):
    """The generator without weights: latents are small items, enlarged linearly along the cell axes.

    Args:
        info: public facts about the task; its items need cell axes.
        share: of the length along each axis, in (0, 1].
    """

    def __init__(self, info: TaskInfo, share: float = 0.5) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ConfigError(f"generator 'resize': share must be above 0 and up to 1, got {share!r}")
        self._grid = Grid(info, "latent")
        small = [max(1, round(share * length)) for length in self._grid.lengths]
        self.latent_shape = (self._grid.channels, *small)
        self._up = [resizing(a, b) for a, b in zip(small, self._grid.lengths)]
        self._down = [resizing(b, a) for a, b in zip(small, self._grid.lengths)]

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        return self._grid.join(along(z, self._up))

    def invert(self, rows: Tensor, classes: Tensor) -> Tensor:
        return along(self._grid.split(rows), self._down)


class Latents(Store):
    """Each item is the latent of one row under a generator that does not change.

    A set is only as good as what its generator can make, and is worthless without it: the generator's fingerprint is
    stored beside the latents, and another one is refused. The generator itself is not counted in the budget, as a
    prior that was there before; an artifact says so by this store's name.

    Args:
        generator: name of the kind ``generator``.
        settings: options of the generator, such as the file of its weights.
        count: a budget of ``items`` (the field's convention) or of ``bytes``, in which small latents give more items.
        fit_steps, fit_lr: of Adam, which searches the latents of initial rows where the generator cannot invert.

    Raises:
        ConfigError: an option is out of range, or the generator refuses its own.
    """

    name = "latent"
    defaults = {"generator": "resize", "settings": {}, "count": "items", "fit_steps": 200, "fit_lr": 0.05}
    shared = frozenset({"fingerprint"})

    def __init__(self, info: TaskInfo, classes: Tensor, **options: Any) -> None:
        super().__init__(info, classes, **options)
        if self.options["count"] not in ("items", "bytes"):
            raise ConfigError(f"store 'latent': count must be 'items' or 'bytes', got {self.options['count']!r}")
        self.whole("fit_steps", 0)
        self.number("fit_lr", positive=True)

    @classmethod
    def items_per_class(cls, info: TaskInfo, ipc: int, classes: int, **options: Any) -> int:
        if {**cls.defaults, **options}["count"] == "items":
            return ipc
        return super().items_per_class(info, ipc, classes, **options)

    @cached_property
    def generator(self) -> Generator:
        """The map, frozen, in evaluation mode."""
        factory = registry().load("generator", self.options["generator"], "store_options.generator")
        with torch.device("cpu"):  # sizes are counted on a device without memory, weights are not
            made: Generator = factory(self.info, **self.options["settings"])
        return made.eval().requires_grad_(False)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"latents": (self.items, *self.generator.latent_shape)}

    def buffer_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"fingerprint": ((32,), torch.uint8)}

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        return self._generated(self.params["latents"][items], self.classes[items]), torch.arange(len(items))

    def fill(self, rows: Tensor, streams: Streams = UNSEEDED) -> None:
        rows = rows[:, 0]
        with torch.no_grad():
            found = self.generator.invert(rows, self.classes)
        if found is None:
            found = self._searched(rows, streams)
        self._begin(found)

    def fill_noise(self, streams: Streams = UNSEEDED) -> None:
        """Latents as the generator was taught them, standard normal; as elsewhere where it inverts noise exactly.

        Searching latents for rows of noise, which no generator makes, would only lead it astray.
        """
        if type(self.generator).invert is not Generator.invert:
            super().fill_noise(streams)
        else:
            self._begin(torch.randn(self.shapes()["latents"], generator=streams.torch("init latents")))

    def _begin(self, latents: Tensor) -> None:
        with torch.no_grad():
            self.params["latents"].copy_(latents)
        self.buffers["fingerprint"] = self._fingerprint()

    def constrain(self) -> None:
        """Nothing: a range of rows is no range of latents."""

    def check_buffers(self) -> None:
        if not torch.equal(self.buffers["fingerprint"], self._fingerprint()):
            raise ArtifactError(
                f"the set was made for other weights of generator {self.options['generator']!r} than those that are "
                f"installed here; its latents mean nothing to these. Install the generator it was made with."
            )

    def _generated(self, z: Tensor, classes: Tensor) -> Tensor:
        made = self.generator(z, classes)
        check_made(made, len(z), self.info, self.options["generator"])
        return made

    def _searched(self, rows: Tensor, streams: Streams) -> Tensor:
        """Latents whose rows are near the given ones in squared distance."""
        start = torch.randn(len(rows), *self.generator.latent_shape, generator=streams.torch("latents"))
        z = start.requires_grad_()
        optimizer = torch.optim.Adam([z], self.options["fit_lr"])
        for _ in range(self.options["fit_steps"]):
            optimizer.zero_grad()
            (self._generated(z, self.classes) - rows).square().flatten(1).sum(1).sum().backward()
            optimizer.step()
        return z.detach()

    def _fingerprint(self) -> Tensor:
        """SHA-256 of the generator's weights, by name, (32,) uint8."""
        digest = hashlib.sha256()
        for name, value in sorted(self.generator.state_dict().items()):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8).clone()
