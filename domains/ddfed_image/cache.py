"""An optional memory for slow, repeatable work: decoded JPEGs and whitening matrices.

It lies in the folder named by ``DDFED_CACHE``, by default ``~/.cache/ddfed``; an empty ``DDFED_CACHE``
turns it off. Never inside the data folder, which may be read-only. Whatever goes wrong here costs time only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from ddfed.errors import ArtifactError, RunFolderError
from ddfed.files import tensors_from_bytes, tensors_to_bytes, write_bytes


def folder() -> Path | None:
    """Where results are kept, None for nowhere."""
    chosen = os.environ.get("DDFED_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    try:
        return Path.home() / ".cache" / "ddfed"
    except RuntimeError:  # no home folder
        return None


def remembered(what: str, inputs: Iterable[Path | str], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """``make()``, or what it gave last time for the same ``what`` and ``inputs``.

    Args:
        what: name of the work and of its version.
        inputs: files (known by name, size and time of change) or strings that determine the result.
        make: the work; gives named tensors.
    """
    place = folder()
    if place is None:
        return make()
    path = place / f"{what}-{_key(what, inputs)}.safetensors"
    with contextlib.suppress(OSError, ArtifactError):
        return tensors_from_bytes(path.read_bytes(), str(path))
    made = make()
    with contextlib.suppress(RunFolderError):
        write_bytes(path, tensors_to_bytes(made))
    return made


def _key(what: str, inputs: Iterable[Path | str]) -> str:
    digest = hashlib.sha256(what.encode())
    for item in inputs:
        if isinstance(item, Path):
            state = item.stat()
            item = f"{item.resolve()} {state.st_size} {state.st_mtime_ns}"
        digest.update(f"\0{item}".encode())
    return digest.hexdigest()[:32]
