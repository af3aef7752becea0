"""Checks that plugin authors inherit. Two lines in a plugin's tests run everything that applies::

    @parametrize_with_checks([DomainCase(MyDomain(), "small-set")])
    def test_contract(subject, check):
        check(subject)

Each check makes one claim and has a name a person understands; failures say which rule, what was seen and
where the rule is explained.
"""

from ddfed.testing.checks import DomainCase, RecipeCase, StoreCase, checks_for, parametrize_with_checks
from ddfed.testing.twin import TwinDomain, twin_task

__all__ = [
    "DomainCase",
    "RecipeCase",
    "StoreCase",
    "TwinDomain",
    "checks_for",
    "parametrize_with_checks",
    "twin_task",
]
