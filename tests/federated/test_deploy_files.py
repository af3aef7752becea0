"""What a deployment is made of: certificates that hold, keys nobody else reads, files that say what is started."""

from __future__ import annotations

import contextlib
import re
import shlex
import ssl
import stat
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from ddfed.cli import cli
from ddfed.config import Layer
from ddfed.errors import ConfigError, FederationError
from ddfed_federated.deploy import certificates, commands, hosts
from ddfed_federated.deploy.folder import Deployment
from ddfed_federated.deploy.local import LocalFederation, make_local
from ddfed_federated.deploy.processes import Program, Programs, check_port, free_ports
from ddfed_federated.settings import resolve_simulate

x509 = pytest.importorskip("cryptography.x509")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Deployment:
    made = Deployment.make(tmp_path_factory.mktemp("made") / "d", "fed.example.org", ("berlin", "rome"), 8443, 8000)
    hosts.write_hosts(made)
    return made


def test_certificates_are_p384_and_name_host_and_loopback(deployment):
    server = x509.load_pem_x509_certificate(deployment.certificate.read_bytes())
    authority = x509.load_pem_x509_certificate(deployment.authority.read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in names} == {"fed.example.org", "localhost", "127.0.0.1"}
    assert server.public_key().curve.name == authority.public_key().curve.name == "secp384r1"
    limits = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert limits.critical and limits.value.ca and limits.value.path_length == 0
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    # A site whose clock is hours behind must not find the certificate in its future.
    assert server.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=20)


def test_secrets_are_for_their_owner_alone_and_never_overwritten(deployment):
    secrets = [deployment.server_key, deployment.path / "authority/ca.key", *deployment.path.rglob("node.key")]
    assert len(secrets) == 4
    assert [stat.S_IMODE(path.stat().st_mode) for path in secrets] == [0o600] * 4
    with pytest.raises(ConfigError, match="never overwritten"):
        certificates.make_node_key(deployment.node_key("rome"))
    with pytest.raises(ConfigError, match="holds something already"):
        Deployment.make(deployment.path, "other", ("a",), 1, 2)


def test_openssl_and_ssh_read_what_was_written(deployment):
    """Programs that share no code with the library that wrote them."""
    verified = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", deployment.authority, deployment.certificate],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr
    key = deployment.node_key("berlin")
    public = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, text=True, check=True).stdout
    assert public.split()[:2] == deployment.public_key("berlin").read_text().split()[:2]
    assert public.startswith("ecdsa-sha2-nistp384 ")


def test_certificates_that_sites_would_refuse_are_refused_first(deployment, tmp_path):
    held = deployment.authority, deployment.certificate, deployment.server_key
    certificates.check(*held, "fed.example.org")
    with pytest.raises(ConfigError, match=r"is for fed.example.org, localhost, 127.0.0.1, not for 'other.org'"):
        certificates.check(*held, "other.org")
    other = Deployment.make(tmp_path / "other", "fed.example.org", ("a",), 1, 2)
    with pytest.raises(ConfigError, match="was not signed by"):
        certificates.check(other.authority, *held[1:], "fed.example.org")
    with pytest.raises(ConfigError, match="is not the key of"):
        certificates.check(*held[:2], other.server_key, "fed.example.org")
    signer = deployment.authority, deployment.path / "authority/ca.key"
    certificates.issue(signer, tmp_path / "old.pem", tmp_path / "old.key", ["fed.example.org"], days=0)
    with pytest.raises(ConfigError, match="check the clock of this machine"):
        certificates.check(deployment.authority, tmp_path / "old.pem", tmp_path / "old.key", "fed.example.org")
    with pytest.raises(ConfigError, match="is no certificate that can be read"):
        certificates.check(deployment.server_key, *held[1:], "fed.example.org")


def test_the_app_points_into_the_installed_package_and_installs_nothing(deployment):
    app = tomllib.loads((deployment.app / "pyproject.toml").read_text())
    assert app["project"]["dependencies"] == []
    assert [path.name for path in deployment.app.iterdir()] == ["pyproject.toml"]
    for target in app["tool"]["flwr"]["app"]["components"].values():
        module, _, attribute = target.partition(":")
        source = Path(*("simulations", *module.split("."))).with_suffix(".py")
        # Flower looks for a plain assignment in the source; it does not import.
        assert re.search(rf"^{attribute} = (Server|Client)App\(\)$", (ROOT / source).read_text(), re.MULTILINE), source


ROOT = Path(__file__).parents[2]


def test_flower_accepts_the_app(deployment):
    pytest.importorskip("flwr")
    from flwr.cli.build import build_fab_from_disk

    assert 0 < len(build_fab_from_disk(deployment.app)) < 5000


def test_nginx_lets_the_fleet_through_and_nothing_else(deployment):
    text = (deployment.path / "nginx.conf").read_text()
    assert "listen 8443 ssl;" in text and "server_name fed.example.org;" in text
    passed = re.findall(r"^    location ([^{\n]*?) \{(?:(?!location).)*?proxy_pass", text, re.MULTILINE | re.DOTALL)
    assert passed == ['~ "^/v1/fleet/[a-z-]+$"', "= /health"]
    assert re.search(r"location / \{\s*return 403;", text)
    assert text.count("proxy_pass https://127.0.0.1:8000;") == 2 and "proxy_ssl_verify              on;" in text


def test_units_and_readme_start_what_the_local_rehearsal_starts(deployment):
    unit = (deployment.path / "sites/rome/ddfed-supernode.service").read_text()
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    command = commands.site_command(deployment, "rome", Path("/etc/ddfed"), 9094, "/srv/ddfed/data")
    assert shlex.split(line.removeprefix("ExecStart=/opt/ddfed/bin/")) == command
    assert 'partition-id=1 num-partitions=2 data="/srv/ddfed/data"' in command
    assert "Restart=always" in unit and "RestartSec=15" in unit
    link = (deployment.path / "systemd/ddfed-superlink.service").read_text()
    for option in ("--host 127.0.0.1", "--enable-supernode-auth", "--disable-runtime-dependency-installation"):
        assert option in link
    readme = (deployment.path / "README.md").read_text()
    told = [line for line in readme.splitlines() if line.startswith("flower-supernode ")]
    assert [shlex.split(line)[:3] for line in told] == [["flower-supernode", "--superlink", "fed.example.org:8443"]]


def test_flower_reads_what_a_supernode_is_told_of_itself(tmp_path):
    config = pytest.importorskip("flwr.common.config")
    command = commands.supernode(tmp_path, "h:1", 2, 3, 9094, "/srv/our data/a=b")
    about = config.parse_config_args([command[command.index("--node-config") + 1]])
    assert about == {"partition-id": 2, "num-partitions": 3, "data": "/srv/our data/a=b"}
    with pytest.raises(ConfigError, match="cannot be given to a SuperNode"):
        commands.supernode(tmp_path, "h:1", 2, 3, 9094, '/srv/"x" partition-id=0')


def test_the_compose_file_keeps_the_superlink_on_loopback(deployment):
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((deployment.path / "compose.yaml").read_text())["services"]
    assert services["superlink"]["ports"] == ["8443:8443"]
    assert services["superlink"]["command"][:5] == ["flower-superlink", "--host", "127.0.0.1", "--port", "8000"]
    assert services["door"]["network_mode"] == "service:superlink"


def test_a_deployment_is_read_back_and_a_damaged_one_refused(deployment, tmp_path):
    assert Deployment.open(deployment.path) == deployment
    with pytest.raises(ConfigError, match="is no deployment: it lacks deployment.json"):
        Deployment.open(tmp_path)
    with pytest.raises(ConfigError, match="different names"):
        Deployment.make(tmp_path / "x", "host", ("a", "a"), 1, 2)
    with pytest.raises(ConfigError, match="without a port"):
        Deployment.make(tmp_path / "x", "host:80", ("a",), 1, 2)


def test_a_taken_port_is_named_with_the_option_to_change(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 cannot be had .* choose another with --port"):
            check_port(port, "--port")
        with pytest.raises(ConfigError, match="--port"):
            make_local(tmp_path / "d", 2, port)
    assert not (tmp_path / "d").exists()
    check_port(port, "--port")


def test_a_local_federation_takes_one_data_folder_for_each_site(tmp_path):
    made = make_local(tmp_path / "d", 2)
    with pytest.raises(ConfigError, match="1 data folders for 2 sites"):
        LocalFederation(made, tmp_path, [tmp_path])
    with pytest.raises(ConfigError, match="does not exist"):
        LocalFederation(made, tmp_path, [tmp_path, tmp_path / "none"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init", "DIR", "--host", "h"], "either --nodes NUMBER or --sites"),
        (["init", "DIR", "--host", "h", "--nodes", "0"], "at least 1 site"),
        (["run", "DIR"], "is no deployment"),
        (["up", "--local", "0"], "0"),
        (["up", "--local", "2", "--method", "fedmd2"], "unknown"),
        (
            ["up", "--local", "2", "--partition", "own", "--references", "local"],
            "sites of the split 'own' keep theirs",
        ),
        (["check", "nowhere", "--authority", "DIR"], "no certificate that can be read|not HOST:PORT"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(words, message, tmp_path):
    words = [str(tmp_path / "d") if word == "DIR" else word for word in words]
    if words[0] == "up":
        words += ["--out", str(tmp_path / "runs")]
    result = CliRunner().invoke(cli, ["deploy", *words])
    assert result.exit_code == 2, result.output
    assert re.search(message, result.output), result.output
    assert not (tmp_path / "d").exists() and not list(tmp_path.glob("runs/*"))


def test_a_simulation_has_neither_a_superlink_nor_sites_of_its_own(tmp_path):
    for option, value in (("--backend", "deployed"), ("--partition", "own")):
        result = CliRunner().invoke(
            cli, ["simulate", option, value, "--out", str(tmp_path / "runs"), "-q", "--set", "data.train_limit=300"]
        )
        assert result.exit_code == 2 and "ddfed deploy" in result.output, result.output


# --- programs ---------------------------------------------------------------------------------------------------


def test_programs_end_with_all_that_they_started(tmp_path):
    # The child leaves the session, as Flower's do, and ignores a friendly word.
    code = (
        "import subprocess, sys, time, pathlib;"
        "p = subprocess.Popen([sys.executable, '-c', 'import signal, time;"
        " signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)'], start_new_session=True);"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(p.pid)); time.sleep(600)"
    )
    with Programs() as programs:
        programs.start(Program("one", [sys.executable, "-c", code], tmp_path / "one.log"))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert programs.tend() == []
        child = int((tmp_path / "pid").read_text())
        assert Path(f"/proc/{child}").exists() or sys.platform != "linux"
    if sys.platform == "linux":
        status = Path(f"/proc/{child}/stat")
        assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_program_that_must_not_end_is_an_error_with_its_last_words(tmp_path):
    with Programs() as programs:
        code = "print('first line'); print('no certificate'); raise SystemExit(7)"
        program = programs.start(Program("link", [sys.executable, "-c", code], tmp_path / "link.log"))
        program.process.wait(30)
        with pytest.raises(FederationError, match="(?s)link ended with code 7.*no certificate"):
            programs.tend()


def test_a_program_that_may_end_is_started_again_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr("ddfed_federated.deploy.processes.RESTART_S", 0.05)
    with Programs() as programs:
        program = programs.start(
            Program("node", [sys.executable, "-c", "print('here')"], tmp_path / "n.log", {}, "restart")
        )
        program.process.wait(30)
        told = programs.tend()
        while len(told) < 2:
            told += programs.tend()
        program.process.wait(30)
    assert told[0].startswith("node ended with code 0") and told[1] == "node is started again"
    assert (tmp_path / "n.log").read_text() == "here\nhere\n"


def test_a_program_may_be_done_without(tmp_path):
    with Programs() as programs:
        program = programs.start(Program("node", [sys.executable, "-c", ""], tmp_path / "n.log", {}, "go on"))
        program.process.wait(30)
        assert [programs.tend(), programs.tend()] == [["node ended with code 0"], []]
        with pytest.raises(FederationError, match="node is not running"):
            _ = program.pid


def test_free_ports_are_different():
    assert len(set(free_ports(5))) == 5


def test_settings_at_a_site_name_its_own_folder_and_share():
    pytest.importorskip("flwr")
    from ddfed_federated.flower.survey import localised
    from ddfed_federated.settings import SimulateSettings
    from ddfed_federated.worker import load_partition

    shared = resolve_simulate([Layer("test", {"data": {"root": "/server"}, "federation": {"clients": 3}})]).settings
    text = shared.model_dump_json()
    assert localised(text, {"partition-id": 1}, 1) == text
    there = SimulateSettings.model_validate_json(localised(text, {"data": "/site"}, 1))
    assert there == shared.model_copy(update={"data": shared.data.model_copy(update={"root": Path("/site")})})
    own = {"federation": {"clients": 3, "partition": "own"}, "data": {"train_limit": 100}}
    settings = resolve_simulate([Layer("test", own)]).settings
    with pytest.raises(ConfigError, match="ddfed deploy"):
        load_partition(settings)
    here = SimulateSettings.model_validate_json(localised(settings.model_dump_json(), {}, 2))
    assert [len(share) for share in load_partition(here).shares] == [0, 0, 100]


def test_tls_of_the_server_is_accepted_by_name(deployment):
    context = ssl.create_default_context(cafile=str(deployment.authority))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(deployment.certificate, deployment.server_key)

    def shake(name: str) -> None:
        a, b, c, d = (ssl.MemoryBIO() for _ in range(4))
        client = context.wrap_bio(a, b, server_hostname=name)
        server = serving.wrap_bio(c, d, server_side=True)
        for _ in range(5):
            for side, out, to in ((client, b, c), (server, d, a)):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
                to.write(out.read())

    shake("fed.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake("evil.example.org")
