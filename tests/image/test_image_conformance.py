"""The image domain under the checks that every domain inherits."""

from __future__ import annotations

from ddfed.testing import DomainCase, parametrize_with_checks
from ddfed_image.domain import ImageDomain


# 98.9 % measured.
@parametrize_with_checks([DomainCase(ImageDomain(), "digits", reference=97.5)])
def test_domain(subject, check):
    check(subject)
