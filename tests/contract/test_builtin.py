"""The built-in parts under the checks that plugin authors inherit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ddfed.data import RealData
from ddfed.errors import ConfigError
from ddfed.registry import registry
from ddfed.store import (
    Fields,
    Frequencies,
    Hallucinators,
    Mirrored,
    MultiFormation,
    Offsets,
    Palette,
    Pixels,
    SharedBasis,
)
from ddfed.testing import DomainCase, RecipeCase, StoreCase, TwinDomain, checks, parametrize_with_checks, twin_task

INFO = twin_task().info
TWIN = DomainCase(TwinDomain(), "blobs", networks=("small", "wide", "maps", "norms"), reference=95.0)

#: Of recipes for one modality, or by name: the case they are run on, made where its packages are installed.
CASES: dict[str, Callable[[], DomainCase]] = {
    "graph": lambda: DomainCase(registry().load("domain", "graph")(), "digits", networks=("sgc",), protocol="E-gcn"),
    "doscond-graphs": lambda: DomainCase(
        registry().load("domain", "graph")(), "digit-graphs", networks=("gcn-d2-w8",), protocol="E-graphs"
    ),
}

#: Of the gradient family: pools that train little, and what the recipes say of the engine.
_RS = {"length": 2, "epochs": 1}
_RT = {"length": 2, "steps": 1, "batch": 16, "augment": "shift", "cutmix": 1.0}
_JOINT = {"joint": True, "warm_up": [1, 1]}
_HIDDEN = {"distance": "mse", "layers": "hidden", "syn_rows": 3}

#: What makes a recipe a matter of a moment on the twin domain, beyond few steps and items; by recipe.
SMALL = {
    "haba": {"store_options": {"hallucinators": 2, "channels": 2, "kernel": 1, "share": 0.5}},
    "nsd": {"store_options": {"rank": 2, "share": 0.5}},
    "ddif": {"store_options": {"width": 2, "layers": 1, "fit_steps": 5}},
    "auto-palette": {"store_options": {"colours": 4}},
    "rcig": {"objective_options": {"rows": 16, "steps": 3}, "pool_options": {"networks": 2, "steps": 2}},
    "acgan": {"store_options": {"settings": {"latent": 1, "width": 1}}},
    "dim": {
        "store_options": {"settings": {"latent": 1, "width": 1}},
        "pool_options": {"length": 2, "steps": 1, "batch": 16, "augment": "shift"},
    },
    **dict.fromkeys(("label-only", "gift"), {"teacher": {"steps": 3}}),
    **dict.fromkeys(
        ("dd", "sldd"), {"objective_options": {"steps": 2, "rows": 8, "order": "blocks", "learn_lrs": True}}
    ),
    "rat-bptt": {"objective_options": {"steps": 3, "window": 2, "inner": "adam", "rows": 8}},
    "rtp": {"store_options": {"rank": 1}, "objective_options": {"steps": 2, "rows": 8}},
    "ladd": {"teacher": {"steps": 3}, "labels_options": {"grid": 2}},
    "lpld": {
        "network": "norms",
        "teacher": {"steps": 3},
        "labels_options": {"augment": "shift", "blocks": 3, "batch": 4},
    },
    "krr-st": {
        "objective_options": {"rows": 8},
        "pool_options": {"networks": 2},
        "teacher": {"objective": "barlow", "outputs": 4, "steps": 3, "batch": 16, "augment": "shift"},
    },
    "forgetting": {"init_options": {"epochs": 2}},
    **dict.fromkeys(("el2n", "grand"), {"init_options": {"networks": 2, "epochs": 1}}),
    **dict.fromkeys(("herding", "kcenter", "kmeans", "dq"), {"init_options": {"train_steps": 3}}),
    "idm": {"pool_options": {"steps": 1, "batch": 16}, "objective_options": {"rows": 8, "ce_weight": 0.5}},
    **dict.fromkeys(("dc", "dsa"), {"pool_options": _RS, "objective_options": {"rows": 8}}),
    "lcmat": {"pool_options": _RS, "objective_options": {"rows": 8, "curvature": 0.01}},
    **dict.fromkeys(("dcc", "dsac"), {"pool_options": _RS, "objective_options": {"rows": 8, **_JOINT}}),
    **dict.fromkeys(("idc", "idc-i"), {"pool_options": _RT, "objective_options": {"rows": 8, **_HIDDEN}}),
    "dream": {
        "pool_options": _RT,
        "objective_options": {"rows": 8, **_HIDDEN},
        "init_options": {"train_steps": 3},
        "sampler_options": {"every": 2},
    },
    "acc-dd": {
        "pool_options": {**_RT, "networks": 2, "training": {"steps": 2, "batch": 16}},
        "objective_options": {"rows": 8, **_HIDDEN},
    },
}

#: Of the trajectory family: two experts of two short epochs, made before every run.
_EXPERTS: dict[str, Any] = {
    "pool_options": {"experts": 2, "span": 1, "max_start": 2, "make": {"epochs": 2, "batch": 64, "augment": "shift"}},
    "objective_options": {"steps": 2, "lr": 0.1},
    "lr": 1.0,
}
SMALL |= dict.fromkeys(("mtt", "ftd", "tesla", "datm", "att", "mct", "pad"), _EXPERTS)
SMALL |= dict.fromkeys(("seqmatch", "pdd"), {**_EXPERTS, "protocol": "E-dc"})
SMALL["selmatch"] = {**_EXPERTS, "init_options": {"epochs": 2, "direction": "window", "skip": 0.1}}

#: Terms on a host: the host's settings, and a choice of sizes within few steps.
SMALL |= {
    "sdc": SMALL["dsa"],
    "cmi": {"objective_options": {"rows": 8}, "teacher": {"steps": 3}},
    "mim4dd": _EXPERTS,
    "mdc": {**SMALL["idc"], "terms": [{"objective": "multisize", "options": {"every": 1, "window": 1, "rows": 8}}]},
}

#: Of the moments family: banks that train little; the terms stay as they are.
_BANK = {"networks": 2, "training": {"steps": 2, "batch": 16}}
_QUEUE = {"steps": 1, "batch": 16}
_MOMENTS = {
    "cafe": {"network": "maps", "pool_options": {"rows": 8, "length": 2, "epochs": 1}},
    "datadam": {"network": "maps"},
    "m3d": {},
    "dance": {"pool_options": _BANK},
    "dsdm": {"pool_options": _BANK},
    "iid": {"network": "maps", "pool_options": {**_BANK, "drawn": "Q", "drawn_options": _QUEUE}},
    "lqm": {"pool_options": _QUEUE},
    "cover": {"init_options": {"train_steps": 3}},
    "wmdd": {"pool_options": {**_BANK, "networks": 1}, "teacher": {"steps": 3}},
}


#: Of the teacher family: teachers that are trained little and label little, on networks with batch norms.
_VIEWS = {"augment": "shift", "epochs": 2, "batch": 4, "mix": "mixup"}
_TAUGHT = {"network": "norms", "teacher": {"steps": 3}, "labels_options": _VIEWS}
_TEACHER = {
    **dict.fromkeys(("sre2l", "cda", "rded", "g-vbsm", "edc", "dwa", "delt", "cv-dd"), _TAUGHT),
    "cv-dd": {**_TAUGHT, "teacher": {"steps": 3, "networks": ("norms", "norms")}},
    "infer": {
        "network": "norms",
        "teacher": {"steps": 3, "networks": ("norms", "norms")},
        "store_options": {"offsets": 2, "share": 0.5},
    },
}


#: Graphs: few experts, networks that are trained little.
_GNN = {"network": "gcn-p0-w8"}
_GRAPH_EXPERTS = {
    "pool_options": {"experts": 2, "span": 1, "max_start": 2, "make": {"epochs": 2, "batch": 256, "passes": 1}},
    "objective_options": {"steps": 2, "lr": 0.1},
    **_GNN,
}
SMALL |= {
    **dict.fromkeys(
        ("gcond", "ctrl", "sgdd"), {"store_options": {"turns": [1, 1], "hidden": 8}, "pool_options": {"epochs": 2}}
    ),
    "gcond-x": {"pool_options": {"epochs": 2}},
    "doscond": {"store_options": {"hidden": 8}},
    "gcdm": {"store_options": {"hidden": 8}, **_GNN},
    "gcdm-x": _GNN,
    **dict.fromkeys(("sfgc", "geom"), _GRAPH_EXPERTS),
    "gc-sntk": {"objective_options": {"kernel": "ntk-hops", "rows": 32}},
}


def _small(name: str) -> dict:
    recipe = registry().load("recipe", name)
    augment = "none" if recipe.defaults.get("augment", "none") == "none" else "shift"
    if name in _MOMENTS:
        rows = {"objective_options": {**recipe.defaults["objective_options"], "rows": 8}}
        return {"augment": augment, **rows, **_MOMENTS[name]}
    return {"augment": augment, **SMALL.get(name, {}), **_TEACHER.get(name, {})}


@parametrize_with_checks([TWIN])
def test_domain(subject, check):
    check(subject)


@parametrize_with_checks(
    [
        StoreCase("pixels", lambda classes: Pixels(INFO, classes)),
        StoreCase("mirrored", lambda classes: Mirrored(INFO, classes)),
        StoreCase("multi-formation", lambda classes: MultiFormation(INFO, classes, factor=2)),
        StoreCase("multi-formation 3", lambda classes: MultiFormation(INFO, classes, factor=3)),
        StoreCase("multi-formation 1 to 2", lambda classes: MultiFormation(INFO, classes, multi=True)),
        StoreCase("dct", lambda classes: Frequencies(INFO, classes)),
        StoreCase("dct energy", lambda classes: Frequencies(INFO, classes, share=0.7, by="energy")),
        StoreCase(
            "hallucinator",
            lambda classes: Hallucinators(INFO, classes, hallucinators=2, channels=2, kernel=1, share=0.5),
        ),
        StoreCase("hallucinator 3", lambda classes: Hallucinators(INFO, classes, hallucinators=1, channels=2)),
        StoreCase("memory", lambda classes: SharedBasis(INFO, classes, rank=2)),
        StoreCase("memory 5", lambda classes: SharedBasis(INFO, classes, rank=5)),
        StoreCase("basis", lambda classes: SharedBasis(INFO, classes, rank=2, share=0.5)),
        StoreCase("field", lambda classes: Fields(INFO, classes, width=3, layers=2, fit_steps=5)),
        StoreCase("offsets", lambda classes: Offsets(INFO, classes, offsets=2)),
        StoreCase("offsets, small", lambda classes: Offsets(INFO, classes, offsets=3, share=0.5)),
        StoreCase("palette", lambda classes: Palette(INFO, classes, colours=4)),
        StoreCase("palette 9", lambda classes: Palette(INFO, classes, colours=9)),
    ]
)
def test_decoder(subject, check):
    check(subject)


@cache
def _case(domain: str) -> DomainCase:
    return CASES[domain]() if domain else TWIN


def _recipe_case(name: str) -> RecipeCase:
    recipe = registry().load("recipe", name)
    where = name if name in CASES else next(iter(recipe.domains), "")
    return RecipeCase(recipe, _case(where), **_small(name))


#: recipe -> the pip line of what it needs and is not installed
ABSENT = {c.name: c.pip_line for c in registry().of_kind("recipe") if c.missing}


@parametrize_with_checks([_recipe_case(name) for name in registry().names("recipe") if name not in ABSENT])
def test_recipe(subject, check):
    check(subject)


def test_every_recipe_was_checked():
    if ABSENT:
        pytest.skip(f"{', '.join(ABSENT)} need {', '.join(set(ABSENT.values()))}")


def test_a_recipe_is_refused_on_another_modality():
    elsewhere = replace(registry().load("recipe", "dm"), name="elsewhere", domains=("graph",))
    with pytest.raises(ConfigError, match="'elsewhere' is for graph"):
        RecipeCase(elsewhere, TWIN)


def test_the_checks_can_fail():
    """A check that nothing can fail proves nothing: break a decoder and see it caught."""

    class Deaf(Pixels):
        def decode(self, items):
            rows, origin = super().decode(items)
            return rows.detach().requires_grad_(), origin

    with pytest.raises(AssertionError, match="must receive gradient"):
        checks.check_gradient_reaches_every_stored_value(StoreCase("deaf", lambda items: Deaf(INFO, items)))


@dataclass(frozen=True, eq=False)
class Peeking(RealData):
    """Training rows that know the labels of test rows."""

    others: RealData | None = None

    def items(self, rows, coupled=False):
        return super().items(rows, coupled) + 1e-3 * self.others.labels[rows].view(-1, 1, 1, 1)


@dataclass(frozen=True, eq=False)
class Stubborn(RealData):
    """Training rows whose classes are what they are, whatever labels they are given."""

    truth: Tensor | None = None

    @property
    def class_index(self):
        return tuple(torch.nonzero(self.truth == c).flatten() for c in range(self.info.num_classes))


class Half(TwinDomain):
    """Networks that let only one of two derivatives through."""

    def network(self, name, info):
        net = super().network(name, info)
        body = net.embed
        net.embed = lambda x: body(x) * body(x).detach()
        return net


class Muddled(TwinDomain):
    """Data that say nothing."""

    def load(self, dataset, root, options):
        task = super().load(dataset, root, options)
        return replace(task, train=replace(task.train, inputs=torch.zeros_like(task.train.inputs)))


def _of_train(kind, **more):
    case = DomainCase(TwinDomain(), "blobs")
    train = case.task.train
    case.task = replace(case.task, train=kind(train.inputs, train.labels, train.info, train.scale, **more))
    return case


def test_the_checks_of_a_domain_can_fail():
    test = twin_task().test
    peeking = _of_train(Peeking, others=test)
    peeking.task = replace(peeking.task, test=test)
    with pytest.raises(AssertionError, match="must not see labels of test"):
        checks.check_labels_of_other_splits_do_not_leak(peeking)
    with pytest.raises(AssertionError, match="must teach chance"):
        checks.check_shuffled_labels_teach_nothing(_of_train(Stubborn, truth=test.labels))
    with pytest.raises(AssertionError, match="second derivative must be exact"):
        checks.check_networks_can_be_differentiated_twice(DomainCase(Half(), "blobs"))
    with pytest.raises(AssertionError, match="must give 99.9 %"):
        checks.check_full_data_reach_the_reference(DomainCase(Muddled(), "blobs", reference=99.9))
    blank = torch.zeros(6, 2, 4, 4), torch.zeros(6, dtype=torch.int64)
    case = DomainCase(TwinDomain(), "blobs", readers={"json": lambda folder: blank})
    with pytest.raises(AssertionError, match="must keep the rows bit for bit"):
        checks.check_exports_come_back(case)
