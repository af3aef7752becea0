"""Parametrisations of the synthetic items (decoders) and of their labels."""

from ddfed.store.base import Store, view_of
from ddfed.store.labels import HardLabels, LabelStore, LogitLabels
from ddfed.store.pixels import Mirrored, MultiFormation, Pixels

__all__ = ["HardLabels", "LabelStore", "LogitLabels", "Mirrored", "MultiFormation", "Pixels", "Store", "view_of"]
