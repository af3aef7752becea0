"""Loaders: what is in the files comes out, and every broken file gives an error that names it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import (
    cifar_files,
    cifar_records,
    idx_bytes,
    png,
    tar_gz,
    write_idx_set,
    write_parquet,
)

from ddfed.errors import ConfigError, DataError, MissingDataError, UnknownNameError
from ddfed.sources import stratified_split
from ddfed_image import cache
from ddfed_image.domain import FREPO_STD, channel_statistics
from ddfed_image.idx import read_idx

# --- digits ---------------------------------------------------------------------------------------------


def test_digits_need_no_files_and_have_a_fixed_stratified_split(domain):
    task, again = domain.load("digits", None, {}), domain.load("digits", None, {})
    assert task.info.shape == (1, 8, 8) and task.info.mirror_axis is None
    assert (len(task.train), len(task.test)) == (1438, 359)
    assert task.train.content_hash == again.train.content_hash
    shares = task.test.class_counts / (task.test.class_counts + task.train.class_counts)
    assert ((shares - 0.2).abs() < 0.01).all()
    assert "fixed seed" in task.info.source
    pixels = task.info.space.decode(task.train.all().inputs)
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6


def test_digits_are_standardised(domain):
    x = domain.load("digits", None, {}).train.all().inputs
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-3


def test_split_uses_every_row_once_and_tests_small_classes():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2])
    train, test = stratified_split(labels)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(13))
    assert torch.bincount(labels[test], minlength=3).tolist() == [2, 1, 0]


def test_channel_statistics_equal_the_direct_ones():
    x = torch.randint(0, 200, (50, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = channel_statistics(x, 1 / 255)
    values = (x.double() / 255).movedim(1, 0).flatten(1)
    np.testing.assert_allclose(mean, values.mean(1), atol=6e-5)
    np.testing.assert_allclose(std, values.std(1, correction=0), atol=6e-5)
    assert channel_statistics(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), 1.0) == ((0.0,), (1.0,))


# --- IDX ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_idx_files_come_out_as_they_went_in(domain, tmp_path, name, zipped):
    arrays = write_idx_set(tmp_path, zipped=zipped)
    task = domain.load(name, tmp_path, {})
    assert task.train.inputs.shape == (20, 1, 28, 28) and task.test.inputs.dtype == torch.uint8
    assert (task.train.inputs[:, 0].numpy() == arrays["train-images-idx3-ubyte"]).all()
    assert (task.test.labels.numpy() == arrays["t10k-labels-idx1-ubyte"]).all()
    assert task.info.space.mean == {"mnist": (0.1307,), "fashion": (0.2861,)}[name]
    assert task.info.mirror_axis == {"mnist": None, "fashion": -1}[name]
    assert task.info.cell_axes == (-2, -1)


def test_idx_files_may_be_mixed_and_lie_in_the_usual_subfolder(domain, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_idx_set(folder)
    plain = folder / "train-labels-idx1-ubyte"
    (folder / f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    (folder / "t10k-images-idx3-ubyte").rename(folder / "t10k-images.idx3-ubyte")
    assert len(domain.load("mnist", tmp_path, {}).train) == 20


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("keep", [3, 10, 500, -1])
def test_truncated_idx_is_named(domain, tmp_path, zipped, keep):
    write_idx_set(tmp_path, zipped=zipped)
    path = tmp_path / ("train-images-idx3-ubyte" + (".gz" if zipped else ""))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="train-images-idx3-ubyte.* is truncated"):
        domain.load("mnist", tmp_path, {})


def test_damaged_gzip_is_named(domain, tmp_path):
    write_idx_set(tmp_path, zipped=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz is truncated or damaged"):
        domain.load("mnist", tmp_path, {})


def test_wrong_magic_number_is_told_with_the_right_one(domain, tmp_path):
    write_idx_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes((tmp_path / "train-images-idx3-ubyte").read_bytes())
    with pytest.raises(DataError, match="0x00000803, expected 0x00000801"):
        domain.load("mnist", tmp_path, {})


def test_trailing_bytes_and_empty_sets_are_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(idx_bytes(np.zeros(5)) + b"x")
    with pytest.raises(DataError, match="too long"):
        read_idx(path, 0x801)
    path.write_bytes(idx_bytes(np.zeros(0)))
    with pytest.raises(DataError, match="empty"):
        read_idx(path, 0x801)


def test_images_and_labels_of_different_length(domain, tmp_path):
    write_idx_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(19)))
    with pytest.raises(DataError, match="20 images but .* 19 labels"):
        domain.load("mnist", tmp_path, {})


def test_labels_out_of_range(domain, tmp_path):
    write_idx_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(20, 11)))
    with pytest.raises(DataError, match="train-labels.* expected 0 to 9"):
        domain.load("mnist", tmp_path, {})


def test_missing_idx_file_says_what_is_expected_and_what_is_there(domain, tmp_path):
    write_idx_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(MissingDataError, match="t10k-labels-idx1-ubyte.gz.*Found there: .*train-images") as caught:
        domain.load("mnist", tmp_path, {})
    assert str(tmp_path) in str(caught.value) and isinstance(caught.value, FileNotFoundError)


# --- CIFAR ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "inside", "archive"),
    [
        ("cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        ("cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz"),
    ],
)
@pytest.mark.parametrize("form", ["here", "below", "archive"])
def test_cifar_binary(domain, tmp_path, name, inside, archive, form):
    files = cifar_files(name)
    folder = tmp_path / inside if form == "below" else tmp_path
    folder.mkdir(exist_ok=True)
    if form == "archive":
        (tmp_path / archive).write_bytes(tar_gz(files, inside))
    else:
        for file, content in files.items():
            (folder / file).write_bytes(content)
    task = domain.load(name, tmp_path, {})
    classes = 10 if name == "cifar10" else 100
    first = cifar_records(10 if name == "cifar10" else 100, classes, 1 if name == "cifar10" else 2)
    assert (task.train.inputs[: len(first[1])].numpy() == first[1]).all()
    assert (task.train.labels[: len(first[2])].numpy() == first[2]).all()
    assert (len(task.train), len(task.test)) == ((60, 15) if name == "cifar10" else (100, 101))
    assert task.info.num_classes == classes and task.info.shape == (3, 32, 32) and task.info.mirror_axis == -1
    if form == "archive":
        assert [path.name for path in tmp_path.iterdir()] == [archive]  # nothing was unpacked


def test_truncated_cifar_record(domain, tmp_path):
    for file, content in cifar_files("cifar10").items():
        (tmp_path / file).write_bytes(content[:-1] if file == "data_batch_3.bin" else content)
    with pytest.raises(DataError, match="data_batch_3.bin.*truncated"):
        domain.load("cifar10", tmp_path, {})


def test_missing_cifar_batch(domain, tmp_path):
    for file, content in cifar_files("cifar10").items():
        if file != "data_batch_4.bin":
            (tmp_path / file).write_bytes(content)
    with pytest.raises(MissingDataError, match="data_batch_4.bin"):
        domain.load("cifar10", tmp_path, {})


def test_cifar_labels_out_of_range(domain, tmp_path):
    for file, content in cifar_files("cifar10").items():
        (tmp_path / file).write_bytes(b"\x63" + content[1:])
    with pytest.raises(DataError, match="data_batch_1.bin.*expected 0 to 9"):
        domain.load("cifar10", tmp_path, {})


@pytest.mark.parametrize("damage", ["cut", "foreign", "incomplete"])
def test_broken_cifar_archive(domain, tmp_path, damage):
    files = cifar_files("cifar10")
    if damage == "incomplete":
        del files["test_batch.bin"]
    content = tar_gz(files, "cifar-10-batches-bin")
    content = {"cut": content[: len(content) // 2], "foreign": b"no archive", "incomplete": content}[damage]
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz (is truncated|lacks test_batch.bin)"):
        domain.load("cifar10", tmp_path, {})


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1"])
def test_pickles_are_refused_with_the_alternatives(domain, tmp_path, name):
    (tmp_path / name).mkdir() if name.endswith("py") else (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match="pickle.*cifar-10-binary.tar.gz.*parquet"):
        domain.load("cifar10", tmp_path, {})


@pytest.mark.parametrize("place", ["", "data", "plain_text"])
def test_parquet(domain, tmp_path, place):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, 32, 32, 3), np.uint8)
    labels = np.arange(12) % 10
    names = [f"kind {i}" for i in range(10)]
    write_parquet(tmp_path / place / "train-00000-of-00002.parquet", images[:5], labels[:5], names=names)
    write_parquet(tmp_path / place / "train-00001-of-00002.parquet", images[5:], labels[5:], names=names)
    write_parquet(tmp_path / place / "test.parquet", images[:3], labels[:3], names=names)
    task = domain.load("cifar10", tmp_path, {})
    assert (task.train.inputs.permute(0, 2, 3, 1).numpy() == images).all()
    assert (task.train.labels.numpy() == labels).all() and len(task.test) == 3
    assert task.info.classes == tuple(names)  # the labels follow the file's order of names


def test_cifar100_parquet_reads_fine_labels(domain, tmp_path):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    for split in ("train", "test"):
        write_parquet(
            tmp_path / "cifar100" / f"{split}-00000-of-00001.parquet", images, np.array([0, 99]), "fine_label"
        )
    task = domain.load("cifar100", tmp_path, {})
    assert task.train.labels.tolist() == [0, 99] and task.info.classes[0] == "apple"


@pytest.fixture
def parquet_folder(tmp_path) -> Path:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", images, np.array([0, 9]))
    return tmp_path


@pytest.mark.parametrize("keep", [0, 10, -20])
def test_corrupt_parquet_is_named(domain, parquet_folder, keep):
    path = parquet_folder / "test.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="test.parquet is no readable parquet file"):
        domain.load("cifar10", parquet_folder, {})


def test_parquet_with_other_columns(domain, parquet_folder):
    with pytest.raises(DataError, match="'img', 'label'.*needs.*'fine_label'"):
        domain.load("cifar100", parquet_folder, {})


def test_parquet_with_an_unreadable_or_odd_image(domain, parquet_folder):
    write_parquet(parquet_folder / "test.parquet", np.zeros((2, 16, 16, 3), np.uint8), np.array([0, 1]))
    with pytest.raises(DataError, match="row 0 of .*test.parquet is 16x16"):
        domain.load("cifar10", parquet_folder, {})
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"img": [{"bytes": b"?", "path": ""}], "label": [0]}), parquet_folder / "test.parquet")
    with pytest.raises(DataError, match="row 0 of .*test.parquet is no readable image"):
        domain.load("cifar10", parquet_folder, {})
    pq.write_table(pa.table({"img": [b"?"], "label": [0]}), parquet_folder / "test.parquet")
    with pytest.raises(DataError, match="expected a struct"):
        domain.load("cifar10", parquet_folder, {})
    pq.write_table(
        pa.table({"img": [{"bytes": b"?", "path": ""}], "label": pa.array([None], pa.int64())}),
        parquet_folder / "test.parquet",
    )
    with pytest.raises(DataError, match="test.parquet"):
        domain.load("cifar10", parquet_folder, {})


def test_missing_shard_or_split(domain, tmp_path):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", images, np.array([0, 9]))
    write_parquet(tmp_path / "test.parquet", images, np.array([0, 9]))
    with pytest.raises(MissingDataError, match="1 of 2 shards"):
        domain.load("cifar10", tmp_path, {})
    (tmp_path / "train-00000-of-00002.parquet").rename(tmp_path / "train.parquet")
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(MissingDataError, match="test.parquet"):
        domain.load("cifar10", tmp_path, {})


# --- the cache ------------------------------------------------------------------------------------------


def test_decoded_parquet_is_remembered_until_a_file_changes(domain, parquet_folder, own_cache):
    before = sorted(path.name for path in parquet_folder.iterdir())
    first = domain.load("cifar10", parquet_folder, {})
    (kept,) = own_cache.iterdir()
    assert domain.load("cifar10", parquet_folder, {}).train.content_hash == first.train.content_hash
    assert sorted(path.name for path in parquet_folder.iterdir()) == before  # never beside the data
    kept.write_bytes(b"damaged")
    assert domain.load("cifar10", parquet_folder, {}).train.content_hash == first.train.content_hash
    write_parquet(parquet_folder / "train.parquet", np.full((3, 32, 32, 3), 9, np.uint8), np.array([1, 2, 3]))
    assert len(domain.load("cifar10", parquet_folder, {}).train) == 3


@pytest.mark.parametrize("place", ["file", ""])
def test_an_unusable_cache_costs_nothing_but_time(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DDFED_CACHE", str(tmp_path / "file" / "below") if place else "")
    made = cache.remembered("work", ["input"], lambda: {"x": torch.ones(2)})
    assert made["x"].tolist() == [1, 1]


def test_default_cache_is_in_the_home_folder(monkeypatch):
    monkeypatch.delenv("DDFED_CACHE")
    assert cache.folder() == Path.home() / ".cache" / "ddfed"


# --- folder ---------------------------------------------------------------------------------------------


def fill(folder: Path, names=("cat", "dog"), count=5, size=(6, 6), grey=False) -> None:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shape = size if grey else (*size, 3)
            (folder / name / f"{i}.png").write_bytes(png(np.full(shape, 40 * number + i, np.uint8)))


def test_folder_is_split_80_20_and_keeps_the_images_size(domain, tmp_path):
    fill(tmp_path)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / ".thumbs").write_text("x")
    (tmp_path / "dog" / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("ignored")
    task = domain.load("folder", tmp_path, {})
    assert task.info.classes == ("cat", "dog") and task.info.shape == (3, 6, 6) and task.info.mirror_axis == -1
    assert task.train.class_counts.tolist() == [4, 4] and task.test.class_counts.tolist() == [1, 1]
    held = sorted(torch.cat([task.train.inputs, task.test.inputs])[:, 0, 0, 0].tolist())
    assert held == [0, 1, 2, 3, 4, 40, 41, 42, 43, 44]
    assert "fixed seed" in task.info.source and str(tmp_path) not in task.info.source


def test_folder_with_a_split_of_its_own(domain, tmp_path):
    fill(tmp_path / "train", count=3)
    fill(tmp_path / "test", count=2)
    task = domain.load("folder", tmp_path, {})
    assert (len(task.train), len(task.test)) == (6, 4)


def test_folder_sizes_and_channels(domain, tmp_path):
    fill(tmp_path, grey=True)
    assert domain.load("folder", tmp_path, {}).info.shape == (1, 6, 6)
    assert domain.load("folder", tmp_path, {"channels": 3}).info.shape == (3, 6, 6)
    assert domain.load("folder", tmp_path, {"image_size": 12}).info.shape == (1, 12, 12)
    (tmp_path / "cat" / "odd.png").write_bytes(png(np.zeros((9, 7, 3), np.uint8)))
    assert domain.load("folder", tmp_path, {}).info.shape == (3, 32, 32)
    assert domain.load("folder", tmp_path, {"channels": 1}).info.shape == (1, 32, 32)


def test_folder_names_say_whose_an_image_is(domain, tmp_path):
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (tmp_path / split / kind).mkdir(parents=True)
            for i, who in enumerate(("zoe", "anna", "ben", "zoe")):
                (tmp_path / split / kind / f"{who}_{i}.png").write_bytes(png(np.full((4, 4), i, np.uint8)))
    (tmp_path / "test" / "dog" / "anna_1.png").unlink()
    task = domain.load("folder", tmp_path, {"groups": "^([^_]+)_"})
    # Files are read by name: anna_1, ben_2, zoe_0, zoe_3. Groups are numbered alike in both splits.
    assert task.train.groups.tolist() == [0, 1, 2, 2] * 2
    assert task.test.groups.tolist() == [0, 1, 2, 2, 1, 2, 2]
    assert task.train.subset([5, 0]).groups.tolist() == [1, 0]
    assert task.limit(4, None).train.groups.tolist() == [0, 1, 0, 1]
    assert domain.load("folder", tmp_path, {}).train.groups is None
    with pytest.raises(DataError, match="does not fit 15 of 15 file names, such as 'anna_1.png'"):
        domain.load("folder", tmp_path, {"groups": "writer(.)"})


def test_unreadable_image_is_named(domain, tmp_path):
    fill(tmp_path)
    (tmp_path / "dog" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="broken.png is no readable image"):
        domain.load("folder", tmp_path, {})
    random = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (tmp_path / "dog" / "broken.png").write_bytes(png(random)[:3000])
    with pytest.raises(DataError, match="broken.png is no readable image"):
        domain.load("folder", tmp_path, {})


def test_all_unreadable_images_are_named_at_once(domain, tmp_path):
    fill(tmp_path)
    for number in range(12):
        (tmp_path / "dog" / f"broken{number:02}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"12 of \d+ images cannot be read:(?s:.*)broken09.png(?s:.*)and 2 more"):
        domain.load("folder", tmp_path, {})


def test_sixteen_bit_image_is_refused(domain, tmp_path):
    fill(tmp_path)
    (tmp_path / "dog" / "deep.png").write_bytes(png(np.zeros((6, 6), np.uint16)))
    with pytest.raises(DataError, match="deep.png.*8 bits"):
        domain.load("folder", tmp_path, {})


def test_empty_class_single_class_and_no_test_image(domain, tmp_path):
    fill(tmp_path / "a", names=("cat",))
    with pytest.raises(DataError, match="at least 2"):
        domain.load("folder", tmp_path / "a", {})
    fill(tmp_path / "b")
    (tmp_path / "b" / "emu").mkdir()
    with pytest.raises(DataError, match="emu holds no images"):
        domain.load("folder", tmp_path / "b", {})
    fill(tmp_path / "c", count=1)
    with pytest.raises(DataError, match="none for testing"):
        domain.load("folder", tmp_path / "c", {})
    fill(tmp_path / "d" / "train")
    fill(tmp_path / "d" / "test", names=("cat", "emu"))
    with pytest.raises(DataError, match="'dog', 'emu'.*only one of train and test"):
        domain.load("folder", tmp_path / "d", {})
    (tmp_path / "e").mkdir()
    with pytest.raises(MissingDataError, match="train/CLASS.*Found there: nothing"):
        domain.load("folder", tmp_path / "e", {})


# --- names and options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10", "cifar100", "folder"])
def test_absent_folder_says_which_files_are_expected(domain, tmp_path, name):
    with pytest.raises(MissingDataError, match=f"image/{name}.*no folder was given.*holds: .+"):
        domain.load(name, None, {})
    with pytest.raises(MissingDataError, match="nowhere does not exist"):
        domain.load(name, tmp_path / "nowhere", {})
    (tmp_path / "stray.txt").write_text("x")
    with pytest.raises(MissingDataError, match="Found there: 'stray.txt'"):
        domain.load(name, tmp_path, {})


def test_unknown_data_set_and_option_name_the_near_one(domain):
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10'"):
        domain.load("cifar", None, {})
    with pytest.raises(ConfigError, match="Did you mean 'whitening'"):
        domain.load("digits", None, {"whitenning": "mtt"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be"),
        ({"image_size": "32"}, "image_size must be"),
        ({"channels": 2}, "channels must be"),
        ({"channels": True}, "channels must be"),
        ({"groups": "^(["}, "no regular expression"),
        ({"groups": "^[a-z]+_"}, "one pair of brackets .* it has 0"),
    ],
)
def test_odd_option_values(domain, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        domain.load("folder", tmp_path, options)


def test_form_options_are_for_folders(domain):
    with pytest.raises(ConfigError, match="'image_size' is for the data set 'folder'"):
        domain.load("digits", None, {"image_size": 16})
    with pytest.raises(ConfigError, match="'groups' is for the data set 'folder'.* no file names"):
        domain.load("digits", None, {"groups": "(.)_"})


# --- real files -----------------------------------------------------------------------------------------


@pytest.mark.shared
def test_real_mnist(domain, shared):
    task = domain.load("mnist", shared / "mnist", {})
    assert (len(task.train), len(task.test)) == (60_000, 10_000)
    assert channel_statistics(task.train.inputs, 1 / 255) == (task.info.space.mean, task.info.space.std)


@pytest.mark.shared
@pytest.mark.slow
def test_real_cifar10_parquet(domain, shared):
    task = domain.load("cifar10", shared / "cifar10", {})
    assert task.train.class_counts.tolist() == [5000] * 10 and task.test.class_counts.tolist() == [1000] * 10
    mean, std = channel_statistics(task.train.inputs, 1 / 255)
    np.testing.assert_allclose(mean, task.info.space.mean, atol=5e-4)
    # The true deviations, which FRePo uses; those of the DC line are smaller (mean of the deviation within an
    # image). The copy at hand went through JPEG, which takes some contrast.
    np.testing.assert_allclose(std, FREPO_STD["cifar10"], atol=3e-3)


def test_values_are_standardised_by_constants_or_by_what_was_measured(domain):
    by_field, measured = domain.load("digits", None, {}), domain.load("digits", None, {"standardise": "measured"})
    x = measured.train.all().inputs
    assert float(x.mean()) == pytest.approx(0, abs=1e-3) and float(x.std(unbiased=False)) == pytest.approx(1, abs=1e-3)
    natural = [task.info.space.decode(task.train.all().inputs) for task in (by_field, measured)]
    assert torch.allclose(*natural, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"standardise": "mesured"}, "Did you mean 'measured'"),
        ({"standardise": "measured", "whitening": "mtt"}, "whitening 'mtt' has constants of its own"),
    ],
)
def test_wrong_standards_are_refused(domain, options, words):
    with pytest.raises(ConfigError, match=words):
        domain.load("digits", None, options)
