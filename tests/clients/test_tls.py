"""Addresses with TLS, keys, and what is said where a certificate, a key or a port is the wrong one."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading

import pytest
from tritonclient.utils import InferenceServerException

from clients import AccessDenied, AsyncClient, Client, InvalidRequest, ModelNotFound, Sam3ServerError, ServerUnavailable
from clients.errors import translate
from clients.fleet.config import read_config
from clients.fleet.yaml_lines import ConfigError
from clients.tls import KEY_VARIABLE
from clients.transport import Server

KEY = "sam3-Tr0ub4dor"
KINDS = [(scheme, kind) for scheme in ("grpcs", "https") for kind in ("blocking", "asyncio")]


def openssl(folder, *words):
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with `valid.crt` and `expired.crt`, both for `localhost`, with their keys."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for name, days in (("valid", "2"), ("expired", "-1")):
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
        openssl(folder, "req", *key, "-subj", "/CN=sam3", "-out", f"{name}.csr")
        signed = ["-signkey", f"{name}.key", "-days", days, "-extfile", "names"]
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")
    return folder


@contextlib.contextmanager
def listening(certificates, name=None):
    """The port of a server that ends each connection after its first bytes, over TLS where a certificate is named."""
    context = None
    if name is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / f"{name}.crt", certificates / f"{name}.key")
        context.set_alpn_protocols(["h2", "http/1.1"])

    def serve(listener):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    if context is not None:
                        connection = context.wrap_socket(connection, server_side=True)
                    elif connection.recv(4096):
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def detect(kind, url, **options):
    async def go():
        async with AsyncClient(url, model="sam3_r252", timeout=60, **options) as client:
            await client.detect(b"x", ["a"])

    if kind == "asyncio":
        return asyncio.run(go())
    with Client(url, model="sam3_r252", timeout=60, **options) as client:
        return client.detect(b"x", ["a"])


SAYS = {  # the server's certificate, the one that is trusted, the host: what is said
    "expired": ("expired", "expired", "localhost", "has expired; renew it"),
    "unknown authority": ("valid", None, "localhost", "authority that this computer does not know; pass"),
    "another authority": ("valid", "expired", "localhost", "authority that this computer does not know; pass"),
    "another host": ("valid", "valid", "127.0.0.1", "is for another host name"),
    "no TLS there": (None, "valid", "localhost", "it does not speak TLS; write host:port without"),
}


@pytest.mark.parametrize(("scheme", "kind"), KINDS)
@pytest.mark.parametrize("case", SAYS)
def test_what_is_wrong_with_the_encryption(case, scheme, kind, certificates):
    own, trusted, host, says = SAYS[case]
    ca = certificates / f"{trusted}.crt" if trusted else None
    with listening(certificates, own) as port, pytest.raises(ServerUnavailable) as error:
        detect(kind, f"{scheme}://{host}:{port}", ca=ca, key=KEY)
    assert says in str(error.value)
    assert f"{scheme}://{host}:{port}" in str(error.value)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(("scheme", "kind"), KINDS)
def test_without_tls_where_it_is_expected(scheme, kind, certificates):
    with listening(certificates, "valid") as port, pytest.raises(ServerUnavailable, match="expects TLS, write grpcs:"):
        detect(kind, f"{scheme[:-1]}://localhost:{port}")


@pytest.mark.parametrize(
    ("url", "protocol", "full"),
    [
        ("grpcs://host", "grpc", "grpcs://host:443"),
        ("https://host/", "http", "https://host:443"),
        ("HTTPS://host:8443", "http", "https://host:8443"),
        ("grpc://host", "grpc", "grpc://host:8001"),
        ("http://[::1]", "http", "http://[::1]:8000"),
        ("host:9", "grpc", "grpc://host:9"),
    ],
)
def test_a_scheme_says_protocol_and_tls(url, protocol, full):
    server = Server(url)
    assert (server.protocol, server.full_address) == (protocol, full)
    assert server.encrypted is full.split(":")[0].endswith("s")


WRONG = {
    "key in the clear": ({"url": "host", "key": KEY}, "over TLS only"),
    "key of two lines": ({"url": "grpcs://host", "key": f"{KEY}\nx"}, "printable ASCII"),
    "ca in the clear": ({"url": "host:1", "ca": __file__}, "write grpcs://host:1"),
    "ca not there": ({"url": "grpcs://host", "ca": "nowhere.crt"}, "certificates in PEM, got 'nowhere.crt'"),
    "ca is no certificate": ({"url": "grpcs://host", "ca": __file__}, "certificates in PEM"),
    "a path": ({"url": "https://host/v2"}, "write 'host'"),
    "a user": ({"url": f"https://me:{KEY}@host"}, "write 'host'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_cannot_work(case):
    settings, says = WRONG[case]
    with pytest.raises(ValueError, match=says) as error:
        Server(**settings)
    assert KEY not in str(error.value)


def test_the_key_of_the_environment_is_for_tls(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")
    assert Server("grpcs://host").key == KEY
    assert Server("grpcs://host", key="another").key == "another"
    assert Server("host").key is None
    assert KEY not in repr(Server("grpcs://host"))


def test_a_fleet_of_servers_with_tls(tmp_path, certificates, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    camera = "cameras: [{name: yard, source: yard.mp4, classes: [person]}]"
    file = tmp_path / "cameras.yaml"
    (tmp_path / "edge.crt").write_bytes((certificates / "valid.crt").read_bytes())
    file.write_text(f"servers: [grpcs://one, 'https://two:8443']\nca: edge.crt\n{camera}")
    config = read_config(file)
    assert config.servers == ("grpcs://one:443", "https://two:8443")
    assert config.ca == tmp_path / "edge.crt"
    assert KEY not in repr(config)
    for text, says in [
        (f"servers: [one]\nca: edge.crt\n{camera}", "1: servers.*ca is of TLS"),
        (f"ca: edge.crt\n{camera}", "1: ca: expected it beside `servers`"),
        (f"servers: [grpcs://one]\nca: gone.crt\n{camera}", "certificates in PEM"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=says):
            read_config(file)


STATUS = {
    "no key": ("401", "key unknown or missing", AccessDenied, "refuses the key (key unknown or missing); pass"),
    "expired token": ("StatusCode.UNAUTHENTICATED", "Jwt is expired", AccessDenied, "Jwt is expired"),
    "not allowed": ("StatusCode.PERMISSION_DENIED", "no", AccessDenied, KEY_VARIABLE),
    "rate, grpc": ("StatusCode.UNAVAILABLE", "local_rate_limited", Sam3ServerError, "send fewer a second"),
    "rate, http": ("429", "local_rate_limited", Sam3ServerError, "send fewer a second"),
    "size, grpc": ("StatusCode.UNKNOWN", "Payload Too Large", InvalidRequest, "send JPEG, or a smaller"),
    "size, http": ("413", "Payload Too Large", InvalidRequest, "send JPEG, or a smaller"),
}


@pytest.mark.parametrize("case", STATUS)
def test_what_a_gateway_refuses(case):
    status, message, kind, says = STATUS[case]
    error = translate(InferenceServerException(message, status), where="grpcs://h:1", model="x", timeout=2)
    assert type(error) is kind
    assert says in str(error)


def test_models_that_a_gateway_does_not_list():
    closed = InferenceServerException("closed here", "StatusCode.UNIMPLEMENTED")
    error = translate(closed, where="grpcs://h:1", model=None, timeout=2)
    assert type(error) is ModelNotFound
    assert "--model" in str(error)
