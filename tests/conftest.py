"""Fixtures for all rooms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

#: Real data sets for tests and benchmarks, beside the checkout; a user does not have them.
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the real data sets are not beside this checkout")
    return SHARED
