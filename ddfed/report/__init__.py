"""Figures and the one-file HTML report. Importing this package loads no matplotlib."""

from ddfed.report.html import Html, Page

__all__ = ["Html", "Page"]
