"""Loaders: what is in the files comes out, and every broken file gives an error that names it."""

from __future__ import annotations

import gzip
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_files import links, write_citation, write_dgl, write_ogb, write_saint

from ddfed.errors import ConfigError, DataError, MissingDataError, MissingDependencyError, UnknownNameError
from ddfed_graph import datasets, planetoid
from ddfed_graph.catalog import DATASETS
from ddfed_graph.datasets import OPTIONS, load, nearest
from ddfed_graph.raw import balanced_split, scaled

SMALL = {"per_class": 1, "validation": 1}


# --- all ------------------------------------------------------------------------------------------------------


def test_every_data_set_of_the_catalogue_has_a_loader_and_known_options():
    assert set(datasets.LOADERS) == set(DATASETS)
    assert {key for facts in DATASETS.values() for key in facts["options"]} == set(OPTIONS)


def test_importing_the_loaders_imports_no_graph_library():
    heavy = {"torch_geometric", "networkx", "scipy", "sklearn", "matplotlib"}
    assert not heavy & _imported("datasets", "export", "render", "facts")
    assert not (heavy | {"torch", "numpy"}) & _imported("catalog")


def _imported(*modules: str) -> set[str]:
    """What a fresh Python has imported after these modules of the domain."""
    code = f"import sys, {', '.join(f'ddfed_graph.{name}' for name in modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_missing_package_is_told_with_the_pip_line(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"'graph/cora' needs torch_geometric, scipy.*ddfed\[graph\]"):
        load("cora", tmp_path, {})


def test_unknown_name_and_options_of_no_use_are_told(tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'cora'"):
        load("corra", tmp_path, {})
    with pytest.raises(ConfigError, match="'neighbours' is of no use to the data set 'graph/dblp'.*'digits'"):
        load("dblp", tmp_path, {"neighbours": 3})
    with pytest.raises(ConfigError, match="Did you mean 'row'"):
        load("dblp", tmp_path, {"features": "rows"})
    with pytest.raises(ConfigError, match="'trust_pickle' is true or false"):
        load("cora", tmp_path, {"trust_pickle": "yes"})


@pytest.mark.parametrize("name", [name for name, facts in DATASETS.items() if facts["files"]])
def test_missing_files_say_what_is_expected_where(name, tmp_path):
    for module in DATASETS[name]["modules"]:
        pytest.importorskip(module)
    with pytest.raises(MissingDataError, match="no folder was given"):
        load(name, None, {})
    with pytest.raises(MissingDataError, match=f"graph/{name}'.* does not exist"):
        load(name, tmp_path / "absent", {})
    with pytest.raises(MissingDataError, match="Found there: nothing"):
        load(name, tmp_path, {})


def test_scaling_of_features():
    x = torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, 5.0]])
    rows = scaled(x, "row", torch.tensor([0]), "x")
    torch.testing.assert_close(rows, torch.tensor([[0.25, 0.75], [0, 0], [2 / 7, 5 / 7]]))
    standard = scaled(x, "standard", torch.tensor([0, 1]), "x")
    assert standard[:2].mean(0).tolist() == [0, 0] and standard[:2].std(0, correction=0).tolist() == [1, 1]
    constant = scaled(x, "standard", torch.tensor([1]), "x")
    assert torch.equal(constant, x), "a constant feature is only centred"
    with pytest.raises(DataError, match="negative features"):
        scaled(-x, "row", torch.tensor([0]), "x")


def test_balanced_split_keeps_the_test_nodes_when_training_nodes_change():
    labels = torch.arange(60) % 3
    labels[:3] = -1
    one, two = (balanced_split(labels, train, 4, 5, "abc") for train in (2, 9))
    assert torch.equal(one.test, two.test) and torch.equal(one.validation, two.validation)
    for split, train in ((one, 2), (two, 9)):
        every = torch.cat([split.train, split.validation, split.test])
        assert len(every.unique()) == len(every) and int(every.min()) >= 3
        counts = [labels[part].bincount().tolist() for part in (split.train, split.validation, split.test)]
        assert counts == [[train] * 3, [4] * 3, [5] * 3]
    rest = balanced_split(labels, 2, 4, None, "abc")
    assert len(torch.cat([rest.train, rest.validation, rest.test]).unique()) == 57
    with pytest.raises(ConfigError, match="class 'a' has 19 labelled nodes.*per_class"):
        balanced_split(labels, 16, 4, None, "abc")


# --- digits ---------------------------------------------------------------------------------------------------


def test_digits_are_linked_to_their_nearest_and_split_evenly():
    raw, again = load("digits", None, {}), load("digits", None, {"per_class": None})
    assert raw.graph.content_hash == again.graph.content_hash and torch.equal(raw.test, again.test)
    assert (len(raw.graph), raw.graph.features.shape[1]) == (1797, 64)
    assert raw.graph.features.min() == 0 and raw.graph.features.max() == 1
    counts = [raw.labels[part].bincount().tolist() for part in (raw.train, raw.validation, raw.test)]
    assert counts == [[20] * 10, [50] * 10, [100] * 10]
    assert raw.graph.pointers.diff().min() >= 5 and "Euclidean" in raw.source and "fixed seed" in raw.source
    assert not raw.inductive and raw.licence == "CC BY 4.0 (UCI)"
    few = load("digits", None, {"per_class": 1, "neighbours": 2})
    assert len(few.train) == 10 and torch.equal(few.test, raw.test) and few.graph.links < raw.graph.links


def test_nearest_equals_a_sort_of_the_distances():
    points = torch.randint(0, 9, (40, 3), generator=torch.Generator().manual_seed(0)).double()
    found = nearest(points, 4)[1].reshape(40, 4)
    for node in range(40):
        others = sorted((int((points[node] - points[o]).square().sum()), o) for o in range(40) if o != node)
        assert found[node].tolist() == [o for _, o in others[:4]]


def test_digits_refuse_a_folder_and_nonsense(tmp_path):
    with pytest.raises(ConfigError, match="embedded"):
        load("digits", tmp_path, {})
    with pytest.raises(ConfigError, match="'neighbours' must be a whole number of at least 1, got 0"):
        load("digits", None, {"neighbours": 0})
    with pytest.raises(ConfigError, match="below the 1797"):
        load("digits", None, {"neighbours": 1797})
    with pytest.raises(ConfigError, match="takes 25 for training"):
        load("digits", None, {"per_class": 25})


# --- Planetoid ------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("place", ["", "Cora", "Cora/raw"])
def test_cora_is_the_public_one(shared_graphs, place):
    pytest.importorskip("torch_geometric")
    raw = load("cora", shared_graphs / place, {})
    assert (len(raw.graph), raw.graph.links, int((raw.graph.features != 0).sum())) == (2708, 5278, 49_216)
    assert (len(raw.train), len(raw.validation), len(raw.test)) == (140, 500, 1000)
    assert raw.labels.bincount().tolist() == [351, 217, 418, 818, 426, 298, 180]
    torch.testing.assert_close(raw.graph.features.sum(1), torch.ones(2708))
    assert raw.notes == {"split": "public split", "features": "row"} and len(raw.classes) == 7
    assert not (shared_graphs / "Cora" / "processed").exists()


@pytest.mark.shared
def test_cora_equals_the_data_set_of_pyg(cora_copy):
    pyg = pytest.importorskip("torch_geometric.datasets")
    data, raw = pyg.Planetoid(str(cora_copy), "Cora")[0], load("cora", cora_copy, {"features": "raw"})
    assert torch.equal(raw.graph.features, data.x) and torch.equal(raw.labels, data.y)
    assert torch.equal(raw.graph.edges, data.edge_index[:, data.edge_index[0].argsort(stable=True)])
    assert torch.equal(raw.train, data.train_mask.nonzero().flatten())
    assert torch.equal(raw.test, data.test_mask.nonzero().flatten())


class _Bomb:
    def __reduce__(self):
        return open, ("bomb-went-off", "w")


@pytest.mark.shared
def test_a_changed_pickle_is_not_opened_unless_trusted(cora_copy, monkeypatch):
    pytest.importorskip("torch_geometric")
    monkeypatch.chdir(cora_copy)
    path = cora_copy / "Cora" / "raw" / "ind.cora.graph"
    path.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(DataError, match=r"ind\.cora\.graph comes with Python pickles.*trust_pickle = true"):
        load("cora", cora_copy, {})
    assert not Path("bomb-went-off").exists()
    path.write_bytes(b"\x80\x02}q")
    with pytest.raises(DataError, match="raw files of cora in .* are truncated or damaged"):
        load("cora", cora_copy, {"trust_pickle": True})


@pytest.mark.shared
def test_planetoid_files_without_a_known_checksum_need_trust(cora_copy, monkeypatch):
    pytest.importorskip("torch_geometric")
    raw = cora_copy / "Cora" / "raw"
    for path in raw.iterdir():
        path.rename(raw / path.name.replace("cora", "pubmed"))
    with pytest.raises(DataError, match="not known here.*trust_pickle"):
        load("pubmed", cora_copy / "Cora", {})
    with pytest.raises(DataError, match="labels run from 0 to 6; possible are 0 to 2"):
        load("pubmed", cora_copy / "Cora", {"trust_pickle": True})
    monkeypatch.setitem(planetoid.CLASSES, "pubmed", planetoid.CLASSES["cora"])
    assert load("pubmed", cora_copy / "Cora", {"trust_pickle": True}).graph.links == 5278
    (raw / "ind.pubmed.ty").unlink()
    with pytest.raises(MissingDataError, match=r"expected in .*raw: ind\.pubmed\.ty\. Found there"):
        load("pubmed", cora_copy / "Cora", {"trust_pickle": True})


def test_nodes_that_the_test_index_leaves_out_are_unlabelled():
    labels, lost = planetoid._labelled(torch.tensor([2, 1, 0, 1, 0]), torch.tensor([2, 4]))
    assert labels.tolist() == [2, 1, 0, -1, 0] and lost == 1


# --- npz ------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_dblp_has_its_nodes_and_links(shared_graphs):
    raw = load("dblp", shared_graphs, {})
    assert (len(raw.graph), raw.graph.links, len(raw.classes)) == (17_716, 52_867, 4)
    assert (len(raw.train), len(raw.validation), len(raw.test)) == (80, 120, DATASETS["dblp"]["test"])
    other = load("dblp", shared_graphs / "dblp" / "raw", {"split_seed": 1})
    assert not torch.equal(raw.train, other.train) and "seed 1" in other.notes["split"]


@pytest.mark.parametrize("name", ["dblp", "amazon-photo", "cora-ml"])
def test_npz_sets_equal_what_pyg_reads(tmp_path, name):
    io = pytest.importorskip("torch_geometric.io")
    pytest.importorskip("scipy")
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / DATASETS[name]["files"][0]
    _, adjacency, _ = write_citation(path)
    raw, data = load(name, tmp_path, {**SMALL, "features": "raw"}), io.read_npz(str(path))
    assert torch.equal(raw.graph.features, data.x) and torch.equal(raw.labels, data.y)
    assert torch.equal(raw.graph.edges, data.edge_index) and raw.graph.links == links(adjacency)
    assert (len(raw.train), len(raw.validation), len(raw.test)) == (3, 3, 6)


def test_small_classes_of_cora_full_are_left_out_and_others_refused(tmp_path, monkeypatch):
    write_citation(tmp_path / "cora.npz", labels=np.array([0] * 5 + [1] + [2] * 6))
    monkeypatch.setitem(datasets.LOADERS["cora-full"].func.__globals__["SMALLEST"], "cora-full", 4)
    raw = load("cora-full", tmp_path, SMALL)
    assert raw.labels.tolist() == [0] * 5 + [-1] + [1] * 6 and len(raw.classes) == 2
    assert raw.notes["left_out"] == "the labels of 1 classes with fewer than 4 nodes"
    with pytest.raises(ConfigError, match="class '0' has 5 labelled nodes"):
        load("cora-full", tmp_path, {"per_class": 5})


def test_broken_npz_files_are_named(tmp_path):
    path = tmp_path / "dblp.npz"
    for changes, message in (
        ({"labels": None}, "dblp.npz lacks the arrays 'labels'"),
        ({"adj_indptr": np.array([0, 1])}, "adj_indptr does not describe 12 rows"),
        ({"adj_shape": np.array([12, 3])}, "do not lie in a matrix of 12x3"),
        ({"attr_data": np.ones(2)}, "2 values of attr_data"),
        ({"labels": np.array([{}] * 12)}, "dblp.npz holds Python objects.*pickle"),
        ({"labels": np.zeros(11, int)}, "12 nodes but 11 labels"),
    ):
        write_citation(path, **changes)
        with pytest.raises(DataError, match=message):
            load("dblp", tmp_path, SMALL)
    write_citation(path)
    for keep in (0, 3, 40, -200):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match="dblp.npz"):
            load("dblp", tmp_path, SMALL)


# --- Flickr, Reddit, arXiv ------------------------------------------------------------------------------------

LARGE = {
    "flickr": (write_saint, "flickr/raw", "GraphSAINT"),
    "reddit": (write_saint, "", "GraphSAINT"),
    "ogbn-arxiv": (write_ogb, "ogbn_arxiv", "OGB"),
}


@pytest.mark.parametrize("name", LARGE)
def test_larger_sets_come_out_as_they_went_in(name, tmp_path):
    writer, place, form = LARGE[name]
    x, adjacency, labels = writer(tmp_path / place)
    _check_larger(load(name, tmp_path, {}), x, adjacency, labels, form, name != "ogbn-arxiv")


def test_reddit_is_read_from_either_form(tmp_path):
    pytest.importorskip("scipy")
    x, adjacency, labels = write_dgl(tmp_path)
    _check_larger(load("reddit", tmp_path, {}), x, adjacency, labels, "DGL", True)
    (tmp_path / "reddit_data.npz").unlink()
    with pytest.raises(MissingDataError, match="adj_full.npz.*as DGL has them: reddit_data.npz"):
        load("reddit", tmp_path, {})


def _check_larger(raw, x, adjacency, labels, form, inductive):
    assert raw.labels.tolist() == labels.tolist() and raw.graph.links == links(adjacency)
    assert [p.tolist() for p in (raw.train, raw.validation, raw.test)] == [list(range(8)), [8, 9], [10, 11]]
    torch.testing.assert_close(raw.graph.features[:8].mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(raw.graph.features[:8].std(0, correction=0), torch.ones(5))
    assert raw.inductive == inductive and form in raw.source and raw.notes["features"] == "standard"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("role.json", b"{", "role.json is truncated or no JSON"),
        ("role.json", b'{"tr": [0]}', "role.json must hold lists of nodes"),
        ("role.json", b'{"tr": [0], "va": [1], "te": [99]}', "the split names node 99"),
        ("role.json", b'{"tr": [0], "va": [0], "te": [1]}', "1 node.s. are in the split twice"),
        ("class_map.json", b'{"0": 1}', "of the split lack a label"),
        ("class_map.json", b'{"99": 1}', "class_map.json names node 99"),
        ("feats.npy", b"\x93NUMPY", "feats.npy"),
        ("adj_full.npz", b"PK", "adj_full.npz"),
    ],
)
def test_broken_saint_files_are_named(tmp_path, file, content, message):
    write_saint(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load("flickr", tmp_path, {})


def test_broken_ogb_files_are_named(tmp_path):
    write_ogb(tmp_path)
    path = tmp_path / "raw" / "node-feat.csv.gz"
    for content in (path.read_bytes()[:-12], b"1,2\n", gzip.compress(b"1,a\n")):
        path.write_bytes(content)
        with pytest.raises(DataError, match="node-feat.csv.gz is truncated or no gzipped table"):
            load("ogbn-arxiv", tmp_path, {})


# --- one's own ------------------------------------------------------------------------------------------------

NODES = "id,label,split,u,v\nfa,b,train,1,2\nfb,a,val,3,4\n\nfc,,,5,6\nfd,a,test,7,8e-1\n"
EDGES = "source,target,weight\nfa,fb,0.5\nfb,fa,2\nfc,fd,1\nfc,fc,9\n"


def _write(folder: Path, nodes: str = NODES, edges: str = EDGES) -> Path:
    (folder / "nodes.csv").write_text(nodes)
    (folder / "edges.csv").write_text(edges)
    return folder


def test_tables_come_out_as_they_went_in(tmp_path):
    raw = load("file", _write(tmp_path), {})
    assert raw.graph.features.tolist() == torch.tensor([[1, 2], [3, 4], [5, 6], [7, 0.8]]).tolist()
    assert raw.graph.edges.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]] and raw.graph.weights.tolist() == [2, 2, 1, 1]
    assert raw.classes == ("a", "b") and raw.labels.tolist() == [1, 0, -1, 0]
    assert [p.tolist() for p in (raw.train, raw.validation, raw.test)] == [[0], [1], [3]]
    (tmp_path / "classes.csv").write_text("name\nb\nnone\na\n")
    raw = load("file", tmp_path, {"features": "row"})
    assert raw.classes == ("b", "none", "a") and raw.labels.tolist() == [0, 2, -1, 2]
    torch.testing.assert_close(raw.graph.features.sum(1), torch.ones(4))


def test_tables_without_a_split_get_one_and_numbers_sort_as_numbers(tmp_path):
    nodes = "id,label,u\n" + "".join(f"{i},{(2, 10)[i % 2]},{i}\n" for i in range(8))
    raw = load("file", _write(tmp_path, nodes, "source,target\n0,1\n"), SMALL)
    assert raw.classes == ("2", "10") and raw.labels.tolist() == [0, 1] * 4
    assert (len(raw.train), len(raw.validation), len(raw.test)) == (2, 2, 4) and "split made here" in raw.source


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id,label", "id,lable", "nodes.csv lacks the columns 'label'"),
        ("source,target", "from,to", "edges.csv lacks the columns 'source', 'target'"),
        ("target,weight", "target,mass", "edges.csv has the columns 'mass'"),
        (",u,v", ",u,u", "columns without a name or of the same name: 'u'"),
        ("split,u,v\n", "split\n", "nodes.csv has no feature columns"),
        ("fb,a,val", "fa,a,val", "line 3 of .*nodes.csv: id 'fa' was given before, on line 2"),
        ("fa,b,train", "fa,,train", "line 2 of .*nodes.csv: the label is empty.*split"),
        ("fa,b,train", "fa,b,trian", "line 2 of .*nodes.csv: unknown split 'trian'"),
        ("7,8e-1", "7,eight", "line 6 of .*nodes.csv: feature 'v' is 'eight', which is no number"),
        ("7,8e-1", "7,nan", "line 6 of .*nodes.csv: feature 'v' is 'nan', which is not finite"),
        ("7,8e-1", "7", "line 6 of .*nodes.csv has 4 cells, expected 5"),
        ("fc,fd,1", "fc,fx,1", "line 4 of .*edges.csv: target 'fx' is no id"),
        ("fc,fd,1", "fc,fd,-1", "line 4 of .*edges.csv: weight -1 is not above 0"),
        ("fa,b,train", "fa,b,test", "no node is for training"),
        ("fa,b", '"fa,b', "nodes.csv is no readable CSV file"),
    ],
)
def test_broken_tables_are_told_with_the_line(tmp_path, old, new, message):
    _write(tmp_path, NODES.replace(old, new), EDGES.replace(old, new))
    with pytest.raises(DataError, match=message):
        load("file", tmp_path, {})


def test_a_table_without_its_partner_is_missing_it(tmp_path):
    (_write(tmp_path) / "edges.csv").unlink()
    with pytest.raises(MissingDataError, match="expected in .*: edges.csv. Found there: 'nodes.csv'"):
        load("file", tmp_path, {})
    (tmp_path / "classes.csv").write_text("name\na\n")
    (tmp_path / "edges.csv").write_text(EDGES)
    with pytest.raises(DataError, match="line 2 of .*nodes.csv: label 'b' is none of classes.csv"):
        load("file", tmp_path, {})


def _arrays() -> dict[str, np.ndarray]:
    n = 8
    return {
        "x": np.random.default_rng(0).random((n, 3)),
        "edge_index": np.array([[0, 1, 2], [1, 2, 3]]),
        "y": np.arange(n) % 2,
        "train_mask": np.arange(n) < 4,
        "test_mask": np.arange(n) >= 6,
    }


def test_own_npz_in_both_forms(tmp_path):
    arrays = _arrays()
    np.savez(tmp_path / "mine.npz", **arrays)
    raw = load("file", tmp_path, {})
    assert raw.train.tolist() == [0, 1, 2, 3] and raw.test.tolist() == [6, 7] and not len(raw.validation)
    assert raw.graph.links == 3 and raw.classes == ("0", "1")
    x = arrays.pop("x")
    sparse = {
        "x_data": x.ravel(),
        "x_indices": np.tile(np.arange(3), 8),
        "x_indptr": np.arange(9) * 3,
        "x_shape": x.shape,
    }
    np.savez(tmp_path / "sparse.npz", **arrays, **sparse, classes=np.array(["a", "b"]))
    other = load("file", tmp_path / "sparse.npz", {})
    assert other.graph.content_hash == raw.graph.content_hash and other.classes == ("a", "b")
    with pytest.raises(DataError, match="several graphs, 'mine.npz', 'sparse.npz'"):
        load("file", tmp_path, {})
    with pytest.raises(ConfigError, match="has a split of its own, which option 'per_class'"):
        load("file", tmp_path / "mine.npz", {"per_class": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "neither 'x' nor all of"),
        ({"y": None}, "lacks 'y'"),
        ({"edge_index": None}, "neither 'edge_index' nor all of 'adj_data'"),
        ({"edge_index": np.array([[0], [9]])}, "node 9"),
        ({"y": np.arange(8) - 5}, "y must hold class numbers"),
        ({"y": np.zeros(7, int)}, r"y \(7,\)"),
        ({"val_mask": np.arange(8) < 1}, "1 nodes of val_mask are in another mask"),
        ({"val_mask": np.ones((8, 10), bool)}, "keep one column"),
        ({"edge_attr": np.zeros(3)}, "finite and above 0"),
        ({"x": np.full((8, 3), np.nan)}, "not finite"),
        ({"x": np.array([object()] * 8)}, "pickle"),
    ],
)
def test_broken_own_npz(tmp_path, changes, message):
    arrays = {key: array for key, array in (_arrays() | changes).items() if array is not None}
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load("file", tmp_path, {})


def test_own_pyg_data(tmp_path):
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data

    tensors = {key: torch.from_numpy(array) for key, array in _arrays().items()}
    raws = []
    for name, content in (
        ("data", Data(**tensors, name="mine")),
        ("dict", tensors),
        ("processed", (Data(**tensors).to_dict(), None, Data)),
    ):
        torch.save(content, tmp_path / f"{name}.pt")
        raws.append(load("file", tmp_path / f"{name}.pt", {}))
    assert len({raw.graph.content_hash for raw in raws}) == 1 and raws[0].train.tolist() == [0, 1, 2, 3]


def test_own_pyg_data_with_code_in_it_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("torch_geometric")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.pt"
    torch.save(_Bomb(), path)
    with pytest.raises(DataError, match="mine.pt holds more than tensors.*open"):
        load("file", path, {})
    assert not Path("bomb-went-off").exists()
    for content in (b"", b"nonsense", path.read_bytes()[:-30]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="mine.pt"):
            load("file", path, {})
    torch.save([1, 2], path)
    with pytest.raises(DataError, match="holds list"):
        load("file", path, {})


def test_a_file_of_another_kind_is_told(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="no file of a known kind.*'.npz', '.safetensors'"):
        load("file", tmp_path / "mine.json", {})
    (tmp_path / "mine.safetensors").write_bytes(b"1234")
    with pytest.raises(DataError, match="mine.safetensors is absent, truncated"):
        load("file", tmp_path / "mine.safetensors", {})
