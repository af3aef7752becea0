"""Writing files so that nothing is lost and nothing is executed: atomic, safetensors and JSON only."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ddfed.errors import ArtifactError, RunFolderError


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder, then rename: a reader never sees half a file.

    Raises:
        RunFolderError: the folder is read-only, full or gone; the previous file, if any, is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror or error}. Check that the folder is writable and the disk "
            f"has room, or choose another place with --out."
        ) from error


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises `ArtifactError` when the file is absent or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} is not readable JSON: {error}") from None


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialise named tensors as safetensors; the same tensors give the same bytes.

    Copied first: safetensors refuses tensors that share memory, as a global model and its history may.
    """
    return save_tensors({name: t.detach().cpu().contiguous().clone() for name, t in sorted(tensors.items())})


def tensors_from_bytes(content: bytes, source: str) -> dict[str, Tensor]:
    """Inverse of `tensors_to_bytes`. Raises `ArtifactError` naming ``source`` when the bytes are damaged."""
    try:
        return load_tensors(content)
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{source} is not a readable safetensors file (truncated or foreign): {error}") from None


def pack(tree: Any, prefix: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Split nested dicts and lists into a JSON skeleton and named tensors, for checkpoints without pickle.

    Example:
        >>> pack({"step": 3, "x": torch.zeros(2)})
        ({'step': 3, 'x': {'tensor': 'x'}}, {'x': tensor([0., 0.])})
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            while path in tensors:  # dotted keys may meet nested ones
                path += "'"
            tensors[path] = node
            return {"tensor": path}
        if isinstance(node, Mapping):
            entries = [(k, walk(v, f"{path}.{k}" if path else str(k))) for k, v in node.items()]
            # Integer keys (optimiser states) would come back from JSON as text, our own marks as marks.
            if any(not isinstance(k, str) for k in node) or set(node) in ({"tensor"}, {"map"}):
                return {"map": [list(entry) for entry in entries]}
            return dict(entries)
        if isinstance(node, (list, tuple)):
            return [walk(v, f"{path}.{i}" if path else str(i)) for i, v in enumerate(node)]
        return node

    return walk(tree, prefix), tensors


def unpack(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of `pack` (tuples come back as lists)."""
    if isinstance(skeleton, dict):
        if set(skeleton) == {"tensor"}:
            return tensors[skeleton["tensor"]]
        if set(skeleton) == {"map"}:
            return {k: unpack(v, tensors) for k, v in skeleton["map"]}
        return {k: unpack(v, tensors) for k, v in skeleton.items()}
    if isinstance(skeleton, list):
        return [unpack(v, tensors) for v in skeleton]
    return skeleton


def write_state(path: Path, tree: Any) -> None:
    """Write a tree of tensors and JSON values as ONE file, so that a crash cannot leave half a checkpoint."""
    skeleton, tensors = pack(tree)
    text = torch.frombuffer(bytearray(json.dumps(skeleton).encode()), dtype=torch.uint8)
    write_bytes(path, tensors_to_bytes({**tensors, "__skeleton__": text}))


def read_state(path: Path) -> Any:
    """Inverse of `write_state`. Raises `ArtifactError` when the file is absent, truncated or foreign."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from None
    tensors = tensors_from_bytes(content, str(path))
    text = tensors.pop("__skeleton__", None)
    if text is None:
        raise ArtifactError(f"{path} is a safetensors file, but not a ddfed checkpoint")
    return unpack(json.loads(bytes(text.numpy()).decode()), tensors)
