"""Labels that carry more than a class."""

from __future__ import annotations
