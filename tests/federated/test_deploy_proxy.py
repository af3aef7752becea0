"""The sites' door: what passes, what does not, and that nothing else ever reaches the SuperLink."""

from __future__ import annotations

import email.utils
import http.client
import os
import shutil
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ddfed.errors import ConfigError
from ddfed_federated.deploy import hosts
from ddfed_federated.deploy.checks import check_server
from ddfed_federated.deploy.folder import Deployment
from ddfed_federated.deploy.processes import Program, Programs, free_ports, wait_for_health
from ddfed_federated.deploy.proxy import MAX_BODY, Proxy

pytest.importorskip("cryptography")


class Upstream(ThreadingHTTPServer):
    """In the SuperLink's place: answers everything with 200 and remembers what it was asked."""

    def __init__(self, deployment):
        self.seen, self.ahead = [], 0.0
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(deployment.certificate, deployment.server_key)
        super().__init__(("127.0.0.1", 0), Answer)
        self.socket = context.wrap_socket(self.socket, server_side=True)


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, body, dict(self.headers.items())))
        self.send_response_only(200)
        self.send_header("Date", email.utils.formatdate(time.time() + self.server.ahead, usegmt=True))
        self.send_header("X-Flower", "kept")
        self.send_header("Content-Length", str(len(body) + 3))
        self.end_headers()
        self.wfile.write(b"to " + body)

    do_GET = do_PUT = do_DELETE = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    return Deployment.make(tmp_path_factory.mktemp("d") / "d", "127.0.0.1", ("a",), 1, 2)


def serving(server):
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


@pytest.fixture
def upstream(deployment):
    server = serving(Upstream(deployment))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(deployment, upstream):
    files = deployment.certificate, deployment.server_key, deployment.authority
    server = serving(Proxy(("127.0.0.1", 0), upstream.server_address, *files))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def connection(deployment, proxy):
    context = ssl.create_default_context(cafile=str(deployment.authority))
    made = http.client.HTTPSConnection(*proxy.server_address, timeout=10, context=context)
    yield made
    made.close()


def raw(deployment, address, text: bytes) -> bytes:
    """The answer to a request as it stands, which no decent client would send."""
    context = ssl.create_default_context(cafile=str(deployment.authority))
    with (
        socket.create_connection(address, timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(text)
        return secure.recv(65536)


def test_what_sites_ask_passes_with_body_and_headers_over_one_connection(connection, upstream):
    content = bytes(range(256)) * 4000
    for path in ("/v1/fleet/push-object", "/v1/fleet/pull-messages"):
        connection.request("POST", path, content, {"flwr-signature": "s=="})
        answer = connection.getresponse()
        assert (answer.status, answer.read(), answer.headers["X-Flower"]) == (200, b"to " + content, "kept")
    connection.request("GET", "/health")
    assert connection.getresponse().read() == b"to "
    assert [(method, path) for method, path, _, _ in upstream.seen] == [
        ("POST", "/v1/fleet/push-object"), ("POST", "/v1/fleet/pull-messages"), ("GET", "/health"),
    ]  # fmt: skip
    assert upstream.seen[0][2] == content and upstream.seen[0][3]["flwr-signature"] == "s=="


FORBIDDEN = ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/", "/docs", "/healthz",
    "/health/", "/v1/fleet/", "/v1/fleet", "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/x/../../control/start-run", "/v1/fleet//control/start-run", "/v1/fleet/x;/../control",
    "/v1/fleet/pull-messages?x=1", "/v1/fleet/pull-messages#x", "/V1/control/start-run", "/v1/fleet/pull-messages/",
    "https://127.0.0.1/v1/control/start-run", "/v1/fleet/a\\b", "/v1/fleet/\xa0"]  # fmt: skip


@pytest.mark.parametrize("path", FORBIDDEN)
def test_anything_else_is_refused_and_never_reaches_the_superlink(deployment, proxy, upstream, path):
    request = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
    assert raw(deployment, proxy.server_address, request).startswith(b"HTTP/1.1 403 ")
    assert upstream.seen == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Transfer-Encoding: chunked\r\n", 411),
        ("Content-Length: 0\r\nContent-Length: 5\r\n", 411),
        ("Content-Length: -1\r\n", 411),
        (f"Content-Length: {MAX_BODY + 1}\r\n", 413),
    ],
)
def test_no_second_request_hides_in_the_first(deployment, proxy, upstream, headers, status):
    hidden = "POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    request = f"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n{headers}\r\n{hidden}".encode()
    assert raw(deployment, proxy.server_address, request).startswith(f"HTTP/1.1 {status} ".encode())
    assert upstream.seen == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "CONNECT"])
def test_other_methods_are_unknown(connection, upstream, method):
    connection.request(method, "/v1/fleet/pull-messages")
    assert connection.getresponse().status == 501
    assert upstream.seen == []


def test_a_silent_visitor_keeps_nobody_waiting(connection, proxy):
    with socket.create_connection(proxy.server_address):
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200


def test_a_superlink_that_is_away_is_a_502(connection, upstream, deployment):
    upstream.shutdown()
    upstream.server_close()
    connection.request("POST", "/v1/fleet/pull-messages", b"x")
    assert connection.getresponse().status == 502


def test_a_superlink_of_another_authority_gets_nothing(deployment, upstream, tmp_path):
    other = Deployment.make(tmp_path / "other", "127.0.0.1", ("a",), 1, 2)
    files = other.certificate, other.server_key, other.authority
    server = serving(Proxy(("127.0.0.1", 0), upstream.server_address, *files))
    context = ssl.create_default_context(cafile=str(other.authority))
    connection = http.client.HTTPSConnection(*server.server_address, timeout=10, context=context)
    connection.request("POST", "/v1/fleet/push-object", b"secret")
    assert connection.getresponse().status == 502
    connection.close()
    server.shutdown()
    server.server_close()
    assert upstream.seen == []


# --- nginx, where there is one --------------------------------------------------------------------------------------

SERVER = """daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
{site}
}}
"""


@pytest.fixture
def nginx(upstream, tmp_path):
    """The address of an nginx with the written configuration, and its deployment."""
    program = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if program is None:
        pytest.skip("nginx is not installed")
    port = free_ports(1)[0]
    made = Deployment.make(tmp_path / "d", "127.0.0.1", ("a",), port, upstream.server_address[1])
    # The fake SuperLink shows a certificate of its own authority.
    upstream.socket.context.load_cert_chain(made.certificate, made.server_key)
    site = hosts.nginx(made).replace(str(hosts.SERVER_HOME / "link"), str(made.link))
    (tmp_path / "nginx.conf").write_text(SERVER.format(folder=tmp_path, site=site))
    words = [program, "-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")]
    with Programs() as programs:
        process = programs.start(Program("nginx", words, tmp_path / "log"))
        wait_for_health(process, programs, port, made.authority, 20)
        upstream.seen.clear()
        yield ("127.0.0.1", port), made


def test_nginx_passes_what_the_proxy_passes_and_nothing_else(nginx, upstream):
    address, made = nginx
    context = ssl.create_default_context(cafile=str(made.authority))
    connection = http.client.HTTPSConnection(*address, timeout=10, context=context)
    content = bytes(range(256)) * 8000
    connection.request("POST", "/v1/fleet/push-object", content, {"flwr-signature": "s=="})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"to " + content)
    assert upstream.seen.pop()[3]["flwr-signature"] == "s=="
    for path in FORBIDDEN:
        request = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode("latin-1")
        status = raw(made, address, request).split()[1]
        assert (path, status in (b"400", b"403"), upstream.seen) == (path, True, [])
    rows = check_server("{}:{}".format(*address), made.authority)
    assert all(row.fine for row in rows), rows


# --- ddfed deploy check ---------------------------------------------------------------------------------------------


def looked(server, authority):
    return {row.what: (row.fine, row.found) for row in check_server("{}:{}".format(*server.server_address), authority)}


def test_a_site_finds_everything_in_order_behind_the_proxy(deployment, proxy):
    rows = looked(proxy, deployment.authority)
    assert len(rows) == 5 and all(fine for fine, _ in rows.values()), rows


def test_a_site_sees_a_superlink_without_a_door(deployment, upstream):
    rows = looked(upstream, deployment.authority)
    assert [what for what, (fine, _) in rows.items() if not fine] == [
        "/v1/control/list-runs is shut", "/v1/runtime/acquire-task is shut",
    ]  # fmt: skip
    assert "can start runs" in rows["/v1/control/list-runs is shut"][1]


@pytest.mark.parametrize(("ahead", "fine"), [(-60, False), (30, True), (250, True), (400, False)])
def test_a_site_sees_that_its_clock_is_off(deployment, proxy, upstream, ahead, fine):
    upstream.ahead = ahead
    told = looked(proxy, deployment.authority)["clock"]
    assert told[0] is fine and ("set the clocks" in told[1]) is not fine, told


def test_a_site_sees_a_wrong_certificate_and_a_server_that_is_away(deployment, proxy, tmp_path):
    other = Deployment.make(tmp_path / "other", "127.0.0.1", ("a",), 1, 2)
    fine, found = looked(proxy, other.authority)["certificate"]
    assert not fine and "does not vouch for" in found
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        [row] = check_server(f"127.0.0.1:{port}", deployment.authority)
    assert (row.what, row.fine) == ("answers", False)
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        check_server("127.0.0.1", deployment.authority)
