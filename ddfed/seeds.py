"""One root seed, named streams.

Every consumer of randomness asks for a stream by name (``streams.torch("augment", step)``). The seed of a
stream is a hash of the root seed and its name, so nothing depends on the order in which streams are
asked for, a resumed run needs no stored generator state, and a client's numbers hang on its partition id.
The global generators of torch, numpy and ``random`` are never drawn from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch

Name = str | int


@dataclass(frozen=True)
class Streams:
    """Named random streams below one root seed.

    Args:
        root: any integer.
        path: names leading to this node of the tree; ``child`` extends it.

    Example:
        >>> Streams(0).child("client", 3).seed("init") == Streams(0).seed("client", 3, "init")
        True
    """

    root: int
    path: tuple[Name, ...] = ()

    def child(self, *names: Name) -> Streams:
        """The node ``names`` below this one."""
        return Streams(self.root, (*self.path, *names))

    def seed(self, *names: Name) -> int:
        """A non-negative 63-bit seed for the stream called ``names``."""
        text = "/".join(f"{type(n).__name__}:{n}" for n in (self.root, *self.path, *names))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def torch(self, *names: Name) -> torch.Generator:
        """A fresh CPU generator. Draw on the CPU and move: numbers then agree between devices."""
        import torch

        return torch.Generator().manual_seed(self.seed(*names))

    def numpy(self, *names: Name) -> numpy.random.Generator:
        """A fresh numpy generator."""
        import numpy

        return numpy.random.default_rng(self.seed(*names))


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run code that can only draw from torch's global generator (module constructors) under ``seed``.

    The global state is put back afterwards, so nothing outside notices.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
