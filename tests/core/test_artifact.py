"""What is saved comes back as it was, and whatever is not a sound artifact is refused with its name."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddfed.artifact import CARD, READERS, SCHEMA, TENSORS, SyntheticSet
from ddfed.distill import distill
from ddfed.errors import ArtifactError, DdfedError, RunFolderError
from ddfed.files import tensors_from_bytes, tensors_to_bytes
from ddfed.gate import PlainGate
from ddfed.seeds import Streams
from ddfed.settings import PartSettings
from ddfed.space import Space
from ddfed.store import HardLabels, LogitLabels, MultiFormation, Pixels
from ddfed.testing import TwinDomain, twin_task

TASK = twin_task()
STORED = Path(__file__).parent / "data"


def whitened_space() -> Space:
    generator = torch.Generator().manual_seed(0)
    matrix = 2 * torch.eye(32) + 0.1 * torch.randn(32, 32, generator=generator)
    return Space(
        (0.5, 0.5), (0.25, 0.25), whitening="test", tensors={"center": torch.full((32,), 0.1), "matrix": matrix}
    )


def whitened_set() -> SyntheticSet:
    """Everything the schema can hold: whitening, a decoder with options, learned logits, provenance, events."""
    info = replace(TASK.info, space=whitened_space(), classes=("blob 0", "blåb 1", "blob 2"))
    store = MultiFormation(info, torch.tensor([0, 2, 2]))
    store.fill(torch.rand(3, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1)))
    labels = LogitLabels(torch.tensor([0, 2, 2]), 3, strength=2.0)
    event = {"mechanism": "none", "query": "q", "scope": "dataset", "unit": "record", "parameters": {}, "count": 3}
    return SyntheticSet(
        info, store, labels, "E-dc", {"recipe": "by hand", "seed": 4}, {"statement": "None.", "events": [event]}
    )


def distilled(**parts: Any) -> SyntheticSet:
    return distill(PlainGate(TASK.train), TwinDomain(), PartSettings(**{"ipc": 2, "steps": 1, **parts}), Streams(0))


SETS = {
    "pixels": lambda: distilled(),
    "mirrored": lambda: distilled(store="mirrored"),
    "multi-formation": lambda: distilled(store="multi-formation", store_options={"factor": 3}),
    "logits": lambda: distilled(labels="logits"),
    "whitened": whitened_set,
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_comes_back_bit_for_bit(name: str, tmp_path: Path):
    syn = SETS[name]()
    assert syn.save(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    for place in ("", TENSORS, CARD):
        again = SyntheticSet.load(tmp_path / "a" / "b" / place)
        assert all(torch.equal(a, b) for a, b in zip(syn.decoded(), again.decoded()))
        assert again.info == syn.info and again.info.space.agrees(syn.info.space)
        assert again.content_hash == syn.content_hash and again.card("x") == syn.card("x")
        assert (again.protocol, again.provenance, again.privacy) == (syn.protocol, syn.provenance, syn.privacy)
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [CARD, TENSORS]


def test_saving_twice_writes_the_same_bytes(tmp_path: Path):
    syn = whitened_set()
    for name in "ab":
        syn.save(tmp_path / name)
    for file in (CARD, TENSORS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_card_holds_what_is_needed_to_train_and_to_judge(tmp_path: Path):
    card = json.loads((whitened_set().save(tmp_path) / CARD).read_text(encoding="utf-8"))
    assert card["schema"] == SCHEMA == 1 and card["licence"] and card["protocol"] == "E-dc"
    assert card["task"]["classes"][1] == "blåb 1" and card["space"]["kind"] == "whitened"
    assert card["decoder"] == {"name": "multi-formation", "options": {"factor": 2, "multi": False}}
    options = {"strength": 2.0, "start": "class"}
    assert card["labels"] == {"name": "logits", "loss": LogitLabels.loss_name, "options": options}
    held = {"items_per_class": [1, 0, 2], "plain_items_per_class": [1, 0, 2]}
    assert card["budget"] == {"items": 3, "rows": 12, **held, "stored_bytes": 3 * 32 * 4, "label_bytes": 3 * (8 + 12)}
    assert card["sha256"] == hashlib.sha256((tmp_path / TENSORS).read_bytes()).hexdigest()


def test_a_set_without_a_ledger_claims_no_privacy():
    syn = SyntheticSet(TASK.info, Pixels(TASK.info, torch.tensor([0])), HardLabels(torch.tensor([0]), 3), "E-dc")
    assert syn.card("")["privacy"]["statement"] == "Unknown: no ledger was kept."
    assert syn.with_provenance(recipe="x").provenance == {"recipe": "x"}


def test_natural_values_are_decoded_clamped_and_labelled():
    syn = whitened_set()
    x, classes = syn.natural()
    rows, _ = syn.decoded()
    assert torch.allclose(x, syn.info.space.decode(rows).clamp(0, 1)) and classes.tolist() == [0] * 4 + [2] * 8


def test_items_and_labels_must_be_equally_many():
    with pytest.raises(ArtifactError, match="2 items but 1 labels"):
        SyntheticSet(TASK.info, Pixels(TASK.info, torch.tensor([0, 1])), HardLabels(torch.tensor([0]), 3), "E-dc")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return whitened_set().save(tmp_path / "set")


def refused(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        SyntheticSet.load(folder)
    return str(caught.value)


def edit_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    (folder / CARD).write_text(json.dumps({**card, **changes}))


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """With a hash that fits, as a careless tool would write it."""
    tensors: dict[str, Any] = {**tensors_from_bytes((folder / TENSORS).read_bytes(), "x"), **changes}
    content = tensors_to_bytes({k: v for k, v in tensors.items() if v is not None})
    (folder / TENSORS).write_bytes(content)
    edit_card(folder, sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(saved: Path, keep: int):
    (saved / TENSORS).write_bytes((saved / TENSORS).read_bytes()[:keep])
    assert "was changed or truncated" in refused(saved)


def test_a_changed_value_is_refused(saved: Path):
    content = bytearray((saved / TENSORS).read_bytes())
    content[-1] ^= 1
    (saved / TENSORS).write_bytes(bytes(content))
    assert f"{TENSORS} was changed or truncated" in refused(saved)


def test_a_foreign_file_with_a_fitting_hash_is_refused(saved: Path):
    (saved / TENSORS).write_bytes(b"not tensors")
    edit_card(saved, sha256=hashlib.sha256(b"not tensors").hexdigest())
    assert "truncated or foreign" in refused(saved)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"3", b'{"kind": "something"}', b"{", b"\xff\xff"])
def test_a_foreign_card_is_refused(saved: Path, content: bytes):
    (saved / CARD).write_bytes(content)
    assert CARD in refused(saved)


@pytest.mark.parametrize("schema", [2, 0, "1", None, [1]])
def test_another_schema_is_refused_with_the_ones_that_can_be_read(saved: Path, schema: object):
    edit_card(saved, schema=schema)
    assert f"schema {schema!r}" in refused(saved) and "Install a newer ddfed" in refused(saved)


def test_missing_files_are_named(saved: Path, tmp_path: Path):
    (saved / TENSORS).unlink()
    assert f"cannot read {saved / TENSORS}" in refused(saved)
    (saved / CARD).unlink()
    assert f"expected {CARD} and {TENSORS}" in refused(saved)
    assert "no distilled set in" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["store.x", "labels.logits", "space.matrix"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(saved: Path, name: str, value: float):
    tensor = tensors_from_bytes((saved / TENSORS).read_bytes(), "x")[name]
    tensor.view(-1)[0] = value
    edit_tensors(saved, **{name: tensor})
    assert refused(saved) == f"stored tensor {name!r} holds values that are not finite"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels.classes": torch.tensor([0, 3, 2])}, "range 0 to 2"),
        ({"labels.classes": torch.tensor([0, -1, 2])}, "range 0 to 2"),
        ({"labels.classes": torch.tensor([0.0, 1.0, 2.0])}, "integer tensor"),
        ({"labels.classes": torch.tensor([0, 2])}, ""),
        ({"labels.classes": None}, "integer tensor"),
        ({"labels.logits": None}, "logits of shape"),
        ({"store.x": torch.zeros(3, 2, 4, 5)}, r"\(3, 2, 4, 5\)"),
        ({"store.x": None}, "got {}"),
        ({"store.x": torch.zeros(3, 2, 4, 4, dtype=torch.int32)}, "stores floats, got 'x' of torch.int32"),
        ({"store.y": torch.zeros(1)}, "'y'"),
        ({"space.matrix": None}, "'center' and 'matrix'"),
        ({"space.matrix": torch.zeros(31, 31)}, "whitening"),
    ],
)
def test_tensors_that_do_not_fit_the_card_are_refused(saved: Path, changes: dict[str, Any], words: str):
    edit_tensors(saved, **changes)
    assert re.search(words, refused(saved))


GARBAGE = [None, -1, 3, 1.5, "x", [], {}, [-1], ["x"], {"a": 1}]


def leaves(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if path else []
    if isinstance(node, dict) and path[:1] not in (("provenance",), ("privacy",)):
        for key in node:
            found += leaves(node[key], (*path, key))
    return found


def test_a_garbled_card_never_ends_in_a_stranger_s_exception(saved: Path):
    """Bugs found by this test: a list as schema, shapes and counts that torch refused."""
    text = (saved / CARD).read_text(encoding="utf-8")
    paths = leaves(json.loads(text))
    assert ("budget", "items") in paths and len(paths) > 25
    failures = []
    for path in paths:
        for value in (..., *GARBAGE):
            card = json.loads(text)
            node = card
            for key in path[:-1]:
                node = node[key]
            if value is ...:
                del node[path[-1]]
            else:
                node[path[-1]] = value
            (saved / CARD).write_text(json.dumps(card))
            try:
                SyntheticSet.load(saved)
            except DdfedError:
                continue
            except Exception as error:
                failures.append((path, value, repr(error)))
            else:
                if value is ... and path[0] not in ("ddfed", "budget", "licence", "labels", "decoder", "space"):
                    failures.append((path, value, "was read"))
    assert not failures


def test_a_place_that_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write .*--out"):
        whitened_set().save(tmp_path / "file" / "below")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_every_released_schema_has_a_reader_and_a_stored_sample():
    assert set(READERS) == {SCHEMA} == {int(p.name.removeprefix("artifact_v")) for p in STORED.glob("artifact_v*")}


def test_the_stored_sample_of_schema_1_reads_as_it_was_written():
    """Written once by ``whitened_set().save(...)`` with ddfed 0.1.0; never write it anew."""
    syn = SyntheticSet.load(STORED / "artifact_v1")
    assert syn.info.classes == ("blob 0", "blåb 1", "blob 2") and syn.info.shape == (2, 4, 4)
    assert syn.info.space.agrees(whitened_space()) and syn.info.cell_axes == (-2, -1) and syn.info.mirror_axis == -1
    assert (len(syn), syn.classes_held, syn.protocol, syn.provenance["recipe"]) == (3, (0, 2), "E-dc", "by hand")
    assert syn.privacy["events"][0]["count"] == 3
    rows, targets = syn.decoded()
    assert rows.shape == (12, 2, 4, 4) and targets[4].tolist() == [0.0, 0.0, 2.0]
    assert syn.content_hash == SAMPLE_HASH
    assert float(rows.double().sum()) == pytest.approx(SAMPLE_SUM, rel=1e-5)
    assert float(syn.natural()[0].double().mean()) == pytest.approx(SAMPLE_NATURAL_MEAN, rel=1e-5)
    assert rows[0, 0, 0].tolist() == pytest.approx(SAMPLE_FIRST, rel=1e-5)


SAMPLE_HASH = "b4385ab79a2f5521658abce10aa8fd559fd60df04021cc657d91e60027956744"
SAMPLE_SUM = 194.18118578195572
SAMPLE_NATURAL_MEAN = 0.584220916343232
SAMPLE_FIRST = [0.4665207, 0.4929695, 0.545867, 0.5723158]
