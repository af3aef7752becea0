"""Training fresh networks on a set and measuring them: the only judge of a distilled set."""

from ddfed.evaluate.protocols import Protocol, RidgeProtocol
from ddfed.evaluate.table import BASELINES, Bench, Measurement, check_baseline, evaluate, measure
from ddfed.evaluate.training import Quality, accuracy, calibration_error, quality, train

__all__ = [
    "BASELINES",
    "Bench",
    "Measurement",
    "Protocol",
    "Quality",
    "RidgeProtocol",
    "accuracy",
    "calibration_error",
    "check_baseline",
    "evaluate",
    "measure",
    "quality",
    "train",
]
