"""The sites' door: a TLS reverse proxy that lets the SuperNodes' calls through and nothing else.

The SuperLink's one port also answers the Control API, where whoever reaches it starts runs, and the Runtime API, both
without asking who calls. So it listens on loopback, and the sites reach it through this proxy or an nginx. Only the
paths `ALLOWED` pass, character for character: nothing that an upstream could read as another path.

Runs as a program of its own: ``python -m ddfed_federated.deploy.proxy``, or ``ddfed deploy proxy``.
"""

from __future__ import annotations

import argparse
import http.client
import re
import signal
import ssl
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

#: What a site may ask: the calls of the Fleet API, which the SuperLink authenticates, and whether it is alive.
ALLOWED = re.compile(r"/health|/v1/fleet/[a-z-]+")
#: Largest message part; Flower cuts larger arrays in pieces of its own.
MAX_BODY = 256 * 2**20
#: Seconds a connection may be silent.
_IDLE_S = 60.0
_UPSTREAM_S = 60.0
#: Headers that belong to one connection, not to the message (RFC 9110, 7.6.1), and the length, which is set anew.
_HOP = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade", "content-length", "host")
)  # fmt: skip


class Proxy(ThreadingHTTPServer):
    """Listens with TLS and passes what is allowed on to the SuperLink, also with TLS.

    Args:
        listen: address and port; port 0 takes any.
        upstream: of the SuperLink.
        certificate: PEM file the sites are shown.
        key: its key.
        authority: PEM file of the authority that signed the SuperLink's certificate.

    Raises:
        OSError: the port is taken or the certificate cannot be read.
    """

    daemon_threads = True
    # Otherwise a killed proxy keeps its port for a minute.
    allow_reuse_address = True

    def __init__(
        self, listen: tuple[str, int], upstream: tuple[str, int], certificate: Path, key: Path, authority: Path
    ) -> None:
        self.inbound = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.inbound.minimum_version = ssl.TLSVersion.TLSv1_2
        self.inbound.load_cert_chain(certificate, key)
        self.upstream = upstream
        self.outbound = ssl.create_default_context(cafile=str(authority))
        super().__init__(listen, _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a slow handshake keeps nobody else waiting."""
        request.settimeout(_IDLE_S)
        try:
            secure = self.inbound.wrap_socket(request, server_side=True)
        except (OSError, ssl.SSLError):
            return
        try:
            super().finish_request(secure, client_address)
        finally:
            secure.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A site that hangs up is no news."""
        kind = sys.exc_info()[0]
        if kind is None or not issubclass(kind, OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ddfed-proxy", ""
    server: Proxy

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        if not ALLOWED.fullmatch(self.path):
            return self._refuse(403, "only the Fleet API is served here")
        length = self.headers.get_all("Content-Length", ["0"])
        # Two readings of where a request ends would let a second one slip through unseen.
        if self.headers.get("Transfer-Encoding") or len(length) > 1 or not length[0].isdecimal():
            return self._refuse(411, "say how long the message is, once")
        if int(length[0]) > MAX_BODY:
            return self._refuse(413, f"more than {MAX_BODY} bytes")
        body = self.rfile.read(int(length[0]))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        upstream = http.client.HTTPSConnection(*self.server.upstream, timeout=_UPSTREAM_S, context=self.server.outbound)
        try:
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return self._refuse(502, f"the SuperLink does not answer: {type(error).__name__}")
        finally:
            upstream.close()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True
        content = f"{why}\n".encode()
        self.log_message("%s %s refused: %s", self.command, self.path[:200], why)
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Refusals are logged; what passes is in the SuperLink's log."""


def address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, for `argparse`."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m ddfed_federated.deploy.proxy", description=__doc__.splitlines()[0])
    parser.add_argument("--listen", type=address, required=True)
    parser.add_argument("--upstream", type=address, required=True)
    for name in ("certificate", "key", "authority"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        proxy = Proxy(given.listen, given.upstream, given.certificate, given.key, given.authority)
    except OSError as error:
        sys.exit(f"the proxy cannot start at {given.listen[0]}:{given.listen[1]}: {error}")
    for number in (signal.SIGTERM, signal.SIGINT):
        # From a thread of its own: shutdown waits for the loop that this thread runs.
        signal.signal(number, lambda *_: threading.Thread(target=proxy.shutdown, daemon=True).start())
    with proxy:
        proxy.serve_forever(poll_interval=0.2)


if __name__ == "__main__":
    main()
