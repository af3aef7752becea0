"""How one graph is split among the clients of a federation.

Clients hold nodes: everything a client has is the graph of its own nodes, and edges between clients are lost. Schemes
see the task and give nodes. Schemes that deal labelled rows alone leave the other nodes to `follow`.

References:
    The schemes of subgraph-level federated learning: Zhang et al., Subgraph Federated Learning with Missing Neighbor
    Generation, NeurIPS 2021 (Louvain communities); constants and the Dirichlet form as in its later toolkits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddfed.data import Task
from ddfed.errors import ConfigError
from ddfed_graph.graph import Graph, GraphData

#: Draws before a split by Dirichlet proportions gives up.
MAX_DRAWS = 100


def louvain(
    task: Task, clients: int, rng: np.random.Generator, *, resolution: float = 1.0, slack: int = 20
) -> list[np.ndarray]:
    """Communities, packed into clients of about equal size.

    Communities are those of Louvain's method (Blondel et al., 2008). One longer than n / clients - slack is cut, in the
    order of its nodes' numbers. Then each goes, the largest first, to the client with the fewest nodes. Where it would
    hold more than n / clients + slack, the client takes what it has room for and the rest goes on to the next.

    Departure: a client of fewer than 4 slack nodes gets a quarter of its share as slack, for the cut would otherwise
    leave no communities at all.

    Args:
        task: of a graph.
        clients: number of parts.
        rng: gives the method its seed.
        resolution: above 1 for more and smaller communities.
        slack: nodes by which a client may be larger than n / clients.

    Returns:
        Sorted int64 node numbers of each client; every node once.

    Raises:
        ConfigError: the task is no graph, there are more clients than nodes, or an option is out of range.
    """
    from networkx.algorithms.community import louvain_communities

    graph = _graph(task, clients, "louvain")
    if not (math.isfinite(resolution) and resolution > 0) or slack < 0:
        raise ConfigError(
            f"partition 'louvain': resolution must be above 0 and slack at least 0; got {resolution} and {slack}"
        )
    share = len(graph) / clients
    room = min(float(slack), share / 4)
    longest, capacity = max(1, math.floor(share - room)), math.ceil(share + room)
    found = louvain_communities(_networkx(graph), weight="weight", resolution=resolution, seed=_seed(rng))
    pieces = [members[i : i + longest] for members in map(sorted, found) for i in range(0, len(members), longest)]
    return _packed(sorted(pieces, key=lambda piece: (-len(piece), piece[0])), clients, capacity)


def _packed(pieces: Sequence[list[int]], clients: int, capacity: int) -> list[np.ndarray]:
    """Each piece to the client with the fewest nodes, cut where that has no room for all of it."""
    held: list[list[int]] = [[] for _ in range(clients)]
    for piece in pieces:
        rest = piece
        while rest:
            fewest = min(held, key=len)
            room = capacity - len(fewest)
            fewest += rest[:room]
            rest = rest[room:]
    return [np.array(sorted(nodes), dtype=np.int64) for nodes in held]


def _networkx(graph: Graph) -> object:
    import networkx as nx

    found = nx.Graph()
    found.add_nodes_from(range(len(graph)))
    once = graph.edges[0] < graph.edges[1]
    (sources, targets), weights = graph.edges[:, once].tolist(), graph.weights[once].tolist()
    found.add_weighted_edges_from(zip(sources, targets, weights))
    return found


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def dirichlet_nodes(
    task: Task, clients: int, rng: np.random.Generator, *, alpha: float = 1.0, min_size: int = 5
) -> list[np.ndarray]:
    """Label skew over nodes: each class is cut by proportions from Dir(alpha), whatever the edges; most are lost.

    Unlike the scheme ``dirichlet``, which deals the training rows, this deals every node whose class the task knows:
    training, validation and test nodes. The others `follow`. Clients that hold n / clients of the dealt nodes get no
    more. All is drawn again until each client has ``min_size``.

    Args:
        task: of a graph.
        clients: number of parts.
        rng: source of all randomness.
        alpha: concentration; small is skewed.
        min_size: fewest dealt nodes of a client.

    Returns:
        Sorted int64 node numbers of each client; every node once.

    Raises:
        ConfigError: the task is no graph, an option is out of range, or `MAX_DRAWS` draws did not suffice.
    """
    graph = _graph(task, clients, "dirichlet-nodes")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"partition 'dirichlet-nodes': alpha must be a finite number above 0; got {alpha}")
    labels = known_labels(task).numpy()
    classes = [np.flatnonzero(labels == c) for c in range(task.info.num_classes)]
    for _ in range(MAX_DRAWS):
        held: list[list[int]] = [[] for _ in range(clients)]
        for nodes in classes:
            _deal(rng.permutation(nodes), held, alpha, (labels >= 0).sum() / clients, rng)
        if min(map(len, held)) >= min_size:
            return [part.numpy() for part in follow(graph, [torch.tensor(nodes, dtype=torch.int64) for nodes in held])]
    raise ConfigError(
        f"partition 'dirichlet-nodes': after {MAX_DRAWS} draws a client still has fewer than {min_size} of "
        f"{int((labels >= 0).sum())} labelled nodes. Ask for fewer clients, a larger alpha (now {alpha}) or a smaller "
        f"min_size."
    )


def _deal(nodes: np.ndarray, held: list[list[int]], alpha: float, fair: float, rng: np.random.Generator) -> None:
    """One class to the clients that are not full."""
    open_to = np.array([len(mine) < fair for mine in held])
    share = np.where(open_to, rng.dirichlet(np.full(len(held), alpha)), 0.0)
    if not share.sum() > 0:  # at a tiny alpha all the mass may sit on a client that is full
        share = open_to / open_to.sum()
    ends = (np.cumsum(share / share.sum()) * len(nodes)).round().astype(int)
    for mine, piece in zip(held, np.split(nodes, ends[:-1])):
        mine += piece.tolist()


def known_labels(task: Task) -> Tensor:
    """Class of each node of the training graph, -1 where no split of the task tells it, (n,) int64."""
    assert isinstance(task.train, GraphData)
    found = torch.full((len(task.train.graph),), -1)
    for data in (task.train, task.validation, task.test):
        # Inductive splits are graphs of their own, and not divided.
        if isinstance(data, GraphData) and data.graph is task.train.graph:
            found[data.inputs] = data.labels
    return found


def follow(graph: Graph, seeds: Sequence[Tensor]) -> list[Tensor]:
    """All nodes, when some are given to clients: the others follow their neighbours, ring by ring.

    A node next to given ones goes to the client with which most of its edges' weight lies; of equals to the one with
    the fewest nodes before the ring, of these to the first. Components without any given node go whole, the largest
    first, to the client with the fewest nodes.

    Args:
        graph: of n nodes.
        seeds: nodes of each client, disjoint.

    Returns:
        Sorted int64 node numbers of each client; every node once.
    """
    n, clients = len(graph), len(seeds)
    owner = np.full(n, -1)
    for client, nodes in enumerate(seeds):
        owner[nodes.numpy()] = client
    (source, target), weight = graph.edges.numpy(), graph.weights.double().numpy()
    while True:
        counted = (owner[source] < 0) & (owner[target] >= 0)
        if not counted.any():
            break
        place = source[counted] * clients + owner[target[counted]]
        votes = np.bincount(place, weight[counted], n * clients).reshape(n, clients)
        ranked = np.argsort(np.bincount(owner[owner >= 0], minlength=clients), kind="stable")
        reached = np.unique(source[counted])
        owner[reached] = ranked[votes[reached][:, ranked].argmax(1)]
    _place_components(graph, owner, clients)
    return [torch.from_numpy(np.flatnonzero(owner == client)) for client in range(clients)]


def _place_components(graph: Graph, owner: np.ndarray, clients: int) -> None:
    """Nodes that nobody has a neighbour of, component by component, in place."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    left = np.flatnonzero(owner < 0)
    if not len(left):
        return
    part = graph.induced(torch.from_numpy(left))
    (source, target), size = part.edges.numpy(), (len(left), len(left))
    number, of_node = connected_components(csr_matrix((np.ones(len(source)), (source, target)), shape=size), False)
    sizes = np.bincount(owner[owner >= 0], minlength=clients)
    for component in np.argsort(-np.bincount(of_node, minlength=number), kind="stable"):
        nodes, smallest = left[of_node == component], sizes.argmin()
        owner[nodes] = smallest
        sizes[smallest] += len(nodes)


def _graph(task: Task, clients: int, scheme: str) -> Graph:
    if not isinstance(task.train, GraphData):
        raise ConfigError(
            f"partition {scheme!r} splits the nodes of a graph, and {task.info.domain}/{task.info.dataset} is none. "
            f"Take dirichlet or iid, or data of domain 'graph'."
        )
    graph = task.train.graph
    if not 1 <= clients <= len(graph):
        raise ConfigError(f"{clients} clients for {len(graph)} nodes: use 1 to {len(graph)} clients")
    return graph
