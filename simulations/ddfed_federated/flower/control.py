"""What `flwr` can ask of a SuperLink, without a process for each question: register, start, look, stop.

The command line ``flwr run --stream`` exits with 0 also when the run failed; `Control.outcome` tells the truth.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, run_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest, StopRunRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from ddfed.errors import ConfigError, FederationError


@dataclass(frozen=True)
class Outcome:
    """How a run stands.

    Args:
        status: Flower's word: pending, starting, running or finished.
        how: completed, failed or stopped once it is finished, else empty.
        details: what Flower says of a failure.
    """

    status: str
    how: str
    details: str

    @property
    def over(self) -> bool:
        return self.status == "finished"

    @property
    def well(self) -> bool:
        return self.over and self.how == "completed"


class Control:
    """Talks to the Control API of a SuperLink. Use as a context manager.

    Args:
        address: ``HOST:PORT`` of the SuperLink itself; a proxy for sites refuses these calls.
        authority: certificate of the authority that signed the SuperLink's.

    Raises:
        FederationError: by every method, when the SuperLink does not answer or refuses.
    """

    def __init__(self, address: str, authority: Path) -> None:
        self._address = address
        self._client = ControlHttpClient.from_server_address(
            address, False, str(authority), interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
        )

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def register(self, public_key: Path, name: str) -> int | None:
        """Let the owner of a key in; None where it was registered before.

        Raises:
            ConfigError: no public key in OpenSSH format.
        """
        request = RegisterNodeRequest(public_key=_public_key(public_key), name=name)
        try:
            return int(self._client.RegisterNode(request).node_id)
        except httpx.HTTPStatusError as error:
            if "already" in error.response.text:
                return None
            raise self._refused(error) from error
        except httpx.TransportError as error:
            raise self._refused(error) from error

    def start(self, app: Path, config: Mapping[str, Any]) -> int:
        """Start a run of a Flower App folder; returns its id."""
        content = build_fab_from_disk(app)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config)))
        answer = self._ask(self._client.StartRun, request)
        if not answer.HasField("run_id"):
            raise FederationError(f"the SuperLink at {self._address} started no run: {answer}")
        return int(answer.run_id)

    def outcome(self, run: int) -> Outcome:
        """How a run stands."""
        answer = self._ask(self._client.ListRuns, ListRunsRequest(run_id=run))
        found = [run_from_proto(proto) for proto in answer.run_dict.values()]
        if not found:
            raise FederationError(f"the SuperLink at {self._address} knows no run {run}")
        status = found[0].status
        return Outcome(status.status, status.sub_status, status.details)

    def stop(self, run: int) -> None:
        """End a run; its ServerApp is killed."""
        self._ask(self._client.StopRun, StopRunRequest(run_id=run))

    def _ask(self, call: Any, request: Any) -> Any:
        try:
            return call(request)
        except httpx.HTTPError as error:
            raise self._refused(error) from error

    def _refused(self, error: httpx.HTTPError) -> FederationError:
        if isinstance(error, httpx.HTTPStatusError):
            said = _message(error.response.text) or f"HTTP {error.response.status_code}"
            return FederationError(f"the SuperLink at {self._address} refused: {said}")
        return FederationError(
            f"no SuperLink answers at {self._address} ({error}); see that it runs, that this is its own address and "
            f"not the proxy's, and that its certificate is from this deployment's authority"
        )


def _message(text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return text.strip()[:300]
    said = found.get("message") or found.get("detail") if isinstance(found, dict) else None
    return str(said or text.strip()[:300])


def _public_key(path: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no public key in OpenSSH format: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path} is no elliptic-curve key; make one with `ddfed deploy key`")
    return public_key_to_bytes(key)
