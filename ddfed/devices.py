"""The one place that resolves ``auto``."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from ddfed.errors import ConfigError, MemoryExceededError


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
        why = "there is no such kind" if "device type" in str(error) else str(error).splitlines()[0]
        raise ConfigError(
            f"device {name!r} is not usable here ({why}); possible: auto, cpu, cuda, cuda:1, mps"
        ) from None
    return device


@cache
def keep_memory() -> bool:
    """Let this process keep freed memory, once; True where that can be asked for (glibc).

    By default glibc hands every block above 32 MB, and the end of its heap, back to the system as soon as
    it is free, so each step of a loop waits for the same pages to be mapped and cleared again: half the time
    of a ConvNet on batches of 128 colour images. The process then keeps the memory of its largest step.
    Choose otherwise by setting ``MALLOC_TRIM_THRESHOLD_`` or ``MALLOC_MMAP_MAX_`` in the environment.
    """
    if platform.libc_ver()[0] != "glibc" or {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"} & set(os.environ):
        return False
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    return bool(libc.mallopt(trim_threshold, 2**31 - 1) and libc.mallopt(mmap_max, 0))


@contextmanager
def memory_advice(where: str, advice: str) -> Iterator[None]:
    """Turn a failed allocation, on whatever device, into an error that says what to make smaller.

    Args:
        where: what was being done.
        advice: what to lower, as a sentence.

    Raises:
        MemoryExceededError: an allocation failed inside.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # The CPU allocator raises a plain RuntimeError.
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
        if not known or isinstance(error, MemoryExceededError):
            raise
        raise MemoryExceededError(f"{where}: out of memory ({str(error).splitlines()[0]}). {advice}") from error


def set_threads(count: int) -> int:
    """Set torch's threads and return what was set; results depend on it.

    0 stands for ``OMP_NUM_THREADS`` where that is set, as people on shared machines expect, else for every core.

    Called once where a command starts, so it also settles the process's memory (see `keep_memory`).
    """
    keep_memory()
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    chosen = count or (int(asked) if asked.isdigit() else 0) or os.cpu_count() or 1
    torch.set_num_threads(chosen)
    return chosen
