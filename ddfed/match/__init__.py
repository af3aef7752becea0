"""Matching engines. An objective judges decoded rows and returns cotangents, never a bare scalar."""

from ddfed.match.base import Cotangent, Judgement, Objective, Precision
from ddfed.match.gradients import GradientMatching
from ddfed.match.moments import MeanMatching, MomentMatching
from ddfed.match.unroll import Unrolling

__all__ = [
    "Cotangent",
    "GradientMatching",
    "Judgement",
    "MeanMatching",
    "MomentMatching",
    "Objective",
    "Precision",
    "Unrolling",
]
