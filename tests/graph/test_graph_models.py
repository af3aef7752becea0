"""Networks: the library's layers as an oracle, one result for sparse and dense, derivatives, redrawing, names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap

from ddfed.data import TaskInfo
from ddfed.domain import Network, reset
from ddfed.errors import ConfigError, DataError, UnknownNameError
from ddfed.match.adjoint import check_repeatable
from ddfed.seeds import isolated
from ddfed.space import Space
from ddfed_graph.graph import Graph, Nodes
from ddfed_graph.models import MODELS, build
from ddfed_graph.structure import Dense, Identity, Sparse, receptive_field

NODES, FEATURES, CLASSES = 60, 12, 3


@pytest.fixture
def info() -> TaskInfo:
    return TaskInfo("graph", "made", (FEATURES,), tuple("abc"), Space())


def made(links: int = 90, filled: float = 1.0, weighted: bool = False, nodes: int = NODES) -> Graph:
    """A random graph whose last node has no neighbours; with ``filled`` below 0.1 its features count as sparse."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(nodes, FEATURES, generator=generator)
    x = torch.where(torch.rand(nodes, FEATURES, generator=generator) < filled, x, 0.0)
    edges = torch.randint(nodes - 1, (2, links), generator=generator)
    return Graph.of(x, edges, torch.rand(links, generator=generator) + 0.5 if weighted else None)


def whole(graph: Graph) -> Tensor:
    """The graph as synthetic rows with their adjacency beside."""
    return torch.cat([graph.features, graph.dense(torch.arange(len(graph)))], 1)


def network(name: str, info: TaskInfo, dtype: torch.dtype = torch.float32) -> Network:
    with isolated(3):
        net = build(name, info).eval().to(dtype)
    for parameter in net.parameters():  # biases that are zero would hide where they come in
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return net


def everything(graph: Graph) -> Tensor:
    return torch.arange(len(graph))


# --- the library's layers ----------------------------------------------------------------------------------------


def copied(layer: nn.Module, **values: Tensor) -> nn.Module:
    """A layer of the library with its parameters replaced."""
    with torch.no_grad():
        for name, value in values.items():
            parameter = layer.get_parameter(name.replace("__", "."))
            parameter.copy_(value.reshape(parameter.shape))
    return layer


def gcn(conv, net, x, edges, weights):
    first, head = net.layers[0], net.head
    one = copied(conv.GCNConv(FEATURES, 16), lin__weight=first.weight, bias=first.bias)
    two = copied(conv.GCNConv(16, CLASSES), lin__weight=head.weight, bias=head.bias)
    return two(torch.relu(one(x, edges, weights)), edges, weights)


def sgc(conv, net, x, edges, weights):
    layer = copied(conv.SGConv(FEATURES, CLASSES, K=2), lin__weight=net.head.weight, lin__bias=net.head.bias)
    return layer(x, edges, weights)


def sage(conv, net, x, edges, weights):
    def layer(before, after, own, others, bias):
        made = conv.SAGEConv(before, after)
        return copied(made, lin_r__weight=own, lin_l__weight=others, lin_l__bias=bias)

    first, (own, others) = net.layers[0], net.head.weight.chunk(2, 1)
    one = layer(FEATURES, 16, first.own.weight, first.others.weight, first.own.bias)
    two = layer(16, CLASSES, own, others, net.head.bias)
    return two(torch.relu(one(x, edges)), edges)


def cheb(conv, net, x, edges, weights):
    first, (own, others) = net.layers[0], net.head.weight.chunk(2, 1)
    one, two = conv.ChebConv(FEATURES, 16, K=2), conv.ChebConv(16, CLASSES, K=2)
    copied(one, lins__0__weight=first.own.weight, lins__1__weight=first.others.weight, bias=first.own.bias)
    copied(two, lins__0__weight=own, lins__1__weight=others, bias=net.head.bias)
    return two(torch.relu(one(x, edges, weights)), edges, weights)


def gat(conv, net, x, edges, weights):
    """The library's second layer scores W h by a, ours h by W'a: with the same a they agree."""
    first, head = net.layers[0], net.head
    a, b = torch.randn(2, CLASSES, generator=torch.Generator().manual_seed(5))
    net.scores.source.data, net.scores.target.data = (
        (a @ head.weight).detach()[None],
        (b @ head.weight).detach()[None],
    )
    one, two = conv.GATConv(FEATURES, 2, heads=8), conv.GATConv(16, CLASSES, heads=1)
    scores = first.scores
    copied(one, lin__weight=first.linear.weight, att_src=scores.source, att_dst=scores.target, bias=first.linear.bias)
    copied(two, lin__weight=head.weight, att_src=a, att_dst=b, bias=head.bias)
    return two(nn.functional.elu(one(x, edges)), edges)


def appnp(conv, net, x, edges, weights):
    return net.head(conv.APPNP(K=10, alpha=0.1)(torch.relu(net.layers[0](x)), edges, weights))


@pytest.mark.parametrize("oracle", [gcn, sgc, sage, cheb, gat, appnp])
@pytest.mark.parametrize("filled", [1.0, 0.05])
def test_a_network_is_the_librarys_layers(info, oracle: Callable[..., Tensor], filled):
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn import conv

    graph = made(filled=filled, weighted=oracle not in (sage, gat))
    net = network(oracle.__name__ + ("" if oracle is sgc else "-w16"), info)
    wanted = oracle(conv, net, graph.features, graph.edges, graph.weights)
    # Nodes without neighbours are by themselves here, and nothing there.
    some = (graph.degrees > 0).nonzero().squeeze(1).flip(0)
    torch.testing.assert_close(net(Nodes(graph, some)), wanted[some], atol=1e-5, rtol=1e-4)


# --- one result, however the structure is given ------------------------------------------------------------------

NARROW = [name if name == "sgc" else f"{name}-w16" for name in MODELS]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("filled", [1.0, 0.05])
@pytest.mark.parametrize("name", [*NARROW, "gcn-w16-d3", "gcn-d1", "sage-d1", "gat-d1", "cheb-d3-w8", "sgc-k1"])
def test_sparse_and_dense_structure_give_the_same(info, name, filled, weighted):
    graph, net = made(filled=filled, weighted=weighted), network(name, info)
    for mine, theirs in zip(net.stages(Nodes(graph, everything(graph))), net.stages(whole(graph)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [*NARROW, "gcn-d1"])
def test_no_structure_is_an_adjacency_of_zeros(info, name):
    x, net = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(0)), network(name, info)
    torch.testing.assert_close(net(x), net(torch.cat([x, torch.zeros(5, 5)], 1)))


@pytest.mark.parametrize("filled", [1.0, 0.05])
@pytest.mark.parametrize("name", [*NARROW, "gcn-w16-d3", "gcn-d1", "sage-d1"])
def test_a_receptive_field_gives_what_the_whole_graph_gives(info, name, filled):
    graph, net = made(links=300, filled=filled, weighted=True, nodes=400), network(name, info)
    ids = torch.tensor([17, 3, 399, 3, 250])  # no order, one twice, one without neighbours
    steps = 3 if "d3" in name else 2
    assert receptive_field(Nodes(graph, ids), steps).nodes is not None
    few, all_of_them = net.stages(Nodes(graph, ids)), net.stages(Nodes(graph, everything(graph)))
    for mine, theirs in zip(few, all_of_them, strict=True):
        torch.testing.assert_close(mine, theirs[ids], atol=1e-5, rtol=1e-4)


def test_a_field_that_covers_most_of_the_graph_is_the_whole_graph(info):
    graph, ids = made(links=400), torch.arange(20)
    found = receptive_field(Nodes(graph, ids), 3)
    assert found.nodes is None and found.hops[0] is found.hops[1]
    assert receptive_field(Nodes(graph, ids.clone()), 3) is found  # remembered by content


@pytest.mark.parametrize("name", NARROW)
def test_the_head_is_linear_in_what_embed_gives(info, name):
    graph, net = made(), network(name, info)
    x = Nodes(graph, torch.tensor([4, 9]))
    assert isinstance(net.head, nn.Linear) and not net.mixes_rows
    assert torch.equal(net(x), net.head(net.embed(x)))
    assert [len(stage) for stage in net.stages(x)] == [2] * (1 if name == "sgc" else 2)
    assert torch.equal(net.stages(x)[-1], net.embed(x))


def test_sgc_embeds_smoothed_features(info):
    graph, ids = made(), torch.tensor([4, 9])
    assert torch.equal(network("sgc", info).embed(Nodes(graph, ids)), graph.hop(2)[ids])


def test_a_signed_adjacency_is_normalised_by_absolute_sums(info):
    a = torch.tensor([[0.0, -2.0, 0.5], [-2.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    scale = torch.tensor([3.5, 3.0, 1.5]).rsqrt()
    wanted = scale[:, None] * (a + torch.eye(3)) * scale
    torch.testing.assert_close(Dense(a, 0.5).gcn(torch.eye(3)), wanted)
    for name in NARROW:
        assert bool(torch.isfinite(network(name, info)(torch.cat([torch.ones(3, FEATURES), a], 1))).all())


def test_a_node_without_neighbours_is_its_own():
    h = torch.randn(2, 3)
    for hop in (Identity(), Dense(torch.zeros(2, 2), 0.5)):
        for step, wanted in ((hop.gcn, h), (hop.mean, h), (hop.laplacian, -h)):
            torch.testing.assert_close(step(h), wanted)
        values = h[:, None]
        torch.testing.assert_close(hop.attend(values, torch.ones(2, 1), torch.ones(2, 1)), values)


def test_attention_sees_entries_above_its_threshold(info):
    x = torch.randn(2, FEATURES)
    faint = torch.cat([x, torch.tensor([[0.0, 0.3], [0.3, 0.0]])], 1)
    torch.testing.assert_close(network("gat-w16", info)(faint), network("gat-w16", info)(x))
    assert not torch.allclose(network("gat-w16-t0.1", info)(faint), network("gat-w16", info)(x), atol=1e-3)


# --- derivatives -------------------------------------------------------------------------------------------------


def loss(net: Network, weights: dict[str, Tensor], x: Tensor | Nodes) -> Tensor:
    logits: Tensor = functional_call(net, weights, (x,))
    return nn.functional.cross_entropy(logits, torch.arange(len(logits)) % CLASSES)


@pytest.mark.parametrize("filled", [1.0, 0.05])
@pytest.mark.parametrize("name", NARROW)
def test_gradients_by_weights_agree_between_sparse_and_dense(info, name, filled):
    graph, net = made(filled=filled), network(name, info)
    x, weights = Nodes(graph, everything(graph)), dict(net.named_parameters())
    wanted = torch.autograd.grad(loss(net, weights, whole(graph)), list(weights.values()))
    mine = torch.autograd.grad(loss(net, weights, x), list(weights.values()))
    functional = grad(lambda given: loss(net, given, x))({k: v.detach() for k, v in weights.items()})
    for one, two, three in zip(mine, wanted, functional.values(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(three, two, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("name", ["sgc", "gcn-w4-p0", "sage-w4", "appnp-w4-k2", "cheb-w4", "mlp-w4", "gat-w8"])
def test_second_derivatives_of_a_gradient_matching_loss_are_exact(info, name, structured):
    """Against finite differences in float64; attention does not depend on weights."""
    net = network(name, info, torch.float64)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, FEATURES, dtype=torch.float64, generator=generator)
    a = torch.rand(4, 4, dtype=torch.float64, generator=generator)

    def distance(x: Tensor, a: Tensor) -> Tensor:
        inputs = torch.cat([x, (a + a.T) * (1 - torch.eye(4))], 1) if structured else x
        weights = dict(net.named_parameters())
        grads = grad(lambda given: loss(net, given, inputs))(weights).values()
        return sum((((g - 0.1) ** 2).sum() for g in grads), torch.zeros(()))

    leaves = x.requires_grad_(), a.requires_grad_(structured and "gat" not in name)
    assert torch.autograd.gradcheck(distance, leaves)


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("name", [name if name == "sgc" else f"{name}-w8" for name in MODELS if name != "gcn"])
def test_networks_go_through_function_transforms(info, name, structured):
    net = network(name, info)
    weights = {k: v.detach() for k, v in net.named_parameters()}
    x = torch.rand(2, 3, FEATURES + (3 if structured else 0), generator=torch.Generator().manual_seed(4))
    by_x = grad(lambda x: loss(net, weights, x))
    torch.testing.assert_close(vmap(by_x)(x), torch.stack([by_x(one) for one in x]), atol=1e-6, rtol=1e-4)
    pushed = jvp(lambda x: loss(net, weights, x), (x[0],), (x[1],))[1]
    torch.testing.assert_close(pushed, (by_x(x[0]) * x[1]).sum(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("filled", [1.0, 0.05])
@pytest.mark.parametrize("name", NARROW)
def test_several_networks_pass_real_nodes_together(info, name, filled):
    x, nets = Nodes(made(filled=filled), torch.tensor([4, 9, 2])), [network(name, info) for _ in range(2)]
    for parameter in nets[1].parameters():
        parameter.data *= 1.5
    stacked = {k: torch.stack([net.get_parameter(k).detach() for net in nets]) for k, _ in nets[0].named_parameters()}
    together = vmap(grad(lambda weights: loss(nets[0], weights, x)))(stacked)
    for number, net in enumerate(nets):
        alone = grad(partial(loss, net, x=x))({k: v[number] for k, v in stacked.items()})
        for key, value in alone.items():
            torch.testing.assert_close(together[key][number], value, atol=1e-6, rtol=1e-4)


def test_a_weight_of_zero_has_the_derivative_of_one_that_may_grow():
    def own(w: Tensor) -> Tensor:
        """What a node keeps of itself beside a neighbour with weight w: 1 / (1 + w)."""
        return Dense(w * (1 - torch.eye(2)), 0.5).gcn(torch.tensor([[1.0], [0.0]]))[0, 0]

    assert float(grad(own)(torch.tensor(0.0))) == pytest.approx(-1)


def test_a_constant_sparse_matrix_is_differentiated_like_a_dense_one():
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.randint(4, (9,), generator=generator), torch.randint(3, (9,), generator=generator)
    values = torch.randn(9, generator=generator)
    matrix = Sparse.of(rows, columns, values, (4, 3))
    full = torch.zeros(4, 3).index_put_((rows, columns), values, accumulate=True)
    h = torch.randn(3, 2, generator=generator)
    torch.testing.assert_close(matrix.transposed @ (matrix @ h), full.T @ full @ h)
    batch = torch.randn(5, 3, 2, generator=generator)
    for dim in (0, 2):
        torch.testing.assert_close(vmap(lambda h: matrix @ h, dim)(batch.movedim(0, dim)), full @ batch)
    curved = hessian(lambda h: (matrix @ h).pow(3).sum())(h)
    torch.testing.assert_close(curved, hessian(lambda h: (full @ h).pow(3).sum())(h))
    wide = h.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda h: matrix @ h, wide)
    assert torch.autograd.gradgradcheck(lambda h: matrix @ h, wide)
    torch.testing.assert_close(matrix.take(torch.tensor([2, 2, 0])).matrix.to_dense(), full[[2, 2, 0]])
    assert (matrix @ h.bfloat16()).dtype == torch.bfloat16


# --- drawn neighbours --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NARROW)
def test_fanouts_above_every_degree_change_nothing(info, name):
    graph, net, ids = made(weighted=True), network(name, info), torch.tensor([5, 59, 2])
    most = int(graph.pointers.diff().max())
    torch.testing.assert_close(
        net(Nodes(graph, ids, (most,))), net(Nodes(graph, ids)), atol=1e-5, rtol=1e-4, check_stride=False
    )


@pytest.mark.parametrize("name", ["gcn-w16-d3", "sage-w16", "gat-w16", "cheb-w16", "appnp-w16"])
def test_the_same_nodes_always_see_the_same_neighbours(info, name):
    net, ids = network(name, info), torch.tensor([5, 7, 2])
    first, again = (net(Nodes(made(links=500), ids, (2, 1))) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, net(Nodes(made(links=500), ids)), atol=1e-4)


@pytest.mark.parametrize("fanouts", [(), (0,), (5, -1)])
def test_fanouts_below_one_are_refused(info, fanouts):
    with pytest.raises(DataError, match="1 or more"):
        network("sage-w16", info)(Nodes(made(), torch.arange(3), fanouts))


# --- building ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, "gcn-d3-w8", "gat-d3-w8", "sage-d3-w8"])
def test_redrawing_in_place_equals_building_anew(info, name):
    with isolated(1):
        wanted = build(name, info).state_dict()
    with isolated(2):
        net = build(name, info)
    with isolated(1):
        reset(net)
    for key, value in net.state_dict().items():
        assert torch.equal(value, wanted[key]), key


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sgc", 12 * 3 + 3),
        ("gcn", 12 * 256 + 256 + 256 * 3 + 3),
        ("gcn-d3-w8", 12 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3),
        ("gcn-w8-d3-p0", 12 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3),
        ("sage-w8", 2 * 12 * 8 + 8 + 2 * 8 * 3 + 3),
        ("gat", 12 * 256 + 256 + 2 * 256 + 2 * 256 + 256 * 3 + 3),
    ],
)
def test_parameter_count(info, name, count):
    assert sum(parameter.numel() for parameter in build(name, info).parameters()) == count


def test_dropout_is_on_the_hidden_layer_in_training_or_not_there(info):
    dropping, graph = build("gcn", info), made()
    assert [m.p for m in dropping.modules() if isinstance(m, nn.Dropout)] == [0.5]
    with pytest.raises(ConfigError, match="drops units"):
        check_repeatable(dropping)
    x = Nodes(graph, torch.arange(9))
    assert not torch.equal(dropping(x), dropping(x))
    for name in ("gcn-p0", "sgc", "sage-p0", "gat-p0", "appnp-p0", "cheb-p0", "mlp-p0", "gcn-d1"):
        net = build(name, info)
        check_repeatable(net)
        assert not any(isinstance(module, nn.Dropout) for module in net.modules())
        assert torch.equal(net(x), net(x))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("gcnn", "gcn"),
        ("sag", "sage"),
        ("gcn-p1", "gcn-p0"),
        ("sgc-w8", "sgc"),
        ("gcn-d0", "gcn"),
        ("gcn-d2-d2", "gcn"),
    ],
)
def test_unknown_network_names_the_near_one(info, name, near):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}"):
        build(name, info)


def test_what_does_not_fit_is_refused(info):
    with pytest.raises(ConfigError, match="8 heads"):
        build("gat-w12", info)
    with pytest.raises(ConfigError, match="shape"):
        build("gcn", TaskInfo("image", "made", (3, 8, 8), tuple("abc"), Space()))
    net = build("gcn", info)
    with pytest.raises(DataError, match="12 columns, or of 16"):
        net(torch.zeros(4, FEATURES + 3))
    with pytest.raises(DataError, match="5 features"):
        net(Nodes(Graph.of(torch.ones(3, 5), torch.tensor([[0], [1]])), torch.tensor([0])))
