"""Matching by regression against one graph over everything in float64, solved by LU and always rows by rows."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfed.data import TaskInfo
from ddfed.distill import Checkpointing, distill
from ddfed.domain import Network
from ddfed.errors import ConfigError, DivergedError
from ddfed.evaluate.ridge import KernelRegression
from ddfed.gate import PlainGate, Query
from ddfed.kernels import kernel_named, linear, ntk, ridge_weights
from ddfed.match import ClosedRidge, Cotangent, Judgement, Precision, RidgeMatching
from ddfed.match.kernel import FeatureSolution, KernelSolution, label_margin, points_for
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings
from ddfed.store import HardLabels, LogitLabels, VectorLabels
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinShift

TASK = twin_task(per_class=15)
KINDS = {"hard": HardLabels, "vectors": VectorLabels, "logits": LogitLabels}


class NormTwin(Network):
    """A convolution, a batch norm with statistics of its own, a smooth nonlinearity and a linear head."""

    mixes_rows = True

    def __init__(self, info: TaskInfo, width: int = 7) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(info.shape[0], 4, 3, padding=1), nn.BatchNorm2d(4)
        self.middle, self.head = nn.Linear(64, width), nn.Linear(width, info.num_classes)

    def embed(self, x: Tensor) -> Tensor:
        return torch.tanh(self.middle(F.softplus(self.norm(self.conv(x))).flatten(1)))


class Remembering(PlainGate):
    """A gate that keeps the rows it drew, for the version by hand."""

    def _draw(self, query: Query, generator: torch.Generator) -> Tensor:
        self.drawn = super()._draw(query, generator)
        self.asked = query
        return self.drawn


def judgement(labels: str = "vectors", ipc: int = 2, width: int = 7, chunk: int = 128, **changes: Any) -> Judgement:
    with isolated(0):
        net: Network = NormTwin(TASK.info, width)
        for buffer in (net.norm.running_mean, net.norm.running_var):
            nn.init.uniform_(buffer, 0.5, 1.5)
    row_class = torch.arange(3).repeat(ipc)
    store = KINDS[labels](row_class, 3)
    x = torch.randn(len(row_class), *TASK.info.shape, generator=torch.Generator().manual_seed(2))
    y = store.targets(torch.arange(len(row_class))).detach()
    if y.is_floating_point():
        y = y + 0.3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    values: dict[str, Any] = {
        "net": net.train().requires_grad_(False), "x": x.requires_grad_(), "y": y.requires_grad_(labels != "hard"),
        "row_class": row_class, "classes": (0, 1, 2), "gate": Remembering(TASK.train, chunk=chunk),
        "augmentation": None, "label_loss": store.loss, "skill": 0.0, "step": 4, "streams": Streams(1),
        "vectors": store.vectors,
    }  # fmt: skip
    return Judgement(**{**values, **changes})


def by_hand(j: Judgement, options: dict[str, Any]) -> tuple[float, Tensor, Tensor | None]:
    """Loss and cotangents from one graph over all the rows that the gate drew, in float64."""
    x, y = j.x.detach().double().requires_grad_(), j.y.detach()
    y = y.double().requires_grad_() if y.is_floating_point() else y
    batch = j.gate.data.batch(j.gate.drawn)
    real, inputs = batch.inputs.double(), x
    targets = j.vectors(y).double()
    if options.get("mirror"):
        inputs, targets = torch.cat([x, x.flip(-1)]), torch.cat([targets, targets])
    if j.augmentation is not None:
        draw = j.augmentation.draw(3, j.streams.torch("siamese", j.step))
        inputs = j.augmentation(inputs, draw, j.row_class.repeat(len(inputs) // len(x)))
        real = j.augmentation(real, draw, batch.classes)
    if options.get("kernel", "features") == "features":
        nets = [copy.deepcopy(j.net).double().eval()]
        for number in range(1, options.get("nets", 1)):
            with isolated(j.streams.seed("kernel network", j.step, number)):
                nets.append(NormTwin(TASK.info, j.net.head.in_features).double().eval())
        features = [torch.cat([net.embed(rows) for net in nets], 1) for rows in (inputs, real)]
        bias = options.get("bias", 0.0)
        k_ss, k_ts = (2 * f @ features[0].T / features[0].shape[1] + bias for f in features)
    else:
        depth = int(options["kernel"][-1])
        k_ss, k_ts = ntk(inputs, inputs, depth), ntk(real, inputs, depth)
    lam = options.get("ridge", 1e-6) * k_ss.trace() / len(k_ss)
    predicted = k_ts @ torch.linalg.solve(k_ss + lam * torch.eye(len(k_ss), dtype=torch.float64), targets)
    if options.get("loss") == "platt":
        loss = F.cross_entropy(predicted, batch.classes)
    else:
        loss = 0.5 * (predicted - (F.one_hot(batch.classes, 3) - 1 / 3)).square().mean()
    total = loss
    if options.get("margin"):
        top = j.vectors(y).sort(1).values
        total = total - options["margin"] * torch.minimum(top[:, -1] - top[:, -2], torch.tensor(1 / 3)).mean()
    leaves = [x, y] if y.requires_grad else [x]
    grads = torch.autograd.grad(total, leaves)
    return float(loss.detach()), grads[0], grads[1] if y.requires_grad else None


def assert_equal(found: Cotangent, wanted: tuple[float, Tensor, Tensor | None], rtol: float = 1e-3) -> None:
    loss, x, y = wanted
    assert found.loss == pytest.approx(loss, rel=rtol)
    assert float(x.abs().max()) > 0
    assert float((found.x - x).norm() / x.norm()) < rtol
    assert (found.y is None) == (y is None)
    if y is not None and found.y is not None:
        assert float((found.y - y).norm() / y.norm()) < rtol


@pytest.mark.parametrize("labels", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel": "ntk-fc1"},
        {"kernel": "ntk-fc2", "ridge": 0.1, "balanced": True, "rows": 4},
        {"kernel": "ntk-fc1", "mirror": True, "ridge": 1e-2},
        {"kernel": "ntk-fc1", "loss": "platt", "ridge": 1e-2},
        {"ridge": 1e-2},
        {"ridge": 1e-2, "mirror": True, "bias": 0.1, "margin": 0.7},
        {"ridge": 1e-2, "loss": "platt", "bias": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "siamese"])
def test_loss_and_cotangent_equal_one_graph_over_everything(options: dict[str, Any], labels: str, augmented: bool):
    j = judgement(labels, augmentation=TwinShift() if augmented else None)
    found = RidgeMatching(**{"rows": 11, **options})(j)
    assert len(j.gate.drawn) == (12 if options.get("balanced") else 11)
    assert_equal(found, by_hand(j, options), 2e-3)


def double_sides(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    generator = torch.Generator().manual_seed(seed)
    return draw(6, 2, 5).requires_grad_(), draw(6, 3).requires_grad_(), draw(40, 2, 5), draw(40, 3)


@pytest.mark.parametrize("ridge", [1e-6, 0.3])
@pytest.mark.parametrize("form", ["ntk", "primal", "dual"])
def test_the_way_back_is_exact_in_float64(form: str, ridge: float):
    """The gradient of the naive loss by autograd, LU solve included, to ten digits, at a small and a large ridge."""
    x, y, real, wanted = double_sides()
    # A smooth map to 8 features: more than rows, so rows by rows is the smaller form; both must agree with it.
    matrix = torch.randn(10, 4 if form == "primal" else 8, generator=torch.Generator().manual_seed(9)).double()
    phi = lambda rows: torch.sin(rows.flatten(1) @ matrix)  # noqa: E731
    kernel = ntk if form == "ntk" else lambda a, b: phi(a) @ phi(b).T
    if form == "primal" and ridge < 1e-3:
        ridge = 1e-3  # four features of six rows: rows by rows loses six digits to what it cannot see
    gram = kernel(x, x)
    lam = ridge * gram.diagonal().mean()
    predicted = kernel(real, x) @ torch.linalg.solve(gram + lam * torch.eye(6, dtype=torch.float64), y)
    naive = torch.autograd.grad((predicted - wanted).square().sum(), [x, y])
    if form == "ntk":
        solution: Any = KernelSolution(ntk, x, y, ridge)
    else:
        solution = FeatureSolution(phi, phi(x), y, ridge)
        assert solution.primal == (form == "primal")
    sums = [torch.zeros_like(leaf) for leaf in solution.leaves]
    for rows in torch.arange(40).split(13):
        loss = (solution.predict(real[rows]) - wanted[rows]).square().sum()
        for total, grad in zip(sums, torch.autograd.grad(loss, solution.leaves)):
            total += grad
    found = torch.autograd.grad(solution.pulled(sums), [x, y])
    for mine, theirs in zip(found, naive):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-8


@pytest.mark.parametrize("rows", [3, 12])
def test_primal_and_dual_are_one_derivative(rows: int):
    generator = torch.Generator().manual_seed(rows)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    features, y, cotangent = draw(rows, 7).requires_grad_(), draw(rows, 3).requires_grad_(), draw(7, 3)
    found = []
    for primal in (True, False):
        solution = FeatureSolution(lambda x: x, features, y, 0.05, primal)
        found.append((solution.leaves[0], *torch.autograd.grad(solution.pulled([cotangent]), [features, y])))
    for mine, theirs in zip(*found):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_features_fewer_than_rows_are_solved_width_by_width_through_the_engine():
    j = judgement(ipc=5, width=4)
    assert_equal(RidgeMatching(rows=11, ridge=1e-2, mirror=True)(j), by_hand(j, {"ridge": 1e-2, "mirror": True}), 2e-3)


def test_several_networks_are_fresh_ones_beside_the_drawn_one():
    j = judgement()
    found = RidgeMatching(rows=11, nets=3, bias=0.01, ridge=5e-3)(j)
    assert_equal(found, by_hand(j, {"nets": 3, "bias": 0.01, "ridge": 5e-3}), 2e-3)
    other = RidgeMatching(rows=11, nets=3, bias=0.01, ridge=5e-3)(judgement(step=5))
    assert other.loss != found.loss


@pytest.mark.parametrize("kernel", ["features", "ntk-fc1"])
def test_the_gates_chunk_does_not_matter(kernel: str):
    whole = RidgeMatching(kernel=kernel, rows=40, ridge=1e-3)(judgement(chunk=1000))
    for chunk in (1, 7):
        parts = RidgeMatching(kernel=kernel, rows=40, ridge=1e-3)(judgement(chunk=chunk))
        assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
        assert parts.y is not None and whole.y is not None
        assert float((parts.x - whole.x).norm() / whole.x.norm()) < 1e-4
        assert float((parts.y - whole.y).norm() / whole.y.norm()) < 1e-4


def test_judging_leaves_the_network_as_it_was():
    j = judgement()
    before = copy.deepcopy(j.net.state_dict())
    RidgeMatching(rows=11, nets=2)(j)
    assert j.net.training
    for name, value in j.net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_only_a_map_from_features_to_classes_leaves_the_gate(monkeypatch: pytest.MonkeyPatch):
    shapes: list[list[tuple[int, ...]]] = []
    original = PlainGate.gradient

    def spy(self: PlainGate, query: Query, parameters: Any, *rest: Any) -> Any:
        shapes.append([tuple(p.shape) for p in parameters])
        return original(self, query, parameters, *rest)

    monkeypatch.setattr(PlainGate, "gradient", spy)
    for name in ("sums", "each", "raw"):
        monkeypatch.setattr(PlainGate, name, lambda *a: pytest.fail("asked something else"))
    RidgeMatching(rows=11)(judgement())
    RidgeMatching(rows=11, kernel="ntk-fc1", loss="platt")(judgement())
    assert shapes == [[(7, 3), ()], [(6, *TASK.info.shape), (6, 3), (), ()]]


def test_a_real_side_in_bfloat16_is_near():
    exact = RidgeMatching(rows=30, ridge=1e-2)(judgement())
    near = RidgeMatching(Precision(bf16=True), rows=30, ridge=1e-2)(judgement())
    assert near.loss == pytest.approx(exact.loss, rel=0.05) and near.loss != exact.loss
    assert float((near.x - exact.x).norm() / exact.x.norm()) < 0.1


def test_the_scale_of_a_platt_loss_is_learned_and_kept():
    def judged(engine: RidgeMatching, step: int) -> float:
        return engine(judgement(step=step)).loss

    options = {"rows": 11, "loss": "platt", "ridge": 1e-2, "platt_lr": 0.2}
    one, two = RidgeMatching(**options), RidgeMatching(**options)
    first = judged(one, 0)
    kept = one.state()
    assert abs(float(kept["scale"])) == pytest.approx(0.2, rel=1e-3)  # Adam's first step
    after = judged(one, 1)
    two.load(kept)
    assert judged(two, 1) == after
    assert judged(RidgeMatching(**options), 0) == first and judged(RidgeMatching(**options), 1) != after
    assert RidgeMatching().state() == {}


def test_the_label_margin_is_bounded_by_a_class_share():
    y = torch.tensor([[0.5, 0.4, -0.9], [5.0, -1.0, 0.0]])
    assert float(label_margin(y)) == pytest.approx((0.1 + 1 / 3) / 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kernel": "ntk"}, "unknown kernel 'ntk'.*'linear'.*'ntk-fc1'"),
        ({"loss": "plat"}, "Did you mean 'platt'"),
        ({"ridge": 0.0}, "ridge must be above 0, got 0.0.*singular"),
        ({"rows": 0}, "rows must be at least 1"),
        ({"nets": 0}, "nets must be at least 1"),
        ({"margin": -1}, "margin must not be negative"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        RidgeMatching(**options)


def test_a_singular_kernel_names_the_ridge():
    """Rows of a huge length, so that a tiny ridge drowns in the rounding of a kernel of rank one."""
    j = judgement(ipc=4, x=(1e4 * torch.ones(12, *TASK.info.shape)).requires_grad_())
    with pytest.raises(DivergedError, match=r"12 rows.*raise the ridge \(distill.objective_options.ridge, now 1e-18\)"):
        RidgeMatching(kernel="linear", rows=11, ridge=1e-18)(j)


# --- kernels -----------------------------------------------------------------------------------------------------


def test_a_kernel_of_two_hidden_layers_is_the_limit_of_wide_networks():
    """The mean over sixteen networks of width 4,096 lies within four of its own standard errors of the limit."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    x, width, networks = draw(4, 6), 4096, 16
    layers = lambda: [draw(7, width), draw(width + 1, width), draw(width + 1, 1)]  # noqa: E731
    found = torch.stack([tangent_kernel(x, layers()) for _ in range(networks)])
    limit, error = ntk(x, x, depth=2), found.std(0) / networks**0.5
    assert float(((found.mean(0) - limit).abs() / error).max()) < 4
    assert float(error.max() / limit.diagonal().mean()) < 0.05  # so that agreement means something


def tangent_kernel(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Of a finite network: sum over layers of the products of inputs and of derivatives by the layer's outputs.

    Args:
        x: (rows, values).
        weights: of each layer, with the biases in a last row; standard normal.
    """
    inputs, outputs = [x], []
    for w in weights:
        outputs.append(((2 / (len(w) - 1)) ** 0.5 * inputs[-1] @ w[:-1] + 0.1 * w[-1]).requires_grad_())
        inputs.append(outputs[-1].relu())
    slopes = torch.autograd.grad(outputs[-1].sum(), outputs)
    parts = [(2 / a.shape[1] * a @ a.T + 0.01) * (d @ d.T) for a, d in zip(inputs, slopes)]
    return torch.stack(parts).sum(0).detach()


def test_kernels_by_name():
    x = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(kernel_named("ntk-fc3")(x, x), ntk(x, x, 3))
    assert kernel_named("linear") is linear and torch.equal(linear(x, x), x.flatten(1) @ x.flatten(1).T)
    with pytest.raises(ConfigError, match="unknown kernel 'liner'.*Did you mean 'linear'"):
        kernel_named("liner")


# --- the closed form ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [5, 4])
@pytest.mark.parametrize("ridge", [1e-6, 0.5])
def test_a_regression_on_the_points_returns_the_weights(rank: int, ridge: float):
    """Section 8.4's statement to 1e-10, of full rank and of the rank that centred targets have."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    weights = draw(12, rank) @ draw(rank, 5)
    x, y = points_for(weights, 3.0, ridge)
    assert torch.allclose(x.square().sum(1), torch.full((5,), 9.0, dtype=torch.float64))
    fitted = x.T @ ridge_weights(x @ x.T, y, ridge * 9.0)
    assert float((fitted - weights).abs().max()) < 1e-10
    primal = FeatureSolution(lambda rows: rows, x, y, ridge, primal=True).leaves[0].detach()
    assert float((primal - weights).abs().max()) < 1e-8  # a condition number of 1 / ridge
    assert float((x @ weights).diagonal().min()) > 0


def test_some_classes_get_as_many_points_where_the_weights_have_no_greater_rank():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(12, 2, generator=generator).double() @ torch.randn(2, 5, generator=generator).double()
    x, y = points_for(weights, 2.0, 0.1, (4, 1))
    assert x.shape == (2, 12) and y.shape == (2, 5)
    assert float((x.T @ ridge_weights(x @ x.T, y, 0.4) - weights).abs().max()) < 1e-10


def test_points_need_items_of_as_many_values_as_classes():
    with pytest.raises(ConfigError, match="at least 4 values, these have 3"):
        points_for(torch.zeros(3, 4), 1.0, 1e-6)


@pytest.mark.parametrize("ipc", [1, 3])
def test_one_step_lands_on_the_set_of_the_closed_form(ipc: int):
    """Regression on the distilled set predicts as regression on all real rows."""
    parts = PartSettings(
        ipc=ipc, steps=1, objective="closed-ridge", objective_options={"ridge": 1e-2}, labels="vectors", init="noise",
        lr=1.0, label_lr=1.0, momentum=0.0, chunk=7, protocol="E-linear",
    )  # fmt: skip
    syn = distill(PlainGate(TASK.train, chunk=7), TwinDomain(), parts, Streams(0))
    x, y = syn.decoded()
    test = TASK.test.all().inputs
    real = TASK.train.all()
    targets = F.one_hot(real.classes, 3) - 1 / 3
    wanted = KernelRegression(real.inputs, targets, "linear", ridge=1e-2)(test)
    found = KernelRegression(x, syn.labels.vectors(y), "linear")(test)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": "hard"}, "use distill.labels = 'vectors'"),
        ({"gate": "large"}, r"matrices of 30000 x 30000 values \(6.7 GB each\).*at most 8192 values"),
    ],
    ids=str,
)
def test_what_the_closed_form_cannot_do_is_said(changes: dict[str, Any], said: str):
    if changes.get("gate") == "large":
        gate = PlainGate(TASK.train)
        gate.info = replace(TASK.info, shape=(3, 100, 100))
        changes = {"gate": gate}
    with pytest.raises(ConfigError, match=said):
        ClosedRidge()(judgement(**changes))


def test_ridges_of_the_closed_form_are_positive():
    with pytest.raises(ConfigError, match="set_ridge must be above 0"):
        ClosedRidge(set_ridge=0.0)


# --- in the loop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "platt"])
def test_a_resumed_run_equals_the_uninterrupted_one(loss: str):
    parts = PartSettings(
        ipc=2, steps=7, network="small", objective="ridge",
        objective_options={"rows": 12, "loss": loss, "mirror": True}, pool="QS",
        pool_options={"networks": 2, "max_age": 2, "lr": 0.01}, labels="vectors", optimizer="adam", lr=0.05,
        label_lr=0.05,
    )  # fmt: skip
    trees: list[dict[str, Any]] = []

    def run(resume: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        keep = Checkpointing(lambda tree: trees.append(copy.deepcopy(tree)), 3, resume)
        return distill(PlainGate(TASK.train), TwinDomain(), parts, Streams(0), checkpointing=keep).decoded()

    whole = run()
    for mine, theirs in zip(run(trees[0]), whole):
        assert trees[0]["step"] == 3 and torch.equal(mine, theirs)


def test_with_nothing_free_labels_alone_are_learned():
    parts = PartSettings(
        ipc=2, steps=5, network="small", objective="ridge", objective_options={"rows": 30, "ridge": 0.1},
        store_options={"free": 0.0}, labels="vectors", optimizer="adam", lr=0.1, label_lr=0.1,
    )  # fmt: skip
    begun, ended = (
        distill(PlainGate(TASK.train), TwinDomain(), replace_steps(parts, steps), Streams(0)).decoded()
        for steps in (0, 5)
    )
    assert torch.equal(begun[0], ended[0]) and float((begun[1] - ended[1]).abs().min()) > 0


def test_a_regression_on_learned_rows_beats_one_on_where_they_began():
    """Margin fixed beforehand: 100 steps at least halve the loss on all real rows."""
    parts = PartSettings(
        ipc=1, steps=100, network="small", objective="ridge",
        objective_options={"kernel": "ntk-fc1", "rows": 15, "balanced": True}, optimizer="adam", lr=0.04,
    )  # fmt: skip
    batch, losses = TASK.train.all(), []
    for steps in (0, 100):
        syn = distill(PlainGate(TASK.train), TwinDomain(), replace_steps(parts, steps), Streams(0))
        x, y = syn.decoded()
        fit = KernelRegression(x, syn.labels.vectors(y))
        losses.append(float((fit(batch.inputs) - F.one_hot(batch.classes, 3) + 1 / 3).square().mean()))
    assert losses[1] < 0.5 * losses[0] and math.isfinite(losses[0])


def replace_steps(parts: PartSettings, steps: int) -> PartSettings:
    return parts.model_copy(update={"steps": steps})
