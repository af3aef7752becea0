"""What the loaders share: the form of a graph as loaded, splits, scaling of features, and the checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfed.errors import ConfigError, DataError, one_of, suggest
from ddfed.seeds import Streams
from ddfed.sources import SPLIT_SEED, data_folder, missing
from ddfed_graph.catalog import DATASETS
from ddfed_graph.graph import Graph

#: What is done to the features: rows to sum 1, standard scores over the training nodes, nothing.
SCALINGS = ("row", "standard", "raw")

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Split:
    """Node numbers of each part, int64."""

    train: Tensor
    validation: Tensor
    test: Tensor
    told: str = "official split"

    @classmethod
    def of(cls, parts: Iterable[Tensor], told: str = "official split") -> Split:
        """From the three parts in order."""
        train, validation, test = parts
        return cls(train, validation, test, told)


@dataclass(frozen=True, eq=False)
class RawGraph:
    """A labelled graph as loaded.

    Args:
        graph: all nodes, features scaled as asked.
        labels: class of each node, (n,) int64; -1 for an unlabelled one.
        train: node numbers, int64; at least one.
        validation: as ``train``; empty where a graph of one's own has none.
        test: as ``validation``.
        classes: class names; the position is the label.
        source: what was read, in words for the card.
        inductive: validation and test nodes are unseen in training: only the induced graph of ``train`` may be used.
        licence: as the source states it.
        notes: what a reader of results should know: how split and features were made, what was left out.

    Raises:
        DataError: lengths differ, a label is out of range, a node of a part is unknown, unlabelled or in two
            parts.
    """

    graph: Graph
    labels: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    classes: tuple[str, ...]
    source: str
    inductive: bool = False
    licence: str = "not stated"
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, count = len(self.graph), len(self.classes)
        if len(self.labels) != n:
            raise DataError(f"{self.source}: {n} nodes but {len(self.labels)} labels")
        if n and not -1 <= int(self.labels.min()) <= int(self.labels.max()) < count:
            raise DataError(
                f"{self.source}: labels run from {int(self.labels.min())} to {int(self.labels.max())}; "
                f"possible are 0 to {count - 1}, and -1 for no label"
            )
        if not len(self.train):
            raise DataError(f"{self.source}: no node is for training, and there is nothing to learn from")
        every = torch.cat([self.train, self.validation, self.test])
        if int(every.min()) < 0 or int(every.max()) >= n:
            raise DataError(f"{self.source}: the split names node {int(every.max())}, and there are {n} nodes")
        if len(every.unique()) < len(every):
            raise DataError(f"{self.source}: {len(every) - len(every.unique())} node(s) are in the split twice")
        if bool((self.labels[every] < 0).any()):
            lost = every[self.labels[every] < 0]
            first = int(lost[0])
            raise DataError(f"{self.source}: {len(lost)} node(s) of the split lack a label, node {first} first")


def assembled(
    name: str,
    options: Options,
    features: Tensor,
    edges: Tensor,
    labels: Tensor,
    split: Split,
    source: str,
    *,
    scaling: str,
    classes: Sequence[str] = (),
    weights: Tensor | None = None,
    inductive: bool = False,
    notes: Mapping[str, Any] | None = None,
) -> RawGraph:
    """A loaded graph from its parts.

    Args:
        name: of the data set.
        options: as given; ``features`` overrides ``scaling``.
        features: (n, d), as stored.
        edges: (2, entries), in any order and direction.
        labels: (n,); -1 for an unlabelled node.
        split: which nodes are for what.
        source: what was read.
        scaling: what the field does to the features of this set, one of `SCALINGS`.
        classes: names; numbers when empty.
        weights: of the entries.
        inductive: see `RawGraph`.
        notes: more to say.
    """
    rule = options.get("features") or scaling
    if not features.numel():
        raise DataError(f"{source} has {features.shape[0]} nodes with {features.shape[1]} features; both are needed")
    names = tuple(classes) or tuple(str(c) for c in range(int(labels.max()) + 1))
    return RawGraph(
        Graph.of(scaled(features.float(), rule, split.train, source), edges, weights),
        labels.long(),
        split.train.long().sort().values,
        split.validation.long().sort().values,
        split.test.long().sort().values,
        names,
        source=f"{source}; {split.told}",
        inductive=inductive,
        licence=DATASETS[name]["licence"],
        notes={"split": split.told, "features": rule, **(notes or {})},
    )


def scaled(features: Tensor, rule: str, train: Tensor, source: str) -> Tensor:
    """Features (n, d) scaled by one of `SCALINGS`.

    ``row``: every row is divided by its sum; rows of zeros stay (Kipf and Welling 2017, released code).
    ``standard``: mean 0 and deviation 1 of each feature over the training nodes; constant ones are only centred.

    Raises:
        DataError: ``row`` with negative features, whose sums mean nothing.
    """
    if rule == "row":
        if bool((features < 0).any()):
            raise DataError(
                f"{source} has negative features, and rows with such cannot be scaled to sum 1; "
                f"choose the option features = 'standard' or 'raw'"
            )
        total = features.sum(1, keepdim=True)
        return features / torch.where(total > 0, total, 1.0)
    if rule == "standard":
        deviation, mean = torch.std_mean(features[train], 0, correction=0)
        return (features - mean) / torch.where(deviation > 0, deviation, 1.0)
    return features


def balanced_split(
    labels: Tensor, train: int, validation: int, test: int | None, classes: Sequence[str], seed: int = SPLIT_SEED
) -> Split:
    """As many nodes of every class in each part, drawn with a fixed seed.

    Args:
        labels: (n,); -1 for an unlabelled node, which no part gets.
        train: nodes a class.
        validation: nodes a class.
        test: nodes a class; None for all that remain. A number makes the test nodes independent of ``train``.
        classes: names, for the error.
        seed: of the draw.

    Raises:
        ConfigError: a class is too small.
    """
    streams = Streams(seed).child("split")
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    need = train + validation + (test or 1)
    for label, name in enumerate(classes):
        nodes = (labels == label).nonzero().flatten()
        if len(nodes) < need:
            raise ConfigError(
                f"class {name!r} has {len(nodes)} labelled nodes, and the split takes {train} for training, "
                f"{validation} for validation and {test or 'at least 1'} for testing. Lower the options per_class "
                f"or validation, or give the data a split of its own."
            )
        nodes = nodes[torch.randperm(len(nodes), generator=streams.torch(label))]
        held, rest = nodes[: test or 0], nodes[test or 0 :]
        parts[0].append(rest[validation : validation + train])
        parts[1].append(rest[:validation])
        parts[2].append(held if test else rest[validation + train :])
    told = (
        f"class-balanced split made here with the fixed seed {seed}: {train} training, {validation} validation and "
        f"{test or 'all other'} test nodes a class"
    )
    return Split.of((torch.cat(part) for part in parts), told)


def pitfalls_split(labels: Tensor, classes: Sequence[str], options: Options) -> Split:
    """The split of a set that has none: 20 training and 30 validation nodes a class, the rest for testing.

    These are the numbers of Shchur et al. 2018 (Pitfalls of Graph Neural Network Evaluation), section 3, who draw a
    hundred such splits; here one is fixed, and ``split_seed`` draws others.
    """
    return balanced_split(
        labels,
        whole(options, "per_class", 20),
        whole(options, "validation", 30, least=0),
        None,
        classes,
        whole(options, "split_seed", SPLIT_SEED, least=0),
    )


def whole(options: Options, key: str, default: int, least: int = 1) -> int:
    """A whole-number option.

    Raises:
        ConfigError: another type, or below ``least``.
    """
    value = options.get(key)
    if value is None:
        return default
    if type(value) is not int or value < least:
        raise ConfigError(f"option {key!r} must be a whole number of at least {least}, got {value!r}")
    return value


def check_options(name: str, options: Options) -> None:
    """Refuse values out of range, and options that this data set has no use for.

    Options of the domain that are none of the loaders' pass.
    """
    known = {key for facts in DATASETS.values() for key in facts["options"]}
    mine = DATASETS[name]["options"]
    for key in known & {key for key, value in options.items() if value is not None}:
        if key not in mine:
            users = [other for other, facts in DATASETS.items() if key in facts["options"]]
            raise ConfigError(
                f"option {key!r} is of no use to the data set 'graph/{name}', which takes {one_of(mine)}. "
                f"Leave it out; it is for {one_of(users)}."
            )
    rule, trust = options.get("features"), options.get("trust_pickle")
    if rule is not None and rule not in SCALINGS:
        raise ConfigError(
            f"unknown option features = {rule!r}.{suggest(str(rule), SCALINGS)} Possible: {one_of(SCALINGS)}"
        )
    if trust is not None and type(trust) is not bool:
        raise ConfigError(f"option 'trust_pickle' is true or false, got {trust!r}")


def located(name: str, root: Path | None, files: Sequence[str], folders: Sequence[str] = ()) -> Path:
    """The folder that holds all files: ``root``, its ``raw``, or NAME or NAME/raw below, in capitals or not.

    Args:
        name: of the data set.
        root: as given.
        files: their names, or paths relative to the folder.
        folders: other names of NAME, in lower case.

    Raises:
        MissingDataError: no such folder, or one that holds only some of the files.
    """
    root = data_folder(root, f"graph/{name}", files)
    named = sorted(path for path in root.iterdir() if path.is_dir() and path.name.lower() in (name, *folders))
    places = [root, root / "raw", *(place for path in named for place in (path / "raw", path))]
    counts = [sum((place / file).is_file() for file in files) for place in places]
    best = places[counts.index(max(counts))]
    if max(counts) < len(files):
        lost = [file for file in files if not (best / file).is_file()]
        raise missing(f"graph/{name}", best, lost)
    return best
