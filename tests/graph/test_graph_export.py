"""Exports come back as they went, in the hands of the tools they are for; drawings are drawn."""

from __future__ import annotations

import csv
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from ddfed.errors import DataError, UnknownNameError
from ddfed_graph import render
from ddfed_graph.datasets import load
from ddfed_graph.export import FORMATS, GRAPHML_FEATURES, load_pyg, write
from ddfed_graph.facts import weighted_edges

CLASSES = ("zebra, big", "Größe $x$", "none", "a<b>\x01")
Y = torch.tensor([0, 1, 3, 1, 0])


def _graph(width: int = 3, structure: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    x, a = torch.randn(5, width, generator=generator), torch.rand(5, 5, generator=generator)
    return x, ((a + a.T) / 2).fill_diagonal_(0) if structure else None


@pytest.mark.parametrize("structure", [True, False], ids=["structure", "identity"])
@pytest.mark.parametrize("fmt", ["csv", "npz", "pyg"])
def test_exports_are_read_by_the_data_set_of_ones_own(tmp_path, fmt, structure):
    x, a = _graph(structure=structure)
    written = write(fmt, tmp_path / "made", x, a, Y, CLASSES, 0.4, {"method": "gcond"})
    assert all(path.is_file() for path in written) and json.loads(written[-1].read_text()) == {"method": "gcond"}
    raw = load("file", tmp_path / "made", {})
    edges, weights = weighted_edges(a, 0.4)
    assert torch.equal(raw.graph.features, x) and torch.equal(raw.labels, Y)
    assert torch.equal(raw.graph.edges, edges) and torch.equal(raw.graph.weights, weights)
    assert raw.train.tolist() == [0, 1, 2, 3, 4] and not len(raw.validation) and not len(raw.test)
    # The tables say in text what the arrays hold, and cells are stripped of blanks alone.
    assert raw.classes == CLASSES


def test_no_export_is_a_pickle(tmp_path):
    x, a = _graph()
    for fmt in FORMATS:
        for path in write(fmt, tmp_path / fmt, x, a, Y, CLASSES, 0.0):
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as file:
                    assert all(file[key].dtype != object for key in file.files)
            else:
                assert path.suffix in (".csv", ".safetensors", ".graphml")


def test_pyg_export_is_a_data_that_layers_take(tmp_path):
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn import GCNConv

    x, a = _graph()
    (path,) = write("pyg", tmp_path, x, a, Y, CLASSES, 0.4)
    data = load_pyg(path)
    assert data.validate() and data.is_undirected() and data.class_names == list(CLASSES)
    assert torch.equal(data.x, x) and torch.equal(data.y, Y) and data.train_mask.all()
    layer = GCNConv(3, 2)
    found = layer(data.x, data.edge_index, data.edge_attr)
    loops = torch.where(a > 0.4, a, 0.0) + torch.eye(5)
    scale = loops.sum(1).rsqrt()
    torch.testing.assert_close(found, scale[:, None] * loops * scale @ layer.lin(x) + layer.bias)
    with pytest.raises(DataError, match="absent, truncated"):
        load_pyg(tmp_path / "absent.safetensors")


def test_graphml_is_read_by_networkx(tmp_path):
    networkx = pytest.importorskip("networkx")
    x, a = _graph()
    (path,) = write("graphml", tmp_path, x, a, Y, CLASSES, 0.4)
    graph = networkx.read_graphml(path)
    edges, weights = weighted_edges(a, 0.4)
    assert {(int(s[1:]), int(t[1:])) for s, t in graph.edges} == {tuple(e) for e in edges.T.tolist() if e[0] < e[1]}
    for (s, t), weight in zip(edges.T.tolist(), weights.tolist()):
        assert graph.edges[f"n{s}", f"n{t}"]["weight"] == weight
    assert [graph.nodes[f"n{i}"]["class"] for i in range(5)] == Y.tolist()
    assert graph.nodes["n1"]["label"] == "Größe $x$" and graph.nodes["n2"]["label"] == "a<b>\ufffd"
    assert [[graph.nodes[f"n{i}"][f"x{j}"] for j in range(3)] for i in range(5)] == x.tolist()


def test_graphml_says_that_many_features_are_left_out(tmp_path):
    x, a = _graph(GRAPHML_FEATURES + 1)
    (path,) = write("graphml", tmp_path, x, a, Y, CLASSES, 0.4)
    body = ElementTree.parse(path).getroot().find("{*}graph")
    assert body is not None and "65 features of each node are left out" in (body.findtext("{*}desc") or "")
    assert "x0" not in path.read_text()


def test_csv_has_every_edge_once(tmp_path):
    x, a = _graph()
    write("csv", tmp_path, x, a, Y, CLASSES, 0.4)
    with (tmp_path / "edges.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == weighted_edges(a, 0.4)[0].shape[1] // 2
    assert all(int(row["source"]) < int(row["target"]) for row in rows)


def test_nonsense_is_refused(tmp_path):
    x, a = _graph()
    with pytest.raises(UnknownNameError, match="Did you mean 'graphml'"):
        write("grapml", tmp_path, x, a, Y, CLASSES)
    with pytest.raises(DataError, match=r"got \(4, 3\), \(5, 5\), \(5,\)"):
        write("csv", tmp_path, x[:4], a, Y, CLASSES)
    with pytest.raises(DataError, match="labels out of the 2 classes"):
        write("csv", tmp_path, x, a, Y, CLASSES[:2])
    with pytest.raises(DataError, match="empty"):
        write("csv", tmp_path, x[:0], None, Y[:0], CLASSES)
    assert not list(tmp_path.iterdir())


# --- drawings -------------------------------------------------------------------------------------------------


def _size(path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_drawings_have_a_panel_for_what_is_given_and_are_always_the_same(tmp_path, tiny):
    x, a = _graph()
    alone = _size(render.draw(x, None, Y, CLASSES, tmp_path / "alone.png"))
    linked = _size(render.draw(x, a, Y, CLASSES, tmp_path / "linked.png"))
    labels = torch.tensor([0, 1, 1, 2, -1, 3])
    beside = _size(render.draw(x, a, Y, CLASSES, tmp_path / "beside.png", tiny, labels))
    assert alone[0] < linked[0] and alone[1] == linked[1] < beside[1]
    render.draw(x, a, Y, CLASSES, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "linked.png").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 40])
def test_odd_sizes_are_drawn(tmp_path, count):
    y, names = torch.arange(count), tuple(f"$class {i}" for i in range(count))
    for structure in (None, torch.zeros(count, count), torch.ones(count, count)):
        render.draw(torch.ones(count, 1), structure, y, names, tmp_path / "odd.png")
    with pytest.raises(DataError, match="label of every node"):
        render.draw(torch.ones(count, 1), None, y, names, tmp_path / "odd.png", real=load("digits", None, {}).graph)
    with pytest.raises(DataError, match="at least one node"):
        render.draw(torch.ones(0, 1), None, y[:0], names, tmp_path / "odd.png")


def test_springs_bring_linked_nodes_together():
    blocks = torch.block_diag(*(torch.ones(6, 6) for _ in range(3))).fill_diagonal_(0)
    mixed = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    places = render.springs(blocks[mixed][:, mixed], torch.zeros(18, dtype=torch.int64))
    distance = torch.cdist(places, places)
    same = (mixed // 6)[:, None] == mixed // 6
    assert distance[same].mean() < distance[~same].mean() / 2 and places.isfinite().all()
