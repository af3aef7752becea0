"""Training fresh networks on a set and measuring them: the only judge of a distilled set."""

from ddfed.evaluate.protocols import Protocol
from ddfed.evaluate.table import Measurement, evaluate, measure
from ddfed.evaluate.training import accuracy, train

__all__ = ["Measurement", "Protocol", "accuracy", "evaluate", "measure", "train"]
