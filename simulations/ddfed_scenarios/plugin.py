"""Every ``*.toml`` of this folder is a scenario of that name. Light: reads no file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddfed.hookspecs import hookimpl

if TYPE_CHECKING:
    from ddfed.registry import Registry


@hookimpl
def ddfed_register(registry: Registry) -> None:
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        registry.add("scenario", path.stem, f"ddfed_scenarios:{path.name}")
