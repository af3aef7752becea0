"""A picture of a condensed graph: its nodes and links, its adjacency, and how its classes are linked."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddfed.errors import DataError
from ddfed.files import write_bytes
from ddfed.report.figures import PALETTE
from ddfed_graph.facts import class_pairs, homophily, weighted_edges
from ddfed_graph.graph import Graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE = 4.2  # of a panel, inches
DOTS = 120  # an inch
LINKS = 3000  # drawn at most, the strongest
NAME_LENGTH = 22
MANY = 12  # classes, above which they are neither named at the axes nor divided by lines


def draw(
    x: Tensor,
    adjacency: Tensor | None,
    y: Tensor,
    classes: tuple[str, ...],
    path: Path,
    real: Graph | None = None,
    labels: Tensor | None = None,
    threshold: float = 0.0,
) -> Path:
    """Write one PNG.

    Without structure: the two principal components of the features. With it: a drawing by springs in which links are
    as opaque as they are heavy, the adjacency sorted by class, the mean weight between classes, and beside it the
    edge probability between the classes of the real graph.

    Args:
        x: X', (n', d).
        adjacency: A', (n', n') weights; None for the identity.
        y: class numbers, (n',).
        classes: their names.
        path: of the picture.
        real: the real graph.
        labels: of its nodes, (n,), -1 where they may not be looked at; needed with ``real``.
        threshold: links are weights above it.

    Raises:
        DataError: no nodes, shapes that do not fit, or a real graph without labels.
        RunFolderError: the file cannot be written.
    """
    if not len(x) or x.ndim != 2 or len(y) != len(x) or (adjacency is not None and len(adjacency) != len(x)):
        raise DataError(f"a drawing needs x (n, d) and y (n,) of at least one node, got {tuple(x.shape)}, {len(y)}")
    if real is not None and (labels is None or len(labels) != len(real)):
        raise DataError("a real graph is drawn by its classes: give the label of every node, -1 for none")
    x, y = x.detach().float().cpu(), y.detach().long().cpu()
    colours = [class_colours(len(classes))[label] for label in y.tolist()]
    if adjacency is None:
        panels: list[Callable[[Axes], None]] = [lambda axes: _components(axes, x, colours)]
    else:
        edges, weights = weighted_edges(adjacency, threshold)
        full = torch.zeros(len(y), len(y)).index_put_((edges[0], edges[1]), weights)
        pairs = class_pairs(edges, y, len(classes), weights)
        told = f"mean weight between classes\nhomophily {homophily(edges, y, weights):.2f}"
        panels = [
            lambda axes: _links(axes, full, y, colours),
            lambda axes: _adjacency(axes, full, y),
            lambda axes: _pairs(axes, pairs, classes, told),
        ]
        if real is not None and labels is not None:
            true, said = class_pairs(real.edges, labels, len(classes)), f"{homophily(real.edges, labels):.2f}"
            told_real = f"edge probability between classes,\nreal graph, homophily {said}"
            panels.append(lambda axes: _pairs(axes, true, classes, told_real))
    write_bytes(path, _painted(panels, classes, y))
    return path


def _painted(panels: list[Callable[[Axes], None]], classes: tuple[str, ...], y: Tensor) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    # rc_context puts everything back; starting from the defaults keeps a person's matplotlibrc out.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 8.5, "axes.titlesize": 9.5})
        wide = len(panels) if len(panels) < 4 else 2
        high = -(-len(panels) // wide)
        figure = Figure(figsize=(SIDE * wide + 1.6, SIDE * high), dpi=DOTS, layout="constrained")
        FigureCanvasAgg(figure)
        for place, panel in enumerate(panels, 1):
            panel(figure.add_subplot(high, wide, place))
        held, colours = y.unique().tolist(), class_colours(len(classes))
        handles = [Patch(color=colours[label], label=short(classes[label])) for label in held]
        figure.legend(
            handles=handles,
            loc="outside right upper",
            frameon=False,
            title="class",
            fontsize=8 if len(held) < 30 else 6,
        )
        buffer = BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _links(axes: Axes, weights: Tensor, y: Tensor, colours: list[str]) -> None:
    from matplotlib.collections import LineCollection

    places = springs(weights / weights.max().clamp(min=1e-12), y)
    edges = weights.triu(1).nonzero()
    strength = weights[edges[:, 0], edges[:, 1]]
    order = strength.argsort()[-LINKS:]
    shades = [(0.2, 0.2, 0.2, 0.8 * float(w)) for w in strength[order] / strength.max()] if len(edges) else []
    axes.add_collection(LineCollection(list(places[edges[order]].numpy()), colors=shades, linewidths=0.7))
    axes.scatter(
        places[:, 0].numpy(), places[:, 1].numpy(), c=colours, s=26, edgecolors="white", linewidths=0.5, zorder=2
    )
    few = f"the {LINKS:,} strongest of {len(edges):,} links" if len(edges) > LINKS else f"{len(edges):,} links"
    bare(axes, f"{len(y):,} nodes, {few}")


def springs(weights: Tensor, y: Tensor, steps: int = 150) -> Tensor:
    """Places of nodes by Fruchterman and Reingold (1991), (n, 2): all repel, linked ones attract by their weight.

    It begins on a circle in the order of the classes, not at random, so that a graph has one drawing.

    Args:
        weights: (n, n) in [0, 1], symmetric, diagonal 0.
        y: class numbers, (n,).
        steps: in which nodes move, ever less far.
    """
    n = len(weights)
    angle = torch.empty(n)
    angle[y.argsort(stable=True)] = torch.arange(n) * (2 * torch.pi / n)
    places = torch.stack([angle.cos(), angle.sin()], 1)
    ideal = 2 * n**-0.5
    for far in torch.linspace(0.2, 0.005, steps):
        apart = places[:, None] - places
        distance = apart.norm(dim=-1).clamp(min=0.01)
        push = (apart * (ideal**2 / distance**2 - weights * distance / ideal)[..., None]).sum(1)
        # A weak pull to the middle keeps nodes without links in sight.
        push = push - places
        places = places + push / push.norm(dim=1, keepdim=True).clamp(min=1e-9) * far
    return places


def _components(axes: Axes, x: Tensor, colours: list[str]) -> None:
    centred = x - x.mean(0)
    values, directions = torch.linalg.svd(centred, full_matrices=False)[1:]
    shares = values.square() / values.square().sum().clamp(min=1e-12)
    places = torch.zeros(len(x), 2)
    places[:, : min(2, len(values))] = centred @ directions[:2].T
    axes.scatter(places[:, 0].numpy(), places[:, 1].numpy(), c=colours, s=30, edgecolors="white", linewidths=0.5)
    told = f"{shares[:2].sum():.0%} of the variance"
    bare(axes, f"{len(x):,} nodes without links: principal components\nof the features, {told}")


def _adjacency(axes: Axes, weights: Tensor, y: Tensor) -> None:
    order = y.argsort(stable=True)
    image = axes.imshow(weights[order][:, order].numpy(), cmap="viridis", interpolation="nearest", vmin=0)
    borders = torch.bincount(y).cumsum(0)[:-1].tolist()
    for border in borders if len(borders) < MANY else []:
        axes.axhline(border - 0.5, color="white", linewidth=0.4)
        axes.axvline(border - 0.5, color="white", linewidth=0.4)
    axes.figure.colorbar(image, ax=axes, shrink=0.7)
    bare(axes, "adjacency, sorted by class")


def _pairs(axes: Axes, pairs: Tensor, classes: tuple[str, ...], title: str) -> None:
    image = axes.imshow(pairs.numpy(), cmap="viridis", interpolation="nearest", vmin=0)
    axes.figure.colorbar(image, ax=axes, shrink=0.7)
    bare(axes, title)
    if len(classes) <= MANY:
        names = [short(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)


def bare(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])


def short(name: str) -> str:
    # matplotlib reads what stands between dollar signs as mathematics.
    return (name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…").replace("$", r"\$")


def class_colours(classes: int) -> list[str]:
    """The report's colours, or as many of viridis."""
    if classes <= len(PALETTE):
        return list(PALETTE)
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    scale = colormaps["viridis"].resampled(classes)
    return [to_hex(scale(label)) for label in range(classes)]
