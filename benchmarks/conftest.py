"""Two threads, and a table of ratios at the end."""

from __future__ import annotations

import pytest
import torch

#: Rows of the table: what, ratio of the minima, median of the ratios, shortest milliseconds of both.
TABLE = pytest.StashKey[list[tuple[str, float, float, float, float]]]()


@pytest.fixture
def table(request: pytest.FixtureRequest) -> list[tuple[str, float, float, float, float]]:
    return request.config.stash.setdefault(TABLE, [])


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    table = terminalreporter.config.stash.get(TABLE, [])
    if not table:
        return
    terminalreporter.section("ddfed against the reference")
    write = terminalreporter.write_line
    write(f"{'':28}{'ratio of':>10}{'median':>10}{'reference':>12}{'ddfed':>10}")
    write(f"{'':28}{'minima':>10}{'of ratios':>10}{'min ms':>12}{'min ms':>10}")
    for what, minima, medians, reference, ours in table:
        write(f"{what:28}{minima:9.2f}x{medians:9.2f}x{reference:12.1f}{ours:10.1f}")
