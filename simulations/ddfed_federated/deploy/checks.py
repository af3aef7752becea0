"""What a site can find out about a server before its SuperNode is refused without a word."""

from __future__ import annotations

import email.utils
import http.client
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from ddfed.errors import ConfigError
from ddfed_federated.deploy.proxy import address

#: A SuperNode signs the time. Flower refuses one whose clock is so many seconds ahead of the server's, or behind.
AHEAD_S, BEHIND_S = 5, 305
_TIMEOUT_S = 10.0
#: Calls that must not reach the SuperLink from a site: the first starts runs, the second gives out a run's work.
SHUT = ("/v1/control/list-runs", "/v1/runtime/acquire-task")


@dataclass(frozen=True)
class Row:
    """One thing that was looked at.

    Args:
        what: in words.
        fine: whether it is as it should be.
        found: what is there, and what to do where it is wrong.
    """

    what: str
    fine: bool
    found: str


def check_server(server: str, authority: Path) -> list[Row]:
    """Look at a server.

    Args:
        server: ``HOST:PORT`` of the sites' door.
        authority: certificate of the deployment's authority.

    Returns:
        What was found; later rows are left out where an earlier one makes them moot.

    Raises:
        ConfigError: no such file, or no ``HOST:PORT``.
    """
    try:
        host, port = address(server)
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{authority} is no certificate that can be read: {error}") from error
    except Exception as error:
        raise ConfigError(str(error)) from error
    try:
        status, date = _ask(host, port, context, "GET", "/health")
    except ssl.SSLCertVerificationError as error:
        wrong = (
            f"{server} shows a certificate that {authority} does not vouch for: {error.verify_message}. Ask for the "
            f"right ca.crt, use the name that the certificate is for, and check the clock of this machine"
        )
        return [Row("certificate", False, wrong)]
    except (OSError, http.client.HTTPException) as error:
        return [Row("answers", False, f"{server} does not answer: {error}")]
    rows = [
        Row("answers", status == 200, "yes" if status == 200 else f"/health gives HTTP {status}; is the SuperLink up?"),
        Row("certificate", True, "vouched for, and for this name"),
        _clock(date),
    ]
    return rows + [_shut(host, port, context, path) for path in SHUT]


def _ask(host: str, port: int, context: ssl.SSLContext, method: str, path: str) -> tuple[int, str | None]:
    connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request(method, path, body=b"" if method == "POST" else None)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("Date")
    finally:
        connection.close()


def _clock(date: str | None) -> Row:
    if date is None:
        return Row("clock", True, "the server does not tell its time")
    ahead = time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    # The server tells whole seconds, and the answer took a moment.
    fine = -BEHIND_S < ahead < AHEAD_S + 1
    found = f"this machine is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server"
    remedy = f"; a node may be {AHEAD_S} s ahead or {BEHIND_S} s behind, so set the clocks (NTP)"
    return Row("clock", fine, found if fine else found + remedy)


def _shut(host: str, port: int, context: ssl.SSLContext, path: str) -> Row:
    status, _ = _ask(host, port, context, "POST", path)
    fine = status in (403, 404)
    wrong = (
        f"HTTP {status}: whoever reaches {host}:{port} can start runs; put the proxy or nginx in front of the SuperLink"
    )
    return Row(f"{path} is shut", fine, f"HTTP {status}" if fine else wrong)
