"""Files are whole or absent, and a tree of tensors comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfed import files
from ddfed.errors import ArtifactError, RunFolderError
from ddfed.files import (
    pack,
    read_json,
    read_state,
    tensors_from_bytes,
    tensors_to_bytes,
    unpack,
    write_bytes,
    write_json,
    write_state,
)


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(same(v, two[k]) for k, v in one.items())
    if isinstance(one, (list, tuple)):
        return isinstance(two, list) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.text("ab.", max_size=3)
    | st.builds(torch.tensor, st.integers(-9, 9))
)
KEYS = st.sampled_from(["a", "b", "a.b", "tensor", "map", "0", "a.0"]) | st.integers(0, 2)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


@given(TREES)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_tree_survives_packing(tree: Any):
    """Bugs found by this test: keys called 'tensor' or 'map', and dotted keys that met on one path."""
    skeleton, tensors = pack(tree)
    assert same(tree, unpack(json.loads(json.dumps(skeleton)), tensors))


def test_an_optimiser_survives_a_state_file(tmp_path: Path):
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    write_state(tmp_path / "state", {"step": 1, "optimizer": optimizer.state_dict()})
    again = torch.optim.Adam([weight], lr=9.0)
    again.load_state_dict(read_state(tmp_path / "state")["optimizer"])
    assert again.param_groups[0]["lr"] == 0.1
    assert torch.equal(again.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg"])


def test_tensors_that_share_memory_are_stored_apart():
    base = torch.arange(6.0)
    again = tensors_from_bytes(tensors_to_bytes({"a": base, "b": base, "c": base.view(2, 3).T}), "x")
    assert torch.equal(again["a"], again["b"]) and torch.equal(again["c"], base.view(2, 3).T)
    assert tensors_to_bytes({"a": base, "b": base[:2]}) == tensors_to_bytes({"b": base[:2], "a": base})


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_truncated_state_is_refused_by_name(tmp_path: Path, keep: int):
    write_state(tmp_path / "state", {"x": torch.ones(5)})
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="state.*truncated or foreign"):
        read_state(tmp_path / "state")


def test_foreign_and_missing_states_are_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match="cannot read"):
        read_state(tmp_path / "absent")
    write_bytes(tmp_path / "foreign", tensors_to_bytes({"x": torch.ones(1)}))
    with pytest.raises(ArtifactError, match="not a ddfed checkpoint"):
        read_state(tmp_path / "foreign")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "card.json"
    write_json(path, {"a": 1})

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunFolderError, match="No space left.*--out"):
        write_json(path, {"a": 2})
    monkeypatch.undo()
    assert read_json(path) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["card.json"]


def test_folders_are_made_and_impossible_ones_explained(tmp_path: Path):
    write_bytes(tmp_path / "a" / "b" / "c", b"x")
    with pytest.raises(RunFolderError, match="cannot write"):
        write_bytes(tmp_path / "a" / "b" / "c" / "d", b"x")
    assert isinstance(RunFolderError(), OSError)


def test_written_files_can_be_read_by_others(tmp_path: Path):
    write_bytes(tmp_path / "x", b"")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_json_is_utf_8_wherever_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bug found by this test: the encoding of the place was used for reading, UTF-8 for writing."""
    seen: list[Any] = []
    plain = Path.read_text

    def watched(self: Path, encoding: str | None = None, errors: str | None = None) -> str:
        seen.append(encoding)
        return plain(self, encoding, errors)

    monkeypatch.setattr(Path, "read_text", watched)
    write_json(tmp_path / "x.json", {"classes": ["æ", "猫"]})
    assert read_json(tmp_path / "x.json") == {"classes": ["æ", "猫"]}
    assert seen == ["utf-8"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"nonsense"])
def test_what_is_no_json_is_refused_by_name(tmp_path: Path, content: bytes):
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"card.json is not readable JSON"):
        read_json(tmp_path / "card.json")
    with pytest.raises(ArtifactError, match="does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ArtifactError, match="not readable"):
        read_json(tmp_path)


def test_the_module_offers_no_pickle():
    assert not hasattr(files, "pickle")
