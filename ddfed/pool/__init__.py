"""Part 2: which network judges the synthetic set at each outer step.

Codes follow the common map of the field: R random, RS random then trained on the synthetic set (RA for as long as it
pays), RT random then trained on real data, Q a queue of networks in training, exact, ball, blend and trust the
neighbourhood of given weights; from a bank of networks trained beforehand: PI the path from first to trained
weights, T trained ones, PW early-stage ones with noise. QS: a pool in training on the synthetic set, of many ages.
X: two epochs of a network in training on real data (trajectories), from a buffer; path: two points of a given path.
"""

from ddfed.pool.adaptive import AdaptivePool
from ddfed.pool.around import BallPool, BlendPool, ExactPool, TrustPool
from ddfed.pool.bank import Bank, NoisyPool, PathPool, TrainedPool
from ddfed.pool.base import ModelPool, PoolContext, Training, train_on_real, trained_network
from ddfed.pool.experts import ExpertPool
from ddfed.pool.given import GivenPath
from ddfed.pool.live import QueuePool, RandomPool, RealTrainedPool, SynTrainedPool
from ddfed.pool.online import OnlinePool
from ddfed.pool.teachers import Committee, TeacherPool, Teachers

__all__ = [
    "AdaptivePool",
    "BallPool",
    "Bank",
    "BlendPool",
    "Committee",
    "ExactPool",
    "ExpertPool",
    "GivenPath",
    "ModelPool",
    "NoisyPool",
    "OnlinePool",
    "PathPool",
    "PoolContext",
    "QueuePool",
    "RandomPool",
    "RealTrainedPool",
    "SynTrainedPool",
    "TeacherPool",
    "Teachers",
    "TrainedPool",
    "Training",
    "TrustPool",
    "train_on_real",
    "trained_network",
]
