"""Ways of storing a set."""

from __future__ import annotations
