"""Fixtures for all rooms."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
# A shell starts background jobs with Ctrl-C ignored, and children inherit it: the tests that send Ctrl-C to programs
# they start would wait for ever. With a handler of our own here, children start with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Real data sets for tests and benchmarks, beside the checkout; a user does not have them.
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: the last file of a parallel run should not be the one that everybody waits for."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the real data sets are not beside this checkout")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _twin_domain() -> None:
    """The domain without a modality, under the name that settings use."""
    from ddfed.registry import registry

    if "twin" not in registry().names("domain"):
        registry().add("domain", "twin", "ddfed.testing:TwinDomain", summary="Gaussian blobs, for tests")
