"""The one place that resolves ``auto``."""

from __future__ import annotations

import os

import torch

from ddfed.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not usable here ({str(error).splitlines()[0]}); use 'auto' or 'cpu'") from None
    return device


def set_threads(count: int) -> int:
    """Set torch's threads (0: the number of cores) and return what was set; results depend on it."""
    chosen = count or os.cpu_count() or 1
    torch.set_num_threads(chosen)
    return chosen
