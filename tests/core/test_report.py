"""Reports are one safe file; figures are the same every time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest

from ddfed.report import figures
from ddfed.report.html import Html, Page, facts, table

EVIL = "<script>alert('x')</script>\" onload=\"y"
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


class Tags(HTMLParser):
    """Collects tags, attributes and text, and insists that what opens also closes."""

    VOID = {"meta", "img", "br", "use"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def full_page() -> Page:
    svg = figures.curves({"a": ([1, 2], [3, 4])}, "x", "y")
    page = Page(EVIL, EVIL).section(EVIL).text(EVIL).facts({EVIL: EVIL})
    page.table([EVIL, "n"], [[EVIL, 1]], EVIL, highlight=[0]).details(EVIL, EVIL)
    return page.svg(svg, EVIL).svg(svg, "again").image(PNG, EVIL, EVIL)


def test_a_page_is_well_formed_and_loads_nothing():
    tags = Tags(full_page().html())
    names = [name for name, _ in tags.seen]
    assert "script" not in names and "link" not in names
    for _, attributes in tags.seen:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/"))
    assert EVIL in "".join(tags.texts)


def test_a_page_is_accessible():
    tags = Tags(full_page().html())
    by_name = dict(reversed(tags.seen))
    assert by_name["html"]["lang"] == "en"
    assert [name for name, _ in tags.seen if re.fullmatch("h[1-6]", name)] == ["h1", "h2"]
    assert all(a.get("alt") for name, a in tags.seen if name == "img")
    assert all(a.get("role") == "img" and a.get("aria-label") for name, a in tags.seen if name == "svg")
    assert all(a.get("scope") == "col" for name, a in tags.seen if name == "th")


def test_contents_appear_with_three_sections():
    page = Page("t")
    for number in range(3):
        page.section(f"part {number}")
    assert 'href="#section-3"' in page.html()
    assert "<nav" not in Page("t").section("only").html()


def test_ids_of_two_like_figures_do_not_clash():
    ids = [a["id"] for _, a in Tags(full_page().html()).seen if a.get("id")]
    assert len(ids) == len(set(ids))


def test_numbers_are_aligned_right_and_rows_marked():
    made = table(["name", "accuracy", "n"], [["a", "81.2 ± 0.4 %", 3], ["b", None, 0.123456]], highlight={1})
    assert made.count('<th scope="col" class="number">') == 2
    assert '<td class="number">0.1235</td>' in made and '<td class="number">–</td>' in made
    assert made.count('<tr class="marked">') == 1
    assert "<b>" in facts({"x": Html("<b>bold</b>")}) and "&lt;b&gt;" in facts({"x": "<b>"})


@pytest.mark.parametrize(
    "svg",
    [
        "no picture",
        "<svg",
        '<svg xmlns="http://www.w3.org/2000/svg"><script>x</script></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg" onload="x"></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><a href="https://example.org"/></svg>',
    ],
)
def test_svg_that_is_broken_or_active_is_refused(svg: str):
    with pytest.raises(ValueError, match="SVG"):
        Page("t").svg(svg)


def test_a_picture_of_another_format_is_refused():
    with pytest.raises(ValueError, match="PNG"):
        Page("t").image(b"<svg/>", "x")


def test_save_makes_the_folder(tmp_path: Path):
    path = Page("ä").save(tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


DRAWINGS = {
    "curves": lambda: figures.curves(
        {"a": ([1, 2, 3], [1, float("nan"), 3], [0.1, 0.1, 0.1]), "b": ([1], [2])},
        "x", "y", "title", log_x=True, reference={"all": 2.5},
    ),
    "no curves": lambda: figures.curves({}, "x", "y"),
    "histogram": lambda: figures.label_histogram([[1, 2, 0], [0, 0, 5]], ["a", "b", "c"], "title"),
    "empty histogram": lambda: figures.label_histogram([[0, 0]], ["a", "b"]),
    "no clients": lambda: figures.label_histogram([], ["a", "b"]),
    "one class": lambda: figures.label_histogram([[3]], ["a"]),
    "bars": lambda: figures.bars(
        {"a": (81.2, 0.4), "b": (float("nan"), None)}, "%", "t", {"all": 98.0}, highlight="a"
    ),
    "no bars": lambda: figures.bars({}, "%"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWINGS)
def test_figures_are_the_same_every_time_and_fit_a_page(name: str):
    before = dict(matplotlib.rcParams)
    first, second = DRAWINGS[name](), DRAWINGS[name]()
    assert first == second
    assert dict(matplotlib.rcParams) == before
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert "currentColor" in first and "<metadata" not in first
    Tags(Page("t").svg(first, "caption").html())


def test_figures_ignore_a_persons_matplotlib_settings():
    plain = DRAWINGS["curves"]()
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "lines.linewidth": 9}):
        assert DRAWINGS["curves"]() == plain


def test_large_figures_stay_small_files():
    many = [[(client * label) % 3 for label in range(100)] for client in range(200)]
    assert len(figures.label_histogram(many, [str(i) for i in range(100)])) < 2_000_000
    steps = list(range(100_000))
    assert len(figures.curves({"loss": (steps, steps)}, "step", "loss")) < 100_000
