"""The image domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddfed.data import RealData, Task, TaskInfo
from ddfed.domain import Augmentation, Domain, Network
from ddfed.errors import ConfigError, UnknownNameError, one_of, suggest
from ddfed.space import Space
from ddfed_image import augment, cache, datasets, folders, models, zca
from ddfed_image.raw import Options, RawImages

if TYPE_CHECKING:
    from ddfed.artifact import SyntheticSet

DATASETS: dict[str, Callable[[Path | None, Options], RawImages]] = {
    "digits": datasets.load_digits,
    "mnist": datasets.load_mnist,
    "fashion": datasets.load_fashion,
    "cifar10": datasets.load_cifar10,
    "cifar100": datasets.load_cifar100,
    "folder": datasets.load_folder,
}
OPTIONS = ("whitening", "standardise", "image_size", "channels", "groups")
#: By the field's constants, or by what the training images have.
STANDARDS = ("constants", "measured")
#: FRePo and RCIG standardise CIFAR-10 with other deviations than the DC line.
FREPO_STD = {"cifar10": (0.2470, 0.2435, 0.2616)}


class ImageDomain(Domain):
    """Images as (channels, height, width), pixels in [0, 1] as natural values.

    Options of `load`:
        whitening: ``""``, ``"mtt"`` or ``"frepo"``; see `ddfed_image.zca`.
        standardise: ``"constants"``, those of the DC line (CIFAR-10 is divided by .20, which is no deviation of its
            pixels), or ``"measured"``, mean and deviation of each channel over the training images (KIP).
        image_size: data set ``folder`` only: side in pixels to resize to.
        channels: data set ``folder`` only: 1 or 3.
        groups: data set ``folder`` only: a regular expression that finds in a file's name whose image it is.
    """

    name = "image"
    models = models.MODELS
    augmentations = ("none", "dsa", "idc", "idc-match", "idc-train", "flip-rotate", "dc-eval", "dc-eval-bn")
    export_formats = ("png", "parquet")

    def load(self, dataset: str, root: Path | None, options: Mapping[str, Any]) -> Task:
        self.check_name("data set", dataset, tuple(DATASETS))
        self.check_options(options, OPTIONS)
        whitening = zca.check(options.get("whitening") or "")
        measured = _is_measured(options, whitening)
        _check_form_options(dataset, options)
        raw = DATASETS[dataset](Path(root) if root is not None else None, options)
        info = TaskInfo(
            domain=self.name,
            dataset=dataset,
            shape=tuple(raw.train_inputs.shape[1:]),
            classes=raw.classes,
            space=_space(dataset, raw, whitening, measured),
            cell_axes=(-2, -1),
            mirror_axis=-1 if raw.mirrors else None,
            licence=raw.licence,
            source=raw.source,
        )
        train = RealData(raw.train_inputs, raw.train_labels, info, raw.scale, groups=raw.train_groups)
        if whitening:
            info = replace(info, space=_whitened(train, whitening))
            train = replace(train, info=info)
        test = RealData(raw.test_inputs, raw.test_labels, info, raw.scale, groups=raw.test_groups)
        return Task(info, train, test)

    def network(self, name: str, info: TaskInfo) -> Network:
        return models.build(name, info)

    def augmentation(self, name: str, info: TaskInfo) -> Augmentation | None:
        """The augmentation called ``name``.

        ``dsa`` and ``idc`` use all operations, ``idc-match`` colour, crop and cutout, ``idc-train`` all but
        cutout (CutMix takes its place). The mirror is dropped where it would change the class. Operations of
        one's own are written ``dsa:color_crop`` or ``idc:flip_crop`` and are taken as they stand. Operations one after
        another are joined by ``+``: ``rrc:0.08+flip``, ``roll:4`` (see `augment.Chain`); there too ``flip`` is dropped
        where it would change the class.
        """
        if name == "none":
            return None
        parts = name.split("+")
        if len(parts) > 1 or name.partition(":")[0] in augment.CHAINED:
            keep = [part for part in parts if part != "flip" or info.mirror_axis is not None]
            return augment.Chain("+".join(keep)) if keep else None
        kind, colon, strategy = name.partition(":")
        if colon and kind in ("dsa", "idc"):
            return augment.DSA(strategy) if kind == "dsa" else augment.IDCMix(strategy)
        if name not in self.augmentations:
            raise UnknownNameError(
                f"unknown augmentation {name!r} of domain {self.name!r}.{suggest(name, self.augmentations)} "
                f"Possible: {one_of(self.augmentations)}, and operations of your own such as 'dsa:color_crop' "
                f"or 'rrc:0.08+flip+roll:4'"
            )
        if name.startswith("dc-eval"):
            return augment.DCEval(info.shape, batch_norm=name.endswith("-bn"))
        every = [op for op in augment.OPS if op != "flip" or info.mirror_axis is not None]
        listed = {
            "dsa": every,
            "idc": every,
            "idc-match": ["color", "crop", "cutout"],
            "idc-train": [op for op in every if op != "cutout"],
            "flip-rotate": [op for op in every if op in ("flip", "rotate")],
        }[name]
        return augment.DSA("_".join(listed)) if name in ("dsa", "flip-rotate") else augment.IDCMix("_".join(listed))

    def render(self, syn: SyntheticSet, path: Path, per_class: int = 10) -> Path:
        from ddfed_image.render import grid

        return grid(syn, Path(path), per_class)

    def export(self, syn: SyntheticSet, folder: Path, fmt: str) -> list[Path]:
        from ddfed_image.export import FORMATS, write_card

        self.check_name("export format", fmt, self.export_formats)
        return [*FORMATS[fmt](syn, Path(folder)), write_card(syn, Path(folder))]


def _check_form_options(dataset: str, options: Mapping[str, Any]) -> None:
    folders.check_folder_options(options)
    reasons = dict.fromkeys(("image_size", "channels"), "have one size and one number of channels")
    reasons["groups"] = "have no file names to find groups in"
    given = [key for key in reasons if options.get(key) is not None]
    if given and dataset != "folder":
        raise ConfigError(
            f"option {given[0]!r} is for the data set 'folder'; images of {dataset!r} {reasons[given[0]]}. Leave it "
            f"out."
        )


def _is_measured(options: Mapping[str, Any], whitening: str) -> bool:
    given = options.get("standardise", STANDARDS[0])
    if given not in STANDARDS:
        raise ConfigError(
            f"option standardise = {given!r} is unknown.{suggest(str(given), STANDARDS)} Possible: {one_of(STANDARDS)}"
        )
    if given == "measured" and whitening:
        raise ConfigError(f"whitening {whitening!r} has constants of its own; leave standardise = 'measured' out")
    return bool(given == "measured")


def _space(dataset: str, raw: RawImages, whitening: str, measured: bool) -> Space:
    """The space before whitening: standardised per channel, or plain pixels where MTT's whitening follows."""
    if whitening == "mtt":
        return Space()
    if measured or not raw.mean:
        return Space(*channel_statistics(raw.train_inputs, raw.scale))
    std = FREPO_STD.get(dataset, raw.std) if whitening == "frepo" else raw.std
    return Space(raw.mean, std)


def channel_statistics(inputs: Tensor, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel in natural values, rounded to 4 digits.

    Args:
        inputs: (rows, C, H, W) uint8.
        scale: factor to natural values.
    """
    means, deviations = [], []
    for channel in inputs.unbind(1):
        # Over the 256 possible values instead of a float copy of the whole set.
        counts = torch.bincount(channel.reshape(-1).int(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) * scale
        mean = (counts * values).sum() / counts.sum()
        variance = (counts * (values - mean) ** 2).sum() / counts.sum()
        means.append(round(float(mean), 4))
        # A channel without contrast keeps its values: there is nothing to divide by.
        deviations.append(round(float(variance.sqrt()), 4) or 1.0)
    return tuple(means), tuple(deviations)


def _whitened(train: RealData, whitening: str) -> Space:
    """The training set's space with the whitening fitted to it, or remembered from the last time."""
    space = train.info.space

    def make() -> dict[str, Tensor]:
        return zca.fit(train.all().inputs, whitening)

    key = [train.content_hash, str(space.to_card()), str(train.scale)]
    return replace(space, whitening=whitening, tensors=cache.remembered(f"zca-{whitening}-1", key, make))
