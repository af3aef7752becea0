"""One self-contained HTML file: no script, nothing loaded from elsewhere, readable on paper and in the dark.

    page = Page("DM on digits", "10 images per class")
    page.section("Result").facts({"accuracy": "81.2 ± 0.4 %"})
    page.save(Path("report.html"))

Every text is escaped. Markup enters only as `Html`, which is what the functions of this module return.
"""

from __future__ import annotations

import base64
import html
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ddfed

_IMAGE_TYPES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}
_NUMBER = re.compile(r"[<>≤≥~]?\s*[+\-−]?[\d.,\u202f ]*\d(e[+-]?\d+)?(\s*±\s*[\d.,]+)?\s*(%|[kMGT]?B|s|ms)?")

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #59636e; --paper: #fff; --raised: #f6f8fa;
  --line: #d5dbe1; --accent: #0b62a8; --mark: #e4f1fb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ee; --soft: #9aa5b1; --paper: #14181d;
  --raised: #1c2229; --line: #353d46; --accent: #6db6f2; --mark: #17324a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2.5rem 1.25rem 3rem; }
header { margin-bottom: 2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 0.9rem; padding-bottom: 0.35rem;
  border-bottom: 1px solid var(--line); }
.subtitle { margin: 0.5rem 0 0; color: var(--soft); font-size: 1.08rem; }
p { max-width: 46rem; margin: 0.75rem 0; white-space: pre-line; }
a { color: var(--accent); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; list-style: none; padding: 0;
  margin: 1.1rem 0 0; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; margin: 1rem 0;
  padding: 0.4rem 1rem; background: var(--raised); border: 1px solid var(--line); border-radius: 8px; }
dt, dd { margin: 0; padding: 0.32rem 0; }
dt { color: var(--soft); padding-right: 1.75rem; }
dd { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 1rem 0; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; min-width: 60%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: 0.5rem; font-size: 0.94rem; }
th, td { padding: 0.42rem 0.9rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; border-bottom: 2px solid var(--line); vertical-align: bottom; }
th.number, td.number { text-align: right; white-space: nowrap; }
tr.marked td { background: var(--mark); font-weight: 600; }
figure { margin: 1.25rem 0; }
figcaption { color: var(--soft); font-size: 0.94rem; margin-top: 0.4rem; max-width: 46rem; }
figure svg { width: 100%; max-width: 52rem; height: auto; display: block; color: var(--ink); }
figure img { max-width: 100%; height: auto; display: block; border: 1px solid var(--line); border-radius: 4px;
  background: #fff; }
figure img.small { image-rendering: pixelated; }
details { margin: 1rem 0; border: 1px solid var(--line); border-radius: 8px; padding: 0 1rem; }
summary { cursor: pointer; padding: 0.6rem 0; font-weight: 600; }
pre { overflow-x: auto; font: 0.86rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  margin: 0 0 1rem; }
footer { margin-top: 3rem; padding-top: 0.75rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: 0.88rem; }
@media (max-width: 36rem) { main { padding-top: 1.5rem; } dl { grid-template-columns: 1fr; }
  dt { padding-bottom: 0; } dd { padding-top: 0; } }
@media print { :root { --ink: #000; --soft: #444; --paper: #fff; --raised: #fff; --line: #bbb; --accent: #000;
  --mark: #eee; } main { max-width: none; padding: 0; } nav { display: none; } h2 { break-after: avoid; }
  figure, tr, dl { break-inside: avoid; } .scroll { overflow: visible; } }
"""


class Html(str):
    """Markup that is safe to put on a page as it is."""

    __slots__ = ()


class Page:
    """Builds a report from top to bottom; every method but `save` returns the page, so calls can be chained.

    Args:
        title: heading and window title.
        subtitle: one line below it.
        lang: language of the texts.
    """

    def __init__(self, title: str, subtitle: str = "", lang: str = "en") -> None:
        self._title, self._subtitle, self._lang = title, subtitle, lang
        self._parts: list[str] = []
        self._sections: list[str] = []
        self._figures = 0

    def section(self, title: str) -> Page:
        """Start a section; it appears in the contents when there are several."""
        self._sections.append(title)
        return self._add(f'<h2 id="section-{len(self._sections)}">{escape(title)}</h2>')

    def text(self, *paragraphs: str) -> Page:
        """Paragraphs; line breaks within them are kept."""
        return self._add("\n".join(f"<p>{escape(p)}</p>" for p in paragraphs))

    def facts(self, values: Mapping[str, Any]) -> Page:
        """A list of names and values."""
        return self._add(facts(values))

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        caption: str = "",
        highlight: Collection[int] = (),
    ) -> Page:
        """A table; see the function `table`."""
        return self._add(table(columns, rows, caption, highlight))

    def svg(self, svg: str, caption: str = "", alt: str = "") -> Page:
        """A figure drawn by `ddfed.report.figures`. ``alt`` says what it shows; by default its title does.

        Raises:
            ValueError: not SVG, or SVG that runs code or loads something.
        """
        self._figures += 1
        return self._add(_figure(_inline_svg(svg, f"f{self._figures}-", alt or caption), caption))

    def image(self, image: bytes | Path, alt: str, caption: str = "") -> Page:
        """A picture (PNG, JPEG, GIF, WebP), stored inside the page. ``alt`` says what it shows.

        Raises:
            ValueError: the bytes are none of these formats.
        """
        content = image.read_bytes() if isinstance(image, Path) else image
        kind = next((name for magic, name in _IMAGE_TYPES.items() if content.startswith(magic)), None)
        if kind is None:
            raise ValueError(f"not a PNG, JPEG, GIF or WebP picture: begins with {content[:8]!r}")
        # Grids of 8x8 or 28x28 items are looked at enlarged; smoothing would hide their pixels.
        size = ' class="small"' if len(content) < 200_000 and kind == "image/png" else ""
        data = base64.b64encode(content).decode()
        return self._add(_figure(f'<img{size} alt="{escape(alt)}" src="data:{kind};base64,{data}">', caption))

    def details(self, summary: str, content: str | Html) -> Page:
        """Something folded away. Plain text is escaped and set in a fixed-width font."""
        inner = content if isinstance(content, Html) else f"<pre>{escape(content)}</pre>"
        return self._add(f"<details><summary>{escape(summary)}</summary>\n{inner}\n</details>")

    def html(self) -> str:
        """The whole document."""
        subtitle = f'<p class="subtitle">{escape(self._subtitle)}</p>' if self._subtitle else ""
        body = "\n".join(self._parts)
        return (
            f'<!doctype html>\n<html lang="{escape(self._lang)}">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'\">\n"
            f"<title>{escape(self._title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<header>\n<h1>{escape(self._title)}</h1>\n{subtitle}\n{self._contents()}</header>\n{body}\n"
            f"<footer>Written by ddfed {escape(ddfed.__version__)}. "
            "This file needs no network and runs no code.</footer>\n</main>\n</body>\n</html>\n"
        )

    def save(self, path: Path) -> Path:
        """Write the document; returns ``path``.

        Raises:
            RunFolderError: the place cannot be written.
        """
        from ddfed.files import write_text

        write_text(path, self.html())
        return path

    def _add(self, markup: str) -> Page:
        self._parts.append(markup)
        return self

    def _contents(self) -> str:
        if len(self._sections) < 3:
            return ""
        items = "".join(
            f'<li><a href="#section-{number}">{escape(title)}</a></li>'
            for number, title in enumerate(self._sections, 1)
        )
        return f'<nav aria-label="Contents"><ul>{items}</ul></nav>\n'


def escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def shown(value: Any) -> str:
    """A value as text: floats with four significant digits, None as a dash, lists with commas."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(shown(v) for v in value) or "–"
    return str(value)


def facts(values: Mapping[str, Any]) -> Html:
    """A definition list; values that are `Html` are put in as they are."""
    rows = (
        f"<dt>{escape(name)}</dt><dd>{v if isinstance(v, Html) else escape(shown(v))}</dd>"
        for name, v in values.items()
    )
    return Html("<dl>" + "\n".join(rows) + "</dl>")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "", highlight: Collection[int] = ()
) -> Html:
    """A table; columns that hold only numbers are aligned right.

    Args:
        columns: headings.
        rows: cells; anything `shown` knows, or `Html`.
        caption: one sentence above it.
        highlight: numbers of the rows to mark, from 0.
    """
    body = [list(row) for row in rows]
    is_number = [_all_numbers([row[i] for row in body if i < len(row)]) for i in range(len(columns))]
    kinds = [' class="number"' if n else "" for n in is_number]
    head = "".join(f'<th scope="col"{kind}>{escape(c)}</th>' for c, kind in zip(columns, kinds))
    lines = []
    for number, row in enumerate(body):
        mark = ' class="marked"' if number in highlight else ""
        cells = (
            f"<td{kind}>{cell if isinstance(cell, Html) else escape(shown(cell))}</td>"
            for cell, kind in zip(row, kinds)
        )
        lines.append(f"<tr{mark}>{''.join(cells)}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    label = escape(caption or "Table: " + ", ".join(columns))
    # The wrapper can be focused so that wide tables scroll by keyboard too.
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>{title}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def _all_numbers(cells: Sequence[Any]) -> bool:
    told = [c for c in cells if c is not None and c != ""]
    return bool(told) and all(
        (isinstance(c, (int, float)) and not isinstance(c, bool))
        or (isinstance(c, str) and _NUMBER.fullmatch(c.strip()) is not None)
        for c in told
    )


def _figure(inner: str, caption: str) -> str:
    below = f"\n<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{inner}{below}</figure>"


def _inline_svg(svg: str, prefix: str, label: str) -> str:
    """SVG made fit for standing in a page: checked, named for screen readers, its ids its own."""
    start = svg.find("<svg")
    if start < 0:
        raise ValueError(f"not SVG: begins with {svg[:40]!r}")
    svg = svg[start:].strip()
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"broken SVG: {error}") from None
    _refuse_active(root)
    # Two figures drawn alike define the same ids, and the second would point into the first.
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(href=")#', rf"\1#{prefix}", svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
    if label:
        svg = re.sub(r"^<svg(?![^>]*\srole=)", f'<svg role="img" aria-label="{escape(label)}"', svg)
    return svg


def _refuse_active(root: ElementTree.Element) -> None:
    for element in root.iter():
        name = str(element.tag).rpartition("}")[2].lower()
        if name in ("script", "foreignobject", "iframe"):
            raise ValueError(f"SVG with a <{name}> element is not put in a report")
        for attribute, value in element.attrib.items():
            short = attribute.rpartition("}")[2].lower()
            if short.startswith("on") or (short == "href" and not value.startswith(("#", "data:image/"))):
                raise ValueError(f"SVG with {short}={value[:40]!r} is not put in a report")
