"""Part 2: which network judges the synthetic set at each outer step.

Codes follow the common map of the field: R random, RS random then trained on the synthetic set, RT random
then trained on real data, Q a queue of networks in training, exact and ball the neighbourhood of given weights.
"""

from ddfed.pool.around import BallPool, ExactPool
from ddfed.pool.base import ModelPool, PoolContext, Training, train_on_real, trained_network
from ddfed.pool.live import QueuePool, RandomPool, RealTrainedPool, SynTrainedPool

__all__ = [
    "BallPool",
    "ExactPool",
    "ModelPool",
    "PoolContext",
    "QueuePool",
    "RandomPool",
    "RealTrainedPool",
    "SynTrainedPool",
    "Training",
    "train_on_real",
    "trained_network",
]
