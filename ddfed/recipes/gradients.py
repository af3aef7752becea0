"""Gradient matching."""

from __future__ import annotations
