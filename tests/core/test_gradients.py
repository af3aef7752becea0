"""Gradient matching against a version by hand: class by class and row by row, with autograd in float64."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfed.data import RealData, TaskInfo
from ddfed.distill import Checkpointing, distill
from ddfed.domain import Augmentation, Capabilities, Draw, Network
from ddfed.errors import ConfigError, DataError
from ddfed.gate import PlainGate, Query
from ddfed.match import GradientMatching, Judgement, Precision
from ddfed.match.gradients import DISTANCES, statistics
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings
from ddfed.store import HardLabels, LogitLabels
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinShift

TASK = twin_task(per_class=15)
ALL = (0, 1, 2)


class ConvTwin(Network):
    """A conv, a norm of each row, a smooth nonlinearity and a linear head."""

    def __init__(self, info: TaskInfo) -> None:
        super().__init__()
        self.conv = nn.Conv2d(info.shape[0], 4, 3, padding=1)
        self.norm = nn.GroupNorm(4, 4)
        self.middle = nn.Linear(64, 6)
        self.head = nn.Linear(6, info.num_classes)

    def embed(self, x: Tensor) -> Tensor:
        return torch.tanh(self.middle(F.softplus(self.norm(self.conv(x))).flatten(1)))


class Remembering(PlainGate):
    """A gate that keeps the rows it drew, for the version by hand."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.drawn: list[int] = []

    def _draw(self, query: Query, generator: torch.Generator) -> Tensor:
        rows = super()._draw(query, generator)
        self.drawn += rows.tolist()
        return rows


def judgement(
    classes: tuple[int, ...] = ALL,
    ipc: int = 3,
    augmentation: Augmentation | None = None,
    learned: bool = False,
    data: RealData = TASK.train,
    **changes: Any,
) -> Judgement:
    with isolated(0):
        net: Network = ConvTwin(TASK.info).requires_grad_(False)
    # Uneven and interleaved: class c has ipc + c rows.
    row_class = torch.tensor([c for i in range(ipc + max(classes)) for c in classes if i < ipc + c])
    x = torch.randn(len(row_class), *TASK.info.shape, generator=torch.Generator().manual_seed(2))
    labels = LogitLabels(row_class, 3, strength=2.0) if learned else HardLabels(row_class, 3)
    y = labels.targets(torch.arange(len(row_class))).detach().requires_grad_(learned)
    values: dict[str, Any] = {
        "net": net, "x": x.requires_grad_(), "y": y, "row_class": row_class, "classes": classes,
        "gate": Remembering(data), "augmentation": augmentation, "label_loss": labels.loss, "skill": 0.0,
        "step": 4, "streams": Streams(1),
    }  # fmt: skip
    return Judgement(**{**values, **changes})


# --- by hand -----------------------------------------------------------------------------------------------------


def hand_rows(g: list[Tensor], h: list[Tensor]) -> Tensor:
    """DC, equation 9, output unit by output unit."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(g, h):
        for i in range(len(a)):
            u, v = a[i].flatten(), b[i].flatten()
            total = total + 1 - torch.dot(u, v) / (torch.dot(u, u).sqrt() * torch.dot(v, v).sqrt() + 1e-6)
    return total


def hand_cosine(g: list[Tensor], h: list[Tensor]) -> Tensor:
    u, v = (torch.nn.utils.parameters_to_vector(side) for side in (g, h))
    return 1 - torch.dot(u, v) / (u.norm() * v.norm() + 1e-6)


HAND: dict[str, Callable[[list[Tensor], list[Tensor]], Tensor]] = {
    "rows": hand_rows,
    "cosine": hand_cosine,
    "mse": lambda g, h: sum((((a - b) ** 2).sum() for a, b in zip(g, h)), torch.zeros(())),
    "rows+size": lambda g, h: (
        0.1 * hand_rows(g, h) + 0.9 * sum(((a - b).flatten(1).norm(dim=1).sum() for a, b in zip(g, h)), torch.zeros(()))
    ),
    "l1": lambda g, h: sum(((a - b).abs().sum() for a, b in zip(g, h)), torch.zeros(())),
}


def by_hand(
    j: Judgement,
    distance: str = "rows",
    layers: str = "weights",
    joint: bool = False,
    curvature: float = 0.0,
    members: dict[int, list[int]] | None = None,
    **_: Any,
) -> tuple[float, Tensor, Tensor | None]:
    """Loss and cotangents from the rows that the gate drew: a graph of single rows, nothing stacked."""
    net = copy.deepcopy(j.net).double().requires_grad_(True)
    matched = [p for n, p in net.named_parameters() if p.ndim >= 2 and (layers == "weights" or "head" not in n)]
    last = list(net.head.parameters())
    x = j.x.detach().double().requires_grad_()
    y = j.y.detach().double().requires_grad_() if j.y.requires_grad else j.y
    scope = () if len(j.classes) > 1 else (j.classes[0],)
    draw = j.augmentation.draw(3, j.streams.torch("siamese", j.step, *scope)) if j.augmentation else None

    def row_gradients(row: Tensor, c: int, loss: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        if draw is not None and j.augmentation is not None:
            row = j.augmentation(row[None], draw, torch.tensor([c]))[0]
        found = torch.autograd.grad(loss(net(row[None])), [*matched, *last], create_graph=True)
        return list(found[: len(matched)]), torch.cat([t.flatten() for t in found[len(matched) :]])

    def mean(rows: list[tuple[list[Tensor], Tensor]]) -> tuple[list[Tensor], Tensor]:
        grads = [sum(parts[1:], parts[0]) / len(parts) for parts in zip(*(g for g, _ in rows))]
        return grads, torch.stack([one for _, one in rows]).var(0, unbiased=False)

    assert isinstance(j.gate, Remembering)
    real, syn = {}, {}
    for c in j.classes:
        drawn = [r for r in j.gate.drawn if j.gate.data.labels[r] == c]
        assert drawn
        real[c] = [
            row_gradients(
                j.gate.data.batch(torch.tensor([r])).inputs[0].double(),
                c,
                lambda z, c=c: F.cross_entropy(z, torch.tensor([c])),
            )
            for r in drawn
        ]
        mine = members[c] if members else [i for i in range(len(x)) if j.row_class[i] == c]
        syn[c] = [row_gradients(x[i], c, lambda z, i=i: j.label_loss(z, y[i][None]).sum()) for i in mine]
    if joint:
        sides = [([g for c in ALL for g in real[c]], [g for c in ALL for g in syn[c]])]
    else:
        sides = [(real[c], syn[c]) for c in j.classes]
    total = torch.zeros((), dtype=torch.float64)
    for of_real, of_syn in sides:
        (g, spread_g), (h, spread_h) = mean(of_real), mean(of_syn)
        total = total + HAND[distance]([t.detach() for t in g], h)
        total = total + 0.5 * curvature * (spread_g.detach() - spread_h).abs().sum()
    leaves = [x, y] if y.requires_grad else [x]
    grads = torch.autograd.grad(total, leaves)
    return float(total.detach()), grads[0], grads[1] if y.requires_grad else None


def assert_equal(found: Any, wanted: tuple[float, Tensor, Tensor | None]) -> None:
    loss, x, y = wanted
    assert found.loss == pytest.approx(loss, rel=1e-4)
    assert float(x.abs().max()) > 0
    assert torch.allclose(found.x.double(), x, rtol=1e-3, atol=2e-4 * float(x.abs().max()))
    assert (found.y is None) == (y is None)
    if y is not None:
        assert float(y.abs().max()) > 0
        assert torch.allclose(found.y.double(), y, rtol=1e-3, atol=2e-4 * float(y.abs().max()))


@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "siamese"])
@pytest.mark.parametrize("learned", [False, True], ids=["hard", "learned"])
@pytest.mark.parametrize(
    "options",
    [
        *({"distance": d} for d in DISTANCES),
        {"distance": "mse", "layers": "hidden"},
        {"distance": "rows", "layers": "hidden"},
        {"curvature": 0.3},
        {"distance": "mse", "layers": "hidden", "curvature": 2.0},
        {"syn_chunk": 2, "distance": "rows", "curvature": 0.3},
        {"syn_chunk": 9, "distance": "mse"},
        {"joint": True},
        {"joint": True, "syn_chunk": 5, "distance": "cosine", "curvature": 0.1},
    ],
    ids=str,
)
def test_loss_and_cotangent_equal_the_version_by_hand(options: dict[str, Any], learned: bool, augmented: bool):
    j = judgement(augmentation=TwinShift() if augmented else None, learned=learned)
    assert_equal(GradientMatching(rows=6, **options)(j), by_hand(j, **options))


@pytest.mark.parametrize("classes", [(2, 0), (1,)], ids=str)
def test_any_classes_in_any_order(classes: tuple[int, ...]):
    j = judgement(classes, augmentation=TwinShift())
    assert_equal(GradientMatching(rows=6)(j), by_hand(j))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 4, 8, 1000])
def test_the_synthetic_chunk_does_not_matter(chunk: int, joint: bool, distance: str):
    """Classes one by one, several at once (vmap), and a class in parts are one derivative."""
    options = {"rows": 6, "joint": joint, "distance": distance, "curvature": 0.2}
    whole = GradientMatching(syn_chunk=5, **options)(judgement(learned=True))
    parts = GradientMatching(syn_chunk=chunk, **options)(judgement(learned=True))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert torch.allclose(parts.x, whole.x, rtol=1e-3, atol=1e-5 * float(whole.x.abs().max()))
    assert parts.y is not None and whole.y is not None
    assert torch.allclose(parts.y, whole.y, rtol=1e-3, atol=1e-5 * float(whole.y.abs().max()))


def test_classes_together_hold_no_more_rows_than_the_chunk(monkeypatch: pytest.MonkeyPatch):
    import ddfed.match.gradients as module

    seen: list[int] = []

    def spy(*given: Any, **named: Any) -> Any:
        seen.append(given[2].shape[0])
        return statistics(*given, **named)

    monkeypatch.setattr(module, "statistics", spy)
    for chunk in (1, 3, 4):
        GradientMatching(rows=6, syn_chunk=chunk)(judgement())
        assert max(seen) <= chunk
        seen.clear()


def test_the_gates_chunk_does_not_matter():
    one, two = (GradientMatching(rows=9)(judgement(gate=PlainGate(TASK.train, chunk=n))) for n in (2, 100))
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    assert torch.allclose(one.x, two.x, rtol=1e-3, atol=1e-6)


def test_a_set_that_is_the_data_has_no_gap():
    data = TASK.train.all()
    for options in ({"distance": "mse"}, {"distance": "l1", "joint": True}, {"curvature": 1.0}):
        j = judgement(
            augmentation=TwinShift(), x=data.inputs.clone().requires_grad_(), y=data.classes, row_class=data.classes
        )
        assert GradientMatching(rows=None, **options)(j).loss < 5e-3


def test_each_class_has_a_draw_of_its_own_and_both_sides_share_it():
    """Every transform is recorded: rows of one class, real or synthetic, saw one entry, and classes differ."""

    class Recording(TwinShift):
        def __init__(self) -> None:
            self.seen: list[tuple[int, float]] = []

        def __call__(self, x: Tensor, draw: Draw, groups: Tensor) -> Tensor:
            self.seen += [(int(c), float(draw.u[int(c), 0])) for c in groups]
            return super().__call__(x, draw, groups)

    recording = Recording()
    GradientMatching(rows=5, syn_chunk=4)(judgement(augmentation=recording))
    numbers = [{u for c, u in recording.seen if c == k} for k in ALL]
    assert len(recording.seen) == 3 * 5 + 3 + 4 + 5
    assert [len(n) for n in numbers] == [1, 1, 1] and len(set.union(*numbers)) == 3


def test_warm_up_is_class_by_class_and_ends_with_either_loop():
    options = {"rows": 6, "joint": True, "warm_up": [250, 10]}
    joint = GradientMatching(rows=6, joint=True)(judgement()).loss
    apart = GradientMatching(rows=6)(judgement()).loss
    assert abs(joint - apart) > 0.05 * apart
    for place, wanted in (((249, 9), apart), ((250, 9), joint), ((249, 10), joint), ((0, 0), apart)):
        assert GradientMatching(**options)(judgement(place=place)).loss == pytest.approx(wanted), place


def test_a_random_part_of_the_rows_is_judged():
    options = {"rows": 6, "syn_rows": 2}
    found = GradientMatching(**options)(judgement())
    touched = [i for i, row in enumerate(found.x) if bool((row != 0).any())]
    j = judgement()
    members = {c: [i for i in touched if j.row_class[i] == c] for c in ALL}
    assert all(len(rows) == 2 for rows in members.values())
    GradientMatching(**options)(j)
    assert_equal(found, by_hand(j, members=members))
    other = GradientMatching(**options)(judgement(step=5)).x
    assert touched != [i for i, row in enumerate(other) if bool((row != 0).any())]


def test_neither_network_nor_rows_are_changed_by_judging():
    j = judgement(augmentation=TwinShift())
    before = [t.clone() for t in (*j.net.state_dict().values(), j.x.detach())]
    GradientMatching(rows=6, curvature=0.1)(j)
    assert all(torch.equal(a, b) for a, b in zip(before, (*j.net.state_dict().values(), j.x.detach())))
    assert j.x.grad is None and not any(p.requires_grad or p.grad is not None for p in j.net.parameters())


def test_a_bfloat16_real_side_stays_near_and_leaves_the_synthetic_side_alone():
    exact, cheap = (GradientMatching(Precision(bf16=b), rows=None, distance="mse")(judgement()) for b in (False, True))
    assert cheap.loss == pytest.approx(exact.loss, rel=5e-2) and cheap.loss != exact.loss
    assert float((cheap.x - exact.x).norm() / exact.x.norm()) < 5e-2
    assert cheap.x.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("options", [{"curvature": 0.2}, {"joint": True, "syn_chunk": 6, "distance": "mse"}], ids=str)
def test_compiled_equals_eager_to_rounding(options: dict[str, Any]):
    eager = GradientMatching(rows=6, **options)(judgement(learned=True))
    found = GradientMatching(Precision(compiled=True), rows=6, **options)(judgement(learned=True))
    assert found.loss == pytest.approx(eager.loss, rel=1e-4)
    assert torch.allclose(found.x, eager.x, rtol=1e-3, atol=1e-5 * float(eager.x.abs().max()))


# --- refusals ----------------------------------------------------------------------------------------------------


def test_a_network_that_mixes_rows_is_refused_with_the_alternative():
    j = judgement((1,))
    j.net.mixes_rows = True
    with pytest.raises(ConfigError, match="BatchNorm.*instance norm"):
        GradientMatching()(j)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


def test_a_network_that_cannot_be_differentiated_twice_is_refused():
    j = judgement()
    embed = j.net.embed
    j.net.embed = lambda x: _Once.apply(embed(x))  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="differentiates the network twice.*'dm'"):
        GradientMatching()(j)


def test_a_domain_without_second_order_is_refused_before_any_step():
    class First(TwinDomain):
        capabilities = Capabilities(second_order=False)

    with pytest.raises(ConfigError, match="differentiates the network twice.*'twin'"):
        distill(PlainGate(TASK.train), First(), PartSettings(objective="gradient", ipc=1, steps=1), Streams(0))


def test_curvature_needs_a_linear_head():
    j = judgement()
    j.net.head = nn.Sequential(j.net.head)
    assert GradientMatching()(j).loss > 0
    with pytest.raises(ConfigError, match="linear head.*Sequential.*curvature = 0"):
        GradientMatching(curvature=0.1)(j)


def test_a_network_with_nothing_to_match_is_refused():
    class Bare(Network):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(32, 3)

        def embed(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    with pytest.raises(ConfigError, match="layers = 'weights' takes the head"):
        GradientMatching(layers="hidden")(judgement(net=Bare()))


def test_a_class_without_real_rows_is_refused_by_name():
    few = TASK.train.subset(torch.cat(TASK.train.class_index[:2]))
    with pytest.raises(DataError, match="no real row of class"):
        GradientMatching()(judgement(data=few))


def test_a_class_with_fewer_rows_than_asked_gives_all_it_has_or_repeats():
    few = TASK.train.subset(torch.cat([rows[: 2 + i] for i, rows in enumerate(TASK.train.class_index)]))
    j = judgement(data=few)
    assert_equal(GradientMatching(rows=8)(j), by_hand(j))
    assert isinstance(j.gate, Remembering) and len(j.gate.drawn) == 2 + 3 + 4
    j = judgement(data=few)
    GradientMatching(rows=8, top_up=True)(j)
    assert isinstance(j.gate, Remembering) and len(j.gate.drawn) == 24


def test_running_out_of_memory_suggests_a_smaller_chunk():
    for error in (torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):

        def full(logits: Tensor, targets: Tensor, error: Exception = error) -> Tensor:
            raise error

        with pytest.raises(ConfigError, match="syn_chunk = 7.*smaller.*chunk"):
            GradientMatching(syn_chunk=7)(judgement(label_loss=full))

    def broken(logits: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        GradientMatching()(judgement(label_loss=broken))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distance": "row"}, "no distance 'row'. Did you mean 'rows'"),
        ({"layers": "hiden"}, "no layers 'hiden'. Did you mean 'hidden'"),
        ({"rows": 0}, "rows must be at least 1"),
        ({"syn_chunk": None}, "syn_chunk must be at least 1"),
        ({"curvature": -1.0}, "must not be negative"),
        ({"warm_up": [3]}, r"\[outer, inner\]"),
        ({"row": 1}, "no option 'row'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        GradientMatching(**options)


# --- in the loop -------------------------------------------------------------------------------------------------


def parts(**changes: Any) -> PartSettings:
    values: dict[str, Any] = {
        "objective": "gradient", "objective_options": {"rows": 8}, "pool": "RS", "ipc": 2, "steps": 7, "lr": 0.1,
        "pool_options": {"length": 3, "epochs": 2}, "augment": "shift", "network": "small",
    }  # fmt: skip
    return PartSettings(**{**values, **changes})


@pytest.mark.parametrize(
    "settings",
    [
        parts(),
        parts(labels="logits"),
        parts(objective_options={"rows": 8, "joint": True, "warm_up": [1, 2]}),
        parts(
            pool="RT",
            pool_options={"length": 3, "steps": 2, "batch": 16, "augment": "shift", "cutmix": 0.5},
            objective_options={"rows": 8, "distance": "mse", "layers": "hidden", "syn_rows": 1},
            scope="sequential",
            sampler="kmeans",
            sampler_options={"every": 3},
        ),
    ],
    ids=["dsa", "learned labels", "dcc", "dream"],
)
@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_run_equals_the_uninterrupted_one(settings: PartSettings, stop: int):
    def run(**checkpointing: Any) -> str:
        kept = Checkpointing(**{"save": lambda tree: None, **checkpointing})
        return distill(PlainGate(TASK.train), TwinDomain(), settings, Streams(0), checkpointing=kept).content_hash

    saved: list[dict[str, Any]] = []
    whole = run(save=lambda tree: saved.append(copy.deepcopy(tree)), every=stop)
    assert saved[0]["step"] == stop
    assert run(resume=saved[0]) == whole


def test_the_network_stays_as_it_was_when_judged_again():
    """The cache of a first forward within `torch.func` must not leak into later ones."""
    from ddfed_image.domain import ImageDomain
    from ddfed_image.models import build

    info = replace(TASK.info, shape=(1, 12, 12))
    with isolated(0):
        net = build("convnet-w7", info)
    x, y = torch.randn(2, 1, 12, 12), torch.tensor([0, 1])
    torch.func.grad(lambda x: HardLabels.loss(net(x), y).sum())(x)
    assert net(x).shape == (2, 3) and ImageDomain.capabilities.second_order


def test_distances_of_rows_without_a_gradient_are_finite():
    """Dead units give zero rows: their cosine is taken as 0, and the derivative stays finite."""
    g: Sequence[Tensor] = [torch.zeros(2, 3), torch.ones(1, 2)]
    h = [torch.zeros(2, 3, requires_grad=True), torch.ones(1, 2, requires_grad=True)]
    for name, distance in DISTANCES.items():
        for grad in torch.autograd.grad(distance(g, h), h):
            assert bool(torch.isfinite(grad).all()), name
    assert float(DISTANCES["rows"](g, h).detach()) == pytest.approx(2.0, abs=1e-5)
