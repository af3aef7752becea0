"""What the image domain offers. Light on purpose: imports neither torch nor numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddfed.hookspecs import hookimpl

if TYPE_CHECKING:
    from ddfed.registry import Registry

_IDX = tuple(
    f"{stem}[.gz]"
    for stem in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
)
_PARQUET = "train.parquet and test.parquet (or train-00000-of-00001.parquet ...)"

#: name -> what `registry.add` says about it
_DATASETS: dict[str, dict[str, Any]] = {
    "digits": {
        "summary": "1,797 grey 8x8 digits, embedded in scikit-learn",
        "modules": ("sklearn",),
        "files": (),
        "classes": 10,
        "train": 1438,
        "test": 359,
    },
    "mnist": {
        "summary": "grey 28x28 handwritten digits, IDX files",
        "modules": (),
        "files": _IDX,
        "classes": 10,
        "train": 60_000,
        "test": 10_000,
    },
    "fashion": {
        "summary": "Fashion-MNIST, grey 28x28 clothes, IDX files",
        "modules": (),
        "files": _IDX,
        "classes": 10,
        "train": 60_000,
        "test": 10_000,
    },
    "cifar10": {
        "summary": "colour 32x32 images of ten kinds, binary archive or parquet",
        "modules": ("PIL", "pyarrow"),
        "files": (
            "data_batch_1.bin ... data_batch_5.bin, test_batch.bin",
            "cifar-10-binary.tar.gz",
            _PARQUET,
        ),
        "classes": 10,
        "train": 50_000,
        "test": 10_000,
    },
    "cifar100": {
        "summary": "colour 32x32 images of a hundred kinds, binary archive or parquet",
        "modules": ("PIL", "pyarrow"),
        "files": ("train.bin, test.bin", "cifar-100-binary.tar.gz", _PARQUET),
        "classes": 100,
        "train": 50_000,
        "test": 10_000,
    },
    "folder": {
        "summary": "your own images, one folder per class",
        "modules": ("PIL",),
        "files": ("train/CLASS/* and test/CLASS/*", "CLASS/* (split 80/20)"),
        "classes": None,
        "train": None,
        "test": None,
    },
}


@hookimpl
def ddfed_register(registry: Registry) -> None:
    registry.add(
        "domain",
        "image",
        "ddfed_image.domain:ImageDomain",
        summary="Images: pixels in [0, 1], standardised per channel or whitened.",
        extra="image",
        modules=("PIL", "pyarrow", "sklearn"),
    )
    for name, summary in (
        ("rotation", "turned by an angle of the client's"),
        ("channel-gain", "channels brighter or darker, by numbers of the client's"),
        ("contrast", "from flat to hard, client by client"),
        ("blur", "from sharp to blurred, client by client"),
    ):
        target = f"ddfed_image.skew:{name.replace('-', '_')}"
        registry.add("skew", name, target, summary=summary, extra="image", domain="image")
    for name, facts in _DATASETS.items():
        registry.add("dataset", f"image/{name}", f"ddfed_image.datasets:load_{name}", extra="image", **facts)
