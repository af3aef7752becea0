"""The terms of the moments engine."""

from collections.abc import Mapping
from typing import Any

from ddfed.errors import ConfigError, UnknownNameError, one_of, suggest
from ddfed.match.terms.adversarial import Adversarial
from ddfed.match.terms.base import (
    Real,
    RowTerm,
    Scene,
    SumTerm,
    Term,
    View,
    class_means,
    maps,
    mean_distance,
)
from ddfed.match.terms.memory import Barycentre, Prototype
from ddfed.match.terms.public import PublicLogits
from ddfed.match.terms.rows import MMD, Covariance, Hausdorff, Quantile
from ddfed.match.terms.sums import (
    Attention,
    Centralisation,
    ClassTerm,
    Discrimination,
    Layers,
    LocalCovariance,
    Logits,
    Mean,
)

#: Every term by its name.
TERMS: dict[str, type[Term]] = {
    term.name: term
    for term in (
        Mean,
        Logits,
        Layers,
        Discrimination,
        Attention,
        MMD,
        Covariance,
        LocalCovariance,
        Prototype,
        Centralisation,
        Quantile,
        Hausdorff,
        Barycentre,
        ClassTerm,
        Adversarial,
        PublicLogits,
    )
}


def make_term(name: str, given: Any) -> tuple[float, Term]:
    """A term and its weight, from what settings say: a weight, or a table of options with ``weight`` among them.

    Another option of every term is ``from``: the part of the outer steps, from 0 to 1, that is made without it.

    Raises:
        ConfigError: an unknown term or option, or a weight that is no number.
    """
    if name not in TERMS:
        raise UnknownNameError(f"unknown term {name!r}.{suggest(name, TERMS)} Possible: {one_of(TERMS)}")
    options = dict(given) if isinstance(given, Mapping) else {"weight": given}
    weight = options.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise ConfigError(f"term {name!r} takes a weight or a table of options with 'weight' among them, got {given!r}")
    begins = options.pop("from", 0.0)
    if isinstance(begins, bool) or not isinstance(begins, (int, float)) or not 0 <= begins <= 1:
        raise ConfigError(f"term {name!r}: from must be a part of the outer steps, from 0 to 1, got {begins!r}")
    term = TERMS[name](**options)
    term.begins = float(begins)
    return float(weight), term


__all__ = [
    "TERMS",
    "Real",
    "RowTerm",
    "Scene",
    "SumTerm",
    "Term",
    "View",
    "class_means",
    "make_term",
    "maps",
    "mean_distance",
]
