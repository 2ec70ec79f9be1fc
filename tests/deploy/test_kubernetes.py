"""`deploy/kubernetes`: every overlay builds and is valid, and what it names exists in the product. No cluster here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import ValidationError, latest_version, validate

from clients.conversation import SESSION_HEADER
from ensemble.server import container, probe
from ensemble.server.start_check import stated_pool_mb
from ensemble.server.supervision import PATIENCE, SILENCE_S
from export.cli import build_parser
from tests.conftest import ROOT
from tests.container.test_compose import COMPOSE, DOCKERFILE, SERVER

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(file.parent for file in (KUBERNETES / "overlays").glob("**/kustomization.yaml"))
BUILT = [folder for folder in OVERLAYS if folder.name != "gpu"]  # those are parts of others
OLDEST = "1.30"
"""Kubernetes as of which a pod may wait before its SIGTERM without a program for it."""
NOBODY = ("--url", "127.0.0.1:9")
"""Nothing listens there."""
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs Debian's package kubernetes-client")


def built(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Kind and name -> resource of an overlay. Raises CalledProcessError and ValidationError."""
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}
    for resource in found.values():
        for version in (OLDEST, latest_version()):
            validate(resource, version, strict=True)
    return found


@pytest.fixture(scope="module")
def overlays() -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
    return {str(folder.relative_to(KUBERNETES / "overlays")): built(folder) for folder in BUILT}


@pytest.fixture(scope="module")
def single(overlays):
    return overlays["rtx-single"]


def pod(resources: dict[tuple[str, str], dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return resources[kind, name]["spec"]["template"]["spec"]


def pods(overlays) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{overlay} {name}", pod(resources, kind, name))
        for overlay, resources in overlays.items()
        for kind, name in resources
        if kind in ("Deployment", "Job")
    ]


def settings(resources) -> dict[str, str]:
    (found,) = (
        one["data"] for (kind, name), one in resources.items() if (kind, name[:9]) == ("ConfigMap", "settings-")
    )
    return found


def test_every_overlay_builds_and_is_valid(overlays):
    assert set(overlays) >= {"rtx-single", "rtx-single/plans", "pool", "pool/plans", "mig", "mig/plans", "edge"}
    assert {
        one["metadata"].get("namespace", "sam3") for resources in overlays.values() for one in resources.values()
    } == {"sam3"}


@pytest.mark.parametrize(
    ("file", "good", "bad"),
    [
        pytest.param("rtx-single/kustomization.yaml", "../../base", "../../bass", id="a base that is not there"),
        pytest.param(
            "mig/gpu/kustomization.yaml", "nvidia.com~1gpu", "amd.com~1gpu", id="takes away what is not there"
        ),
        pytest.param("mig/kustomization.yaml", "name: settings", "name: setings", id="changes settings of no name"),
        pytest.param("rtx-single/gpu/kustomization.yaml", "nodeSelector", "nodeSelektor", id="a field that pods lack"),
        pytest.param("pool/kustomization.yaml", "maxSkew: 1", "maxSkew: one", id="a word for a number"),
        pytest.param("pool/kustomization.yaml", "topologyKey: ", "key: ", id="a field that is missing"),
    ],
)
def test_bad_overlays_fail(tmp_path, file, good, bad):
    copied = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    changed = copied / "overlays" / file
    text = changed.read_text()
    assert good in text
    changed.write_text(text.replace(good, bad))
    with pytest.raises((subprocess.CalledProcessError, ValidationError)):
        built(copied / "overlays" / file.split("/")[0])


# ---- one GPU
def test_every_pod_has_one_gpu_and_is_where_its_plans_were_built(overlays):
    for name in ("rtx-single", "pool", "mig"):
        server, job = pod(overlays[name], "Deployment", "server"), pod(overlays[f"{name}/plans"], "Job", "build")
        assert server["nodeSelector"] == job["nodeSelector"]
        assert server["nodeSelector"]["nvidia.com/gpu.product"]
        gpus = [
            {k: v for k, v in one["containers"][0]["resources"]["limits"].items() if k.startswith("nvidia.com/")}
            for one in (server, job)
        ]
        assert gpus[0] == gpus[1]
        assert list(gpus[0].values()) == ["1"]
    assert all("mig-" in key for key in gpus[0])


def test_a_rollout_needs_no_second_gpu(single):
    strategy = single["Deployment", "server"]["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}
    assert single["PodDisruptionBudget", "server"]["spec"]["maxUnavailable"] == 1


def test_plans_are_read_from_the_volume_that_the_job_writes(overlays):
    for name in ("rtx-single", "pool", "mig"):
        claim = overlays[f"{name}/plans"]["PersistentVolumeClaim", "models"]
        server, job = pod(overlays[name], "Deployment", "server"), pod(overlays[f"{name}/plans"], "Job", "build")
        for one in (server, job):
            assert {"claimName": claim["metadata"]["name"]}.items() <= one["volumes"][0][
                "persistentVolumeClaim"
            ].items()
        places = [one["containers"][0]["volumeMounts"][0]["mountPath"] for one in (server, job)]
        assert f"--model-repository={places[0]}" in server["containers"][0]["args"]
        assert f"--repository={places[1]}" in job["containers"][0]["args"]
        assert claim["spec"]["accessModes"] == ["ReadWriteMany" if name == "pool" else "ReadWriteOnce"]


# ---- what is in the images
def test_images_are_those_that_compose_builds(overlays):
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    built_here = {
        f"registry.example.com/{COMPOSE['services'][name]['image']}:{version[1]}" for name in ("server", "build")
    }
    used = {one["containers"][0]["image"] for _, one in pods(overlays)}
    assert used == built_here | {COMPOSE["services"]["edge"]["image"]}


def test_the_server_starts_as_with_compose(single):
    (server,) = pod(single, "Deployment", "server")["containers"]
    told = settings(single)
    compose = [re.sub(r"\$\{(\w+):-\w*\}", r"$(\1)", word) for word in SERVER["command"]]
    assert server["args"] == compose
    assert set(told) == {*SERVER["environment"], "SAM3_CUDA_POOL_BYTES"}
    expanded = [re.sub(r"\$\((\w+)\)", lambda match: told[match[1]], word) for word in server["args"]]
    assert not any("$" in word for word in expanded)
    assert stated_pool_mb(expanded) == 2560
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    assert re.search(rf"^EXPOSE {' '.join(map(str, ports.values()))}$", DOCKERFILE, re.MULTILINE)


def test_the_job_exports_as_with_compose(overlays):
    for name in ("rtx-single", "pool", "mig"):
        (job,) = pod(overlays[f"{name}/plans"], "Job", "build")["containers"]
        asked = build_parser().parse_args(job["args"])
        compose = build_parser().parse_args(COMPOSE["services"]["build"]["entrypoint"][3:])
        for option in ("engine", "timing_cache", "staging", "repository", "checkpoint"):
            assert getattr(asked, option) == getattr(compose, option)
        assert all(resolution % 14 == 0 for resolution in asked.resolution)
        mounted = [mount["mountPath"] for mount in job["volumeMounts"]]
        for path in (asked.timing_cache, asked.staging, asked.repository):
            assert any(Path(path).is_relative_to(place) for place in mounted)
    assert re.search(r'^ENTRYPOINT \["python3", "-m", "export.cli"\]$', DOCKERFILE, re.MULTILINE)


def test_the_edge_finds_its_files_and_its_servers(overlays):
    """The very file of deploy/, which asks `server` and reads `deploy/secrets` from the working directory."""
    edge = pod(overlays["edge"], "Deployment", "edge")
    (envoy,) = edge["containers"]
    text = (ROOT / "deploy" / "edge.yaml").read_text()
    mounts = {mount["mountPath"]: mount["name"] for mount in envoy["volumeMounts"]}
    (config,) = (word for word in envoy["args"] if word.endswith(".yaml"))
    assert str(Path(envoy["workingDir"], config).parent) in mounts
    for name in re.findall(r"(?:filename|path): (deploy/\S+?)[},]", text):
        assert str(Path(envoy["workingDir"], name).parent) in mounts, name
    service = overlays["edge"]["Service", "server"]["spec"]
    asked = set(re.findall(r"address: (\w+), port_value: (\d+)", text))
    assert {("server", str(port["port"])) for port in service["ports"] if port["name"] != "metrics"} <= asked
    assert service["clusterIP"] == "None"
    assert re.search(rf"port_value: {envoy['ports'][0]['containerPort']}\b", text)
    assert COMPOSE["services"]["edge"]["entrypoint"] == envoy["command"]


def test_a_video_behind_the_edge_stays_with_one_of_several_servers():
    static = yaml.safe_load((ROOT / "deploy" / "edge.yaml").read_text())["static_resources"]
    (chain,) = static["listeners"][0]["filter_chains"]
    (hosts,) = (f["typed_config"]["route_config"]["virtual_hosts"] for f in chain["filters"])
    forwarding = [route["route"] for route in hosts[0]["routes"] if "route" in route]
    assert {route["cluster"] for route in forwarding} == {cluster["name"] for cluster in static["clusters"]}
    assert all(route["hash_policy"] == [{"header": {"header_name": SESSION_HEADER}}] for route in forwarding)
    assert all(cluster["lb_policy"] == "MAGLEV" for cluster in static["clusters"])


# ---- rights
def test_no_pod_has_rights_or_writes_into_its_image(overlays):
    uid = re.search(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert uid
    for name, spec in pods(overlays):
        assert spec["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": int(uid[1])}.items(), name
        assert spec["automountServiceAccountToken"] is False, name
        for one in spec["containers"]:
            rights = one["securityContext"]
            assert rights["capabilities"] == {"drop": ["ALL"]}, name
            assert (rights["readOnlyRootFilesystem"], rights["allowPrivilegeEscalation"]) == (True, False), name
        assert not any(key in spec for key in ("hostNetwork", "hostPID", "hostIPC")), name
        assert not any("hostPath" in volume for volume in spec["volumes"]), name


def test_who_reaches_whom(single):
    policy = single["NetworkPolicy", "server"]["spec"]
    clients, monitoring = policy["ingress"]
    assert [port["port"] for port in clients["ports"]] == ["http", "grpc"]
    assert all(peer["podSelector"]["matchLabels"] == {"sam3-client": "true"} for peer in clients["from"])
    assert [port["port"] for port in monitoring["ports"]] == ["metrics"]
    assert monitoring["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert policy["egress"] == []
    assert single["NetworkPolicy", "default-deny"]["spec"]["podSelector"] == {}


def test_selectors_and_ports_meet_pods(overlays):
    for resources in overlays.values():
        templates = [one["spec"]["template"] for (kind, _), one in resources.items() if kind in ("Deployment", "Job")]
        labelled = [template["metadata"]["labels"] for template in templates]
        names = {port["name"] for t in templates for c in t["spec"]["containers"] for port in c.get("ports", ())}
        for (kind, name), one in resources.items():
            spec = one.get("spec", {})
            if kind == "Service":
                assert any(spec["selector"].items() <= labels.items() for labels in labelled), name
                assert {port["targetPort"] for port in spec["ports"]} <= names
            elif kind in ("PodDisruptionBudget", "NetworkPolicy"):
                wanted = spec.get("selector", spec.get("podSelector")).get("matchLabels", {})
                assert any(wanted.items() <= labels.items() for labels in labelled), name


# ---- from start to end
def test_there_is_time_for_an_end_in_order(single):
    spec = pod(single, "Deployment", "server")
    (server,) = spec["containers"]
    (unloading,) = (int(word.split("=")[1]) for word in server["args"] if word.startswith("--exit-timeout-secs="))
    before = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before + float(settings(single)[container.DRAIN]) + unloading < spec["terminationGracePeriodSeconds"]


def test_probes_have_the_time_that_they_take(single):
    (server,) = pod(single, "Deployment", "server")["containers"]
    for name, question in (("startupProbe", "ready"), ("readinessProbe", "ready"), ("livenessProbe", "alive")):
        assert server[name]["exec"]["command"] == ["python3", "-m", probe.__name__, question]
        assert server[name]["timeoutSeconds"] > probe.SECONDS[question]
    assert probe.SECONDS["alive"] > SILENCE_S
    assert server["livenessProbe"]["failureThreshold"] >= PATIENCE


@pytest.mark.server
@pytest.mark.parametrize("name", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_ask_the_server(single, server, name):
    """The very command, of the embedded server: on the ports of the container there is none."""
    _, *words = pod(single, "Deployment", "server")["containers"][0][name]["exec"]["command"]
    urls = ["--url", server.http_url, "--metrics-url", server.metrics_url]
    asked = [
        subprocess.run([sys.executable, *words, *more], cwd=ROOT, check=False).returncode for more in (urls, NOBODY)
    ]
    assert asked == [0, 1]
