"""The back ends by name, each called with the server's part and the run's settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddfed.errors import ConfigError
from ddfed_federated.settings import SimulateSettings

Main = Callable[[Any], None]


def inprocess(main: Main, settings: SimulateSettings) -> None:
    """In this process, or with ``federation.workers`` client processes."""
    from ddfed_federated.flower.backends import run_inprocess

    federation = settings.federation
    run_inprocess(main, federation.clients, workers=federation.workers, client_threads=federation.client_threads)


def ray(main: Main, settings: SimulateSettings) -> None:
    """On Ray: a cluster of its own, or the one at ``federation.ray_address``."""
    from ddfed_federated.flower.backends import run_ray

    federation = settings.federation
    run_ray(
        main,
        federation.clients,
        address=federation.ray_address or "local",
        client_threads=federation.client_threads,
    )


def deployed(main: Main, settings: SimulateSettings) -> None:
    """Only a SuperLink can run a server there; named in the settings of runs that it held.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "federation.backend = 'deployed' is for `ddfed deploy up` and `ddfed deploy run`, which talk to a "
        "SuperLink; in a simulation choose inprocess or ray"
    )
