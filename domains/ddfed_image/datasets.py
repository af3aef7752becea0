"""Loaders of image data sets from files that people already have. Nothing is downloaded, no pickle is read.

Every loader has the signature ``load_x(root, options) -> RawImages``. Files are checked before use: magic
numbers, lengths, columns; an error names the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ddfed.errors import ConfigError
from ddfed.sources import SPLIT_SEED, stratified_split
from ddfed_image.cifar import load_cifar10, load_cifar100
from ddfed_image.folders import load_folder
from ddfed_image.idx import load_fashion, load_mnist
from ddfed_image.raw import Options, RawImages

__all__ = ["load_cifar10", "load_cifar100", "load_digits", "load_fashion", "load_folder", "load_mnist"]


def load_digits(root: Path | None, options: Options) -> RawImages:
    """scikit-learn's copy of the UCI handwritten digits: 1,797 grey 8x8 images, values 0 to 16; no files."""
    from sklearn.datasets import load_digits as embedded

    if root is not None:
        raise ConfigError(
            f"data set 'image/digits' is embedded and reads no folder, got {root}. For images of your own give "
            f"--dataset folder, for another known set its name; `ddfed datasets list` shows them."
        )
    found = embedded()
    inputs = torch.from_numpy(found.images.astype(np.uint8))[:, None].contiguous()
    labels = torch.from_numpy(found.target.astype(np.int64))
    train, test = stratified_split(labels)
    return RawImages(
        inputs[train],
        labels[train],
        inputs[test],
        labels[test],
        tuple(str(digit) for digit in range(10)),
        source="UCI optical recognition of handwritten digits (test part, 1,797 images) as embedded in "
        f"scikit-learn; stratified 80/20 split with the fixed seed {SPLIT_SEED}",
        licence="CC BY 4.0 (UCI)",
        scale=1 / 16,
        mirrors=False,
    )
