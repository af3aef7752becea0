"""Images of one's own in class folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ddfed.errors import ConfigError, DataError, one_of
from ddfed.sources import SPLIT_SEED, data_folder, missing, stratified_split
from ddfed_image.pictures import decoded, opened
from ddfed_image.raw import Options, RawImages

T = TypeVar("T")

FOLDER_SIZE = 32

#: What counts as an image; other files beside them (Thumbs.db, notes) are passed over.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def check_folder_options(options: Options) -> None:
    """Values of ``image_size``, ``channels`` and ``groups``.

    Raises:
        ConfigError: no whole number from 1 to 1024, channels other than 1 and 3, or no expression with one group.
    """
    size, channels = options.get("image_size"), options.get("channels")
    if size is not None and not (type(size) is int and 1 <= size <= 1024):
        raise ConfigError(f"image_size must be a whole number of pixels from 1 to 1024, got {size!r}")
    if channels is not None and not (type(channels) is int and channels in (1, 3)):
        raise ConfigError(f"channels must be 1 (grey) or 3 (colour), got {channels!r}")
    if options.get("groups") is not None:
        _group_pattern(options["groups"])


def _group_pattern(text: object) -> re.Pattern[str]:
    try:
        found = re.compile(str(text))
    except re.error as error:
        raise ConfigError(f"groups = {text!r} is no regular expression: {error}. Such as '^([^_]+)_'") from error
    if found.groups != 1:
        raise ConfigError(
            f"groups = {text!r} must have one pair of brackets around what names the group (writer, site), such as "
            f"'^([^_]+)_' for anna_0017.png; it has {found.groups}"
        )
    return found


def _groups(files: list[Path], pattern: re.Pattern[str]) -> Tensor:
    """Group of each file by its name, numbered in the order of the groups' names."""
    found = [pattern.search(path.name) for path in files]
    odd = [path for path, match in zip(files, found) if match is None or match[1] is None]
    if odd:
        raise DataError(
            f"groups = {pattern.pattern!r} does not fit {len(odd)} of {len(files)} file names, such as "
            f"{odd[0].name!r}; every image must have a group"
        )
    names = [match[1] for match in found if match]
    number = {name: k for k, name in enumerate(sorted(set(names)))}
    return torch.tensor([number[name] for name in names])


def load_folder(root: Path | None, options: Options) -> RawImages:
    """Images in class folders: ``train/CLASS/*`` and ``test/CLASS/*``, or ``CLASS/*`` split 80/20.

    Args:
        root: the folder.
        options: ``image_size``: side in pixels to resize to; by default the images' own size if all agree,
            else 32. ``channels``: 1 or 3; by default 1 if all images are grey, else 3. ``groups``: a regular
            expression whose one bracket finds in a file's name whose image it is (writer, site), such as
            ``^([^_]+)_``; for natural partitions.

    Raises:
        DataError: an unreadable image, an empty class folder, fewer than two classes, or no test image.
    """
    expected = ["train/CLASS/*.png and test/CLASS/*.png", "or CLASS/*.png, which is split 80/20"]
    root = data_folder(root, "image/folder", expected)
    has_split = (root / "train").is_dir() and (root / "test").is_dir()
    if not has_split and not _subfolders(root):
        raise missing("image/folder", root, expected)
    if has_split:
        classes, files, labels = _listed(root / "train")
        same, test_files, test_labels = _listed(root / "test")
        if same != classes:
            odd = sorted(set(classes) ^ set(same))
            raise DataError(
                f"{root}: the classes {one_of(odd)} are in only one of train and test; both need all classes"
            )
        split = "train and test folders as given"
    else:
        classes, files, labels = _listed(root)
        train, test = stratified_split(labels)
        test_files, test_labels = [files[i] for i in test.tolist()], labels[test]
        files, labels = [files[i] for i in train.tolist()], labels[train]
        split = f"stratified 80/20 split with the fixed seed {SPLIT_SEED}"
        if not test_files:
            raise DataError(f"{root} has one image per class, which leaves none for testing; add images")
    size, channels = _common_form([*files, *test_files], options)
    groups: tuple[Tensor, ...] | tuple[None, None] = (None, None)
    if options.get("groups") is not None:
        groups = _groups([*files, *test_files], _group_pattern(options["groups"])).split([len(files), len(test_files)])
    return RawImages(
        _read_images(files, size, channels),
        labels,
        _read_images(test_files, size, channels),
        test_labels,
        classes,
        source=f"image folder {root.name!r}, {len(files)} train and {len(test_files)} test images as "
        f"{size[0]}x{size[1]} with {channels} channel(s); {split}",
        train_groups=groups[0],
        test_groups=groups[1],
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _listed(folder: Path) -> tuple[tuple[str, ...], list[Path], Tensor]:
    """Class names, files and labels below a folder of class folders."""
    folders = _subfolders(folder)
    if len(folders) < 2:
        raise DataError(
            f"{folder} has {len(folders)} class folder(s) {[f.name for f in folders]}, at least 2 are "
            f"needed: one folder per class with its images inside"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, inner in enumerate(folders):
        found = sorted(path for path in inner.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)
        if not found:
            nested = " (folders below it are not searched)" if _subfolders(inner) else ""
            raise DataError(
                f"class folder {inner} holds no images{nested}; fill it with {', '.join(SUFFIXES)} files or remove it"
            )
        files += found
        labels += [label] * len(found)
    return tuple(f.name for f in folders), files, torch.tensor(labels)


def _common_form(files: list[Path], options: Options) -> tuple[tuple[int, int], int]:
    """Height and width, and channels, of a folder's images; headers only are read."""
    sizes, grey = set(), True
    for _, picture in _each(files, lambda path: opened(path, str(path))):
        with picture:
            sizes.add((picture.height, picture.width))
            grey = grey and picture.mode in ("1", "L", "LA")
    wanted = options.get("image_size")
    size = sizes.pop() if len(sizes) == 1 else (FOLDER_SIZE, FOLDER_SIZE)
    if wanted is not None:
        size = (wanted, wanted)
    return size, options.get("channels") or (1 if grey else 3)


def _each(files: list[Path], read: Callable[[Path], T]) -> Iterator[tuple[int, T]]:
    """Every file read, with its number; all that cannot be read are named in one error, at the end.

    Raises:
        DataError: files that are no readable images, the first ten by name.
    """
    bad: list[str] = []
    for number, path in enumerate(files):
        try:
            found = read(path)
        except DataError as error:
            bad.append(str(error))
            continue
        yield number, found
    if len(bad) == 1:
        raise DataError(bad[0])
    if bad:
        named = "".join(f"\n  {line}" for line in bad[:10]) + (f"\n  and {len(bad) - 10} more" * (len(bad) > 10))
        raise DataError(f"{len(bad)} of {len(files)} images cannot be read:{named}")


def _read_images(files: list[Path], size: tuple[int, int], channels: int) -> Tensor:
    inputs = np.empty((len(files), *size, channels), np.uint8)
    for row, pixels in _each(files, lambda path: decoded(path, str(path), channels, size)):
        inputs[row] = pixels
    return torch.from_numpy(inputs).permute(0, 3, 1, 2).contiguous()
