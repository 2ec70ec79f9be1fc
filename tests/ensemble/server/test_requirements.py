"""What the embedded server looks for before it starts, each missing thing with its remedy. Nothing here starts a
server."""

import socket
import sys

import numpy
import pytest

from ensemble.server import embedded as server
from ensemble.server import requirements as preflight
from ensemble.server.requirements import ServerError


def test_a_folder_without_models(tmp_path):
    with pytest.raises(ServerError, match=r"found no \*/config.pbtxt; write one with sam3-export"):
        preflight.check_repository(tmp_path)
    with pytest.raises(ServerError, match="expected a model repository at"):
        preflight.check_repository(tmp_path / "nowhere")


def test_numpy_2(monkeypatch):
    monkeypatch.setattr(numpy, "__version__", "2.1.0")
    with pytest.raises(ServerError, match=r"expected NumPy 1.26 .* got 2.1.0; pip install 'numpy<2'"):
        preflight.check_numpy()


def test_no_shared_libpython(monkeypatch):
    monkeypatch.setattr(preflight.sysconfig, "get_config_var", lambda _: None)
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(preflight, "_python_version", lambda: "3.77")
    with pytest.raises(ServerError, match=r"expected a shared libpython3.77.so.1.0 .* apt-get install libpython3.77"):
        preflight.find_libpython()


@pytest.mark.parametrize("version", ["3.13", "3.77"])
def test_a_python_without_packages(monkeypatch, version):
    monkeypatch.setattr(preflight, "_python_version", lambda: version)
    with pytest.raises(ServerError, match=rf"expected Python 3.10, .* this is {version}"):
        preflight.find_triton()


def test_every_python_that_is_promised_has_a_stub():
    stubs = preflight.find_triton() / "tritonserver" / "python_backend_stubs"
    assert set(preflight.PYTHONS) <= {path.name for path in stubs.iterdir()}


def test_package_not_installed(monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServerError, match=r"expected the nvidia-pytriton package"):
        preflight.find_triton()


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} on 127.0.0.1 cannot be used .* choose another"):
            server.EmbeddedServer(tmp_path, http_port=port)


def test_free_ports_are_three_different_ones(tmp_path):
    made = server.EmbeddedServer(tmp_path)
    assert len({made.http_port, made.grpc_port, made.metrics_port}) == 3


@pytest.mark.parametrize("address", ["::1", "nowhere.invalid", "192.0.2.1"])
def test_an_address_that_is_not_of_this_machine(address):
    """No port is to blame."""
    with pytest.raises(ServerError, match=f"IPv4 address of one of this machine's interfaces, .* got '{address}'"):
        server.EmbeddedServer("none", address=address)
