"""Matching engines. An objective judges decoded rows and returns cotangents, never a bare scalar."""

from ddfed.match.base import Cotangent, Judgement, Objective, Precision
from ddfed.match.moments import MeanMatching

__all__ = ["Cotangent", "Judgement", "MeanMatching", "Objective", "Precision"]
