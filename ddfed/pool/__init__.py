"""Part 2: which network judges the synthetic set at each outer step.

Codes follow the common map of the field: R random, RS random then trained on the synthetic set (RA for as long as it
pays), RT random then trained on real data, Q a queue of networks in training, exact and ball the neighbourhood of
given weights; from a bank of networks trained beforehand: PI the path from first to trained weights, T trained ones,
PW early-stage ones with noise.
"""

from ddfed.pool.adaptive import AdaptivePool
from ddfed.pool.around import BallPool, ExactPool
from ddfed.pool.bank import Bank, NoisyPool, PathPool, TrainedPool
from ddfed.pool.base import ModelPool, PoolContext, Training, train_on_real, trained_network
from ddfed.pool.live import QueuePool, RandomPool, RealTrainedPool, SynTrainedPool

__all__ = [
    "AdaptivePool",
    "BallPool",
    "Bank",
    "ExactPool",
    "ModelPool",
    "NoisyPool",
    "PathPool",
    "PoolContext",
    "QueuePool",
    "RandomPool",
    "RealTrainedPool",
    "SynTrainedPool",
    "TrainedPool",
    "Training",
    "train_on_real",
    "trained_network",
]
