"""A smaller graph by contraction of edges: what condensation is measured against.

Source: Huang et al., Scaling Up Graph Neural Networks Via Graph Coarsening, KDD 2021, with another rule for what is
contracted: the libraries of Loukas' algorithms no longer run, so nodes are merged by Ward's criterion on propagated
features, along edges alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddfed.data import RealData
from ddfed.pool import PoolContext
from ddfed.select import Composer
from ddfed_graph.graph import Graph
from ddfed_graph.selectors import Hops, graph_of


def compose_coarsening(data: RealData, ctx: PoolContext, per_class: int, top_up: bool, *, hops: Hops = 2) -> Tensor:
    """Features and adjacency of ``per_class`` super-nodes of each class, (k, d + k).

    The whole graph is contracted as long as every class keeps ``per_class`` super-nodes. A super-node has the class of
    most of its training nodes (of equals the first); those without a training node are dropped, and of a class the
    largest are kept.

    Args:
        data, ctx, per_class, top_up: as of every composer; a class with fewer nodes repeats its super-nodes.
        hops: rounds of message passing of the features that the criterion looks at.

    Raises:
        ConfigError: the data is no graph.
    """
    graph = graph_of(data)
    label = torch.full((len(graph),), -1)
    label[data.inputs] = data.labels
    part = contracted(merges(graph, graph.hop(hops)), label, per_class)
    classes, sizes = majority(part, label), torch.bincount(part)
    kept = []
    for c in ctx.classes:
        own = torch.nonzero(classes == c).flatten()
        largest = own[torch.argsort(sizes[own], descending=True, stable=True)][:per_class]
        kept.append(largest[torch.arange(per_class) % len(largest)])
    x, a = quotient(graph, part, torch.cat(kept))
    return torch.cat([x, a], 1)


def merges(graph: Graph, h: Tensor) -> Tensor:
    """Pairs of nodes whose clusters are merged, in this order, until only the components are left, (merges, 2).

    Ward's criterion: of all linked clusters those whose merging adds least to the sum of squared distances from the
    means.

    Args:
        graph: nodes and links.
        h: what the criterion looks at, (n, width).
    """
    import scipy.sparse
    from scipy.sparse.csgraph import connected_components
    from sklearn.cluster import ward_tree

    n = len(graph)
    links = scipy.sparse.csr_matrix((np.ones(graph.edges.shape[1]), graph.edges.numpy()), (n, n))
    count, component = connected_components(links, directed=False)
    pairs, heights = [np.empty((0, 2), dtype=np.int64)], [np.empty(0)]
    order = np.argsort(component, kind="stable")
    for nodes in np.split(order, np.bincount(component, minlength=count).cumsum()[:-1]):
        if len(nodes) > 1:
            # By component: across gaps there is no edge to contract, and sklearn would lay some.
            children, _, _, _, height = ward_tree(
                h[torch.from_numpy(nodes)].double().numpy(), connectivity=links[nodes][:, nodes], return_distance=True
            )
            pairs.append(nodes[_leaves(children, len(nodes))])
            # Under the constraint a merge may be cheaper than those it needs; it still comes after them.
            heights.append(np.maximum.accumulate(height))
    return torch.from_numpy(np.concatenate(pairs)[np.argsort(np.concatenate(heights), kind="stable")])


def _leaves(children: np.ndarray, count: int) -> np.ndarray:
    """A leaf of each of the two clusters that a merge joins, (merges, 2)."""
    leaf = np.arange(count + len(children))
    for i, pair in enumerate(children):
        leaf[count + i] = leaf[pair[0]]
    return leaf[children]


def contracted(pairs: Tensor, label: Tensor, per_class: int) -> Tensor:
    """Which super-node each node is in, (n,): the coarsest partition on the way that leaves each class enough of them.

    Args:
        pairs: from `merges`.
        label: training labels, -1 for other nodes, (n,).
        per_class: super-nodes that each class must keep; all its nodes where it has fewer.
    """
    votes = torch.nn.functional.one_hot(label + 1)[:, 1:].numpy().copy()
    have = votes.sum(0)
    need, last = np.minimum(have, per_class), 0
    root = np.arange(len(label))
    for step, (a, b) in enumerate(pairs.tolist()):
        a, b = _find(root, a), _find(root, b)
        for cluster in (a, b):
            have[votes[cluster].argmax()] -= votes[cluster].any()
        root[b] = a
        votes[a] += votes[b]
        have[votes[a].argmax()] += votes[a].any()
        if (have >= need).all():
            last = step + 1
    root = np.arange(len(label))
    for a, b in pairs[:last].tolist():
        root[_find(root, b)] = _find(root, a)
    return torch.from_numpy(np.unique([_find(root, i) for i in range(len(root))], return_inverse=True)[1])


def _find(root: np.ndarray, node: int) -> int:
    """The cluster of a node; paths are halved on the way."""
    while root[node] != node:
        root[node] = root[root[node]]
        node = root[node]
    return node


def majority(part: Tensor, label: Tensor) -> Tensor:
    """Class of most of the labelled nodes of each super-node, -1 without any, (super-nodes,)."""
    votes = torch.zeros(int(part.max()) + 1, int(label.max()) + 1, dtype=torch.int64)
    known = label >= 0
    votes.index_put_((part[known], label[known]), torch.ones(int(known.sum()), dtype=torch.int64), accumulate=True)
    return torch.where(votes.sum(1) > 0, votes.argmax(1), -1)


def quotient(graph: Graph, part: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Mean features (k, d), and adjacency P A P^T without its diagonal (k, k), of some super-nodes.

    P has rows of length one, 1 / sqrt(size) at each node of the super-node: the self-loop of 1 that networks add then
    stands for a self-loop at every node, as in Huang et al., equation 5.

    Args:
        graph: the real graph.
        part: super-node of each node, (n,).
        kept: super-nodes, (k,).
    """
    sizes = torch.bincount(part).float()
    sums = torch.zeros(len(sizes), graph.features.shape[1]).index_add_(0, part, graph.features)
    rows, place = torch.unique(kept, return_inverse=True)
    position = torch.full((len(sizes),), -1)
    position[rows] = torch.arange(len(rows))
    ends = position[part[graph.edges]]
    inside = (ends >= 0).all(0) & (ends[0] != ends[1])
    a = torch.zeros(len(rows), len(rows)).index_put_(tuple(ends[:, inside]), graph.weights[inside], accumulate=True)
    scale = sizes[rows].rsqrt()
    # A repeated super-node has the links of the first.
    return sums[kept] / sizes[kept, None], (a * (scale[:, None] * scale))[place][:, place]


COARSENING = Composer("coarsening", compose_coarsening)
