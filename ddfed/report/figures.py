"""Figures as SVG text: the same input gives the same text, and no global state of matplotlib changes.

Ink is ``currentColor``, so that a figure inside a page follows its light or dark colours. Colours are those
of Okabe and Ito, which people with colour-blindness tell apart; line styles and markers repeat the
distinction.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[Sequence[float], Sequence[float]] | tuple[Sequence[float], Sequence[float], Sequence[float] | None]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#9A8700")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = "osD^vP*X"
#: A colour nothing else uses, replaced by currentColor in the finished text.
_INK = "#12ab34"
_MOST_POINTS = 1000


def curves(
    series: Mapping[str, Series],
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_x: bool = False,
    reference: Mapping[str, float] | None = None,
) -> str:
    """Lines over a common axis.

    Args:
        series: name -> (x, y) or (x, y, spread); the band is y ± spread. What is not finite leaves gaps.
        xlabel: with unit.
        ylabel: with unit.
        title: one line above.
        log_x: logarithmic x axis; for positive x.
        reference: name -> height of a dashed line, such as the accuracy on all real data.

    Returns:
        SVG text.
    """

    def draw(figure: Figure) -> None:
        axes = _axes(figure, title, xlabel, ylabel)
        drawn = False
        for number, (name, (x, y, *rest)) in enumerate(series.items()):
            spread = rest[0] if rest and rest[0] is not None else None
            drawn |= _curve(axes, number, name, x, y, spread)
        for name, height in (reference or {}).items():
            if math.isfinite(height):
                axes.axhline(height, color=_INK, linewidth=1.1, linestyle=(0, (5, 3)), alpha=0.65)
                axes.annotate(
                    name, (0.995, height), xycoords=("axes fraction", "data"), xytext=(0, 3),
                    textcoords="offset points", ha="right", va="bottom", fontsize=8.5, alpha=0.8,
                )  # fmt: skip
        if log_x:
            axes.set_xscale("log")
        elif all(float(x).is_integer() for xs, *_ in series.values() for x in xs):
            from matplotlib.ticker import MaxNLocator

            axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # rounds and steps have no quarters
        axes.margins(x=0.02)
        if not drawn:
            _say_empty(axes)
        elif len(series) > 1 or "" not in series:
            _legend(figure, axes, len(series))

    return _render(draw, 7.6, 3.9)


def label_histogram(counts: Sequence[Sequence[int]], classes: Sequence[str], title: str = "") -> str:
    """Stacked bars: how many samples of each class each client holds.

    Args:
        counts: (clients, classes); negative counts are taken as zero.
        classes: names, one a column.
        title: one line above.

    Returns:
        SVG text. Up to eight classes get colours of their own, more get a scale from the first to the last.
    """
    clients = len(counts)

    def draw(figure: Figure) -> None:
        axes = _axes(figure, title, "client", "samples")
        colours = _class_colours(len(classes))
        # Below a hundred clients a gap parts the bars; beyond it the gap would be thinner than a pixel.
        half = 0.42 if clients <= 40 else 0.46 if clients <= 100 else 0.5
        base = [0.0] * clients
        for label, colour in enumerate(colours):
            boxes = []
            for client in range(clients):
                height = max(0.0, float(counts[client][label]))
                if height:
                    boxes.append((client - half, base[client], client + half, base[client] + height))
                    base[client] += height
            _boxes(axes, boxes, colour, edge=len(classes) <= 30 and clients <= 40)
        axes.set_xlim(-0.7, max(clients - 0.3, 0.7))
        axes.set_ylim(0, max(base, default=0) * 1.04 or 1)
        axes.grid(axis="x", visible=False)
        _whole_ticks(axes, clients)
        if not any(base):
            _say_empty(axes)
        _class_key(figure, axes, classes, colours)

    return _render(draw, 7.6, 3.9)


def bars(
    values: Mapping[str, tuple[float, float | None]],
    xlabel: str,
    title: str = "",
    reference: Mapping[str, float] | None = None,
    highlight: str | None = None,
    digits: int = 1,
) -> str:
    """Horizontal bars with error bars and the numbers beside them, in the given order from the top.

    Args:
        values: name -> (mean, spread or None).
        xlabel: with unit and what the spread is, such as ``"accuracy (%), mean ± std of 3 runs"``.
        title: one line above.
        reference: name -> place of a dashed line.
        highlight: name of the bar in full colour; the others are paler.
        digits: decimals of the numbers.

    Returns:
        SVG text.
    """
    from textwrap import shorten

    def draw(figure: Figure) -> None:
        axes = _axes(figure, title, xlabel, "")
        ends = [0.0]
        for row, (name, (mean, spread)) in enumerate(values.items()):
            known = mean if math.isfinite(mean) else 0.0
            error = spread if spread is not None and math.isfinite(spread) else 0.0
            axes.barh(row, known, height=0.62, color=PALETTE[0], alpha=1.0 if highlight in (None, name) else 0.45)
            if error:
                axes.errorbar(known, row, xerr=error, color=_INK, linewidth=1.2, capsize=3)
            label = (
                "not finite" if known != mean else f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if error else "")
            )
            end = max(known + error, 0.0)
            # In a column of their own, where no reference line crosses them.
            axes.annotate(
                label, (1.0, row), xycoords=("axes fraction", "data"), xytext=(6, 0),
                textcoords="offset points", va="center", fontsize=8.5,
            )  # fmt: skip
            ends.append(end)
        for number, (name, place) in enumerate((reference or {}).items()):
            axes.axvline(place, color=_INK, linewidth=1.1, linestyle=(0, (5, 3)), alpha=0.65)
            axes.annotate(
                name, (place, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3 + 11 * number),
                textcoords="offset points", ha="center", va="bottom", fontsize=8.5, alpha=0.8,
            )  # fmt: skip
            ends.append(place)
        axes.set_yticks(range(len(values)), [shorten(n, 44, placeholder=" ...") for n in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlim(min(0.0, *(m for m, _ in values.values() if math.isfinite(m)), 0.0), max(ends) * 1.03 or 1)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        if not values:
            _say_empty(axes)

    return _render(draw, 7.6, 1.15 + 0.34 * max(1, len(values)) + 0.16 * len(reference or {}))


# --- pieces -------------------------------------------------------------------------------------------------


def _axes(figure: Figure, title: str, xlabel: str, ylabel: str) -> Axes:
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_INK, alpha=0.13, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _curve(
    axes: Axes, number: int, name: str, x: Sequence[float], y: Sequence[float], spread: Sequence[float] | None
) -> bool:
    stride = max(1, math.ceil(len(x) / _MOST_POINTS))
    # Thinned for the size of the file; the last point is what people read off.
    rows = sorted({*range(0, len(x), stride), len(x) - 1} if len(x) else ())
    xs = [float(x[i]) for i in rows]
    ys = [float(y[i]) for i in rows]
    colour = PALETTE[number % len(PALETTE)]
    axes.plot(
        xs, ys, label=name, color=colour, linewidth=1.8,
        linestyle=_STYLES[number // len(PALETTE) % len(_STYLES)],
        marker=_MARKERS[number % len(_MARKERS)] if len(xs) <= 30 else None, markersize=4.5,
    )  # fmt: skip
    if spread is not None:
        low = [v - float(spread[i]) for v, i in zip(ys, rows)]
        high = [v + float(spread[i]) for v, i in zip(ys, rows)]
        axes.fill_between(xs, low, high, color=colour, alpha=0.17, linewidth=0)
    return any(math.isfinite(v) for v in ys)


def _legend(figure: Figure, axes: Axes, entries: int) -> None:
    handles, names = axes.get_legend_handles_labels()
    columns = 1 if entries > 5 else min(entries, 5)
    if entries > 5:
        figure.legend(handles, names, loc="outside right upper", ncols=columns, frameon=False, fontsize=8.5)
    else:
        figure.legend(handles, names, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)


def _class_colours(classes: int) -> list[str]:
    if classes <= len(PALETTE):
        return list(PALETTE[:classes])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    scale = colormaps["viridis"]
    return [to_hex(scale(0.03 + 0.94 * i / (classes - 1))) for i in range(classes)]


def _class_key(figure: Figure, axes: Axes, classes: Sequence[str], colours: Sequence[str]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    names = [name if len(name) <= 16 else name[:15] + "…" for name in classes]
    if len(classes) <= 24:
        # Top to bottom as in the bars.
        handles = [Patch(color=c, label=n) for c, n in zip(reversed(colours), reversed(names))]
        small = 8.5 if len(classes) <= 16 else 7
        figure.legend(
            handles=handles, loc="outside right upper", frameon=False, fontsize=small, title="class",
            title_fontsize=9, labelspacing=0.3, handlelength=1.1,
        )  # fmt: skip
        return
    mapping = ScalarMappable(cmap=ListedColormap(list(colours)))
    mapping.set_clim(-0.5, len(classes) - 0.5)
    bar = figure.colorbar(mapping, ax=axes, aspect=28, pad=0.02, label="class")
    step = math.ceil(len(classes) / 8)
    places = list(range(0, len(classes), step))
    bar.set_ticks(places, labels=[names[i] for i in places])
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)


def _boxes(axes: Axes, boxes: Sequence[tuple[float, float, float, float]], colour: str, edge: bool) -> None:
    """All boxes of one class as a single path: 200 clients of 100 classes stay one small file."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not boxes:
        return
    corners: list[tuple[float, float]] = []
    codes: list[Any] = []
    for left, low, right, high in boxes:
        corners += [(left, low), (right, low), (right, high), (left, high), (left, low)]
        codes += [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    line: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.5} if edge else {"linewidth": 0}
    axes.add_patch(PathPatch(Path(corners, codes), facecolor=colour, **line))


def _whole_ticks(axes: Axes, clients: int) -> None:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 10**9) if clients / s <= 25)
    axes.set_xticks(range(0, clients, step))


def _say_empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", alpha=0.7)


def _render(draw: Callable[[Figure], None], width: float, height: float) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    # rc_context puts everything back; starting from the defaults keeps a person's matplotlibrc out.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        ink: tuple[Any, ...] = (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "xtick.color",
            "ytick.color",
        )
        matplotlib.rcParams.update(
            {
                **dict.fromkeys(ink, _INK),
                "font.size": 9.5,
                "svg.fonttype": "none",
                "svg.hashsalt": "ddfed",
                "axes.linewidth": 0.8,
            }
        )
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _tidy(buffer.getvalue())


def _tidy(svg: str) -> str:
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"(font: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1system-ui, sans-serif", svg)
    # A hundredth of a point is finer than any screen; six decimals only make the file larger.
    return re.sub(r"(-?\d+\.\d{2})\d+", r"\1", svg)
