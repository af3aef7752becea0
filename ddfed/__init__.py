"""ddfed: dataset distillation, central and federated.

Importing this package imports no torch; the public names below load on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "SyntheticSet": "ddfed.artifact",
    "Task": "ddfed.data",
    "RealData": "ddfed.data",
    "PlainGate": "ddfed.gate",
    "Domain": "ddfed.domain",
    "distill": "ddfed.distill",
    "evaluate": "ddfed.evaluate",
    "registry": "ddfed.registry",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ddfed' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    # A name that is a module stays one: the import system puts it here, whoever imports it first.
    return module if module.__name__ == f"ddfed.{name}" else getattr(module, name)
