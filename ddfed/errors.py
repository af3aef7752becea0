"""One error tree. Every message says what is wrong, what was given, what is possible and what to do.

Each class also inherits the built-in exception it resembles, so that code which knows nothing of ddfed
catches what it expects.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DdfedError(Exception):
    """Base of all errors raised on purpose; the command line prints it in one line and exits with 1."""

    exit_code = 1


class ConfigError(DdfedError, ValueError):
    """A setting, a name or a combination of them is wrong. Raised before any work is done."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A component (method, domain, data set, ...) that nobody registered."""


class MissingDependencyError(DdfedError, ImportError):
    """An optional package is needed and not installed; the message holds the pip line."""


class DataError(DdfedError, ValueError):
    """A data set is there but broken: truncated, of the wrong format, or lacking what is asked of it."""


class MissingDataError(DataError, FileNotFoundError):
    """A data file is not where it is expected; the message says which file is expected where."""


class BudgetError(ConfigError):
    """A budget that the data cannot give, such as more images per class than the class holds."""


class GateError(DdfedError, PermissionError):
    """Raw real data was asked of a gate that only answers sums."""


class ArtifactError(DdfedError, ValueError):
    """A saved set is corrupt, foreign, or of a schema this version cannot read."""


class ReleaseError(DdfedError, ValueError):
    """What a client sent does not fit the task: wrong shapes, non-finite values, labels out of range."""


class DivergedError(DdfedError, ArithmeticError):
    """A loss or a tensor stopped being finite; the message holds the step and what to lower."""


class MemoryExceededError(DdfedError, MemoryError):
    """A step needs more memory than there is; the message says what to make smaller."""


class RunFolderError(DdfedError, OSError):
    """A run folder cannot be written, read or resumed."""


class FederationError(DdfedError, RuntimeError):
    """A round could not be held: too few replies, no client left, or the back end failed."""


def suggest(name: str, options: Iterable[str]) -> str:
    """``" Did you mean 'mtt'?"`` for the nearest option, or an empty string."""
    near = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def one_of(options: Iterable[object], limit: int = 20) -> str:
    """``'a', 'b', 'c'`` for an error message; long lists are cut with their length."""
    names = [repr(o) for o in options]
    return ", ".join(names[:limit]) + (f" ... ({len(names)} in all)" if len(names) > limit else "")
