"""Pictures and exports can be read by other programs, and hold what the set holds."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ddfed.artifact import SyntheticSet
from ddfed.errors import ConfigError, DataError, UnknownNameError
from ddfed.store import HardLabels, LogitLabels, MultiFormation, Pixels
from ddfed_image.export import class_folders


def bytes_of(syn: SyntheticSet) -> np.ndarray:
    return (syn.natural()[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (3, 40, 36)])
def test_render_has_a_row_per_class_and_a_tile_per_image(domain, synthetic, tmp_path, shape):
    syn = synthetic(shape)
    path = domain.render(syn, tmp_path / "deep" / "grid.png")
    picture = np.asarray(Image.open(path))
    factor = -(-48 // min(shape[1:]))
    high, wide = shape[1] * factor + 2, shape[2] * factor + 2
    assert picture.shape[0] == 3 * high + 2
    left = picture.shape[1] - 2 * wide - 2
    assert left > 20 and (picture[:, :left] < 255).any()  # the names
    for number, pixels in enumerate(bytes_of(syn)):
        top, column = 2 + number // 2 * high, left + number % 2 * wide
        tile = picture[top : top + high - 2, column : column + wide - 2]
        enlarged = np.repeat(np.repeat(pixels, factor, 0), factor, 1)
        assert (tile == enlarged).all()


def test_render_shows_at_most_so_many_per_class(domain, synthetic, tmp_path):
    wide = Image.open(domain.render(synthetic(per_class=5), tmp_path / "a.png")).width
    narrow = Image.open(domain.render(synthetic(per_class=5), tmp_path / "b.png", per_class=2)).width
    assert wide - narrow == 3 * 50
    with pytest.raises(ConfigError, match="per_class"):
        domain.render(synthetic(), tmp_path / "c.png", per_class=0)


def test_png_export(domain, synthetic, tmp_path):
    syn = synthetic()
    written = domain.export(syn, tmp_path, "png")
    names = [str(path.relative_to(tmp_path).as_posix()) for path in written]
    assert names == [
        *(f"{folder}/0000{i}.png" for folder in ("0_ankle_boot", "1_up", "2_Gr_e") for i in range(2)),
        "card.json",
    ]
    for path, pixels in zip(written, bytes_of(syn)):
        assert (np.asarray(Image.open(path)) == pixels).all()
    assert json.loads((tmp_path / "card.json").read_text())["sha256"] == syn.content_hash


def test_png_export_loads_as_a_folder(domain, synthetic, tmp_path):
    domain.export(synthetic((1, 8, 8), 5), tmp_path, "png")
    task = domain.load("folder", tmp_path, {})
    assert task.info.shape == (1, 8, 8) and len(task.train) == 12 and len(task.test) == 3


def test_png_export_does_not_mix_with_an_older_one(domain, synthetic, tmp_path):
    domain.export(synthetic(), tmp_path, "png")
    with pytest.raises(ConfigError, match="already holds files"):
        domain.export(synthetic(per_class=1), tmp_path, "png")


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8)])
def test_parquet_export(domain, synthetic, tmp_path, shape):
    syn = synthetic(shape)
    path, card = domain.export(syn, tmp_path, "parquet")
    table = pq.read_table(path)
    assert table.column_names == ["img", "label"]
    assert table["label"].to_pylist() == [0, 0, 1, 1, 2, 2]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": list(syn.info.classes), "_type": "ClassLabel"}
    assert features["img"] == {"_type": "Image"}
    for row, pixels in zip(table["img"].to_pylist(), bytes_of(syn)):
        assert (np.asarray(Image.open(io.BytesIO(row["bytes"]))).reshape(pixels.shape) == pixels).all()
    assert card.name == "card.json"


def test_parquet_export_loads_as_cifar(domain, synthetic, tmp_path):
    """The form written is the form read."""
    syn = synthetic((3, 32, 32))
    info = syn.info.__class__(**{**syn.info.__dict__, "classes": tuple(f"kind {i}" for i in range(10))})
    store = Pixels(info, torch.arange(3).repeat_interleave(2))
    store.load(syn.store.params)
    path, _ = domain.export(SyntheticSet(info, store, syn.labels, "none"), tmp_path, "parquet")
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(path.read_bytes())
    task = domain.load("cifar10", tmp_path, {})
    assert task.info.classes == info.classes
    assert (task.train.inputs.permute(0, 2, 3, 1).numpy() == bytes_of(syn)).all()


def test_learned_labels_are_exported(domain, synthetic, tmp_path):
    syn = synthetic()
    labels = LogitLabels(syn.labels.classes, 3)
    path, _ = domain.export(SyntheticSet(syn.info, syn.store, labels, "none"), tmp_path, "parquet")
    targets = torch.tensor(pq.read_table(path)["target"].to_pylist())
    torch.testing.assert_close(targets, labels.params["logits"].detach())


def test_every_decoded_row_is_exported(domain, synthetic, tmp_path):
    syn = synthetic()
    store = MultiFormation(syn.info, syn.labels.classes, factor=2)
    store.load(syn.store.params)
    many = SyntheticSet(syn.info, store, syn.labels, "none")
    assert len(domain.export(many, tmp_path, "png")) == 6 * 4 + 1
    domain.render(many, tmp_path / "grid.png")


def test_class_folders_are_safe_unique_and_in_label_order():
    names = class_folders(("..", "a/b", "a b", "CON", "", *(f"x{i}" for i in range(20)), "é" * 300))
    assert len(set(names)) == len(names) and names == sorted(names)
    assert all(name[0].isdigit() and "/" not in name and len(name) < 80 for name in names)


def test_empty_sets_odd_channels_and_unknown_formats_are_refused(domain, synthetic, task_info, tmp_path):
    info = task_info((3, 8, 8), 3)
    empty = SyntheticSet(
        info, Pixels(info, torch.zeros(0, dtype=torch.int64)), HardLabels(torch.zeros(0, dtype=torch.int64), 3), "none"
    )
    with pytest.raises(DataError, match="empty set"):
        domain.render(empty, tmp_path / "grid.png")
    with pytest.raises(DataError, match="empty set"):
        domain.export(empty, tmp_path, "png")
    odd = task_info((2, 8, 8), 3)
    with pytest.raises(DataError, match="1 or 3 channels"):
        domain.render(
            SyntheticSet(
                odd,
                Pixels(odd, torch.zeros(1, dtype=torch.int64)),
                HardLabels(torch.zeros(1, dtype=torch.int64), 3),
                "none",
            ),
            tmp_path / "grid.png",
        )
    with pytest.raises(UnknownNameError, match="Did you mean 'parquet'"):
        domain.export(synthetic(), tmp_path, "parket")
