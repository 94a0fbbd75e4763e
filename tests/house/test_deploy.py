"""docker/: what can be known of images, manifests and scripts where no engine runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from importlib.metadata import requires
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pad_pipeline import __version__
from tests.conftest import ROOT

DOCKER = ROOT / "docker"
MANIFESTS = sorted(DOCKER.glob("kubernetes/*.yaml"))
COMPOSE = [DOCKER / "compose.yaml", DOCKER / "compose.gpu.yaml"]
TEXTS = [path for path in sorted(DOCKER.rglob("*")) if path.is_file()]
IMAGES = {"cuda": f"pad:{__version__}", "cpu": f"pad:{__version__}-cpu"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in (ROOT / "constraints.txt").read_text().split())
}


class Stage(NamedTuple):
    """One FROM of a Dockerfile, and what follows it."""

    base: str
    instructions: list[tuple[str, str]]


def read_dockerfile() -> dict[str, Stage]:
    """The stages by name, ARGs before the first FROM filled in."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    outer: dict[str, str] = {}
    here: list[tuple[str, str]] = []
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word == "ARG" and not stages:
            name, _, value = rest.partition("=")
            outer[name] = value
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            here = []
            stages[name] = Stage(re.sub(r"\$\{(\w+)\}", lambda found: outer[found[1]], base), here)
        else:
            here.append((word, " ".join(rest.split())))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[tuple[str, str]]:
    """The instructions of a stage behind those of the stages it stands on."""
    stage = stages[name]
    return [*(lineage(stages, stage.base) if stage.base in stages else []), *stage.instructions]


STAGES = read_dockerfile()


def test_images_are_pinned_not_root_and_say_whether_they_are_well() -> None:
    """A floating base, root in the last stage, a health check that only one of the two images has."""
    assert list(STAGES)[-1] == "cuda"  # what `docker build` without --target makes
    for name, stage in STAGES.items():
        if stage.base not in STAGES:
            found = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-[a-z]+", stage.base)
            assert found, f"{stage.base} floats"
            assert Version(found[1]) in Requirement(f"python{PROJECT['requires-python']}").specifier
        assert "ADD" not in dict(stage.instructions), name
    for image in IMAGES:
        instructions = lineage(STAGES, image)
        users = [value for word, value in instructions if word == "USER"]
        assert users and int(users[-1]) > 0, f"{image}: a name, or root"
        assert f"--uid {users[-1]} " in dict(STAGES["runtime"].instructions)["RUN"]
        (health,) = [value for word, value in instructions if word == "HEALTHCHECK"]
        assert "pad --version" in health and "nvidia-smi" in health
        assert dict(instructions)["ENTRYPOINT"] == '["pad"]'


def test_images_hold_pyprojects_extras_at_the_versions_of_constraints() -> None:
    """An extra without pins, an install that leaves constraints.txt out, CUDA's torch in the CPU image."""
    installs = {name: [v for w, v in lineage(STAGES, name) if w == "RUN" and "pip install" in v] for name in STAGES}
    environment = " ".join(value for word, value in STAGES["builder"].instructions if word == "ENV")
    assert "PIP_CONSTRAINT=/src/constraints.txt" in environment
    first, *rest = installs["cpu-builder"]
    assert {"torch", "torchvision", "--no-deps"} <= set(
        first.split()
    ) and '${TORCH_CPU:+--index-url "$TORCH_CPU"}' in first
    assert installs["cuda-builder"] == rest, "the images differ by more than torch"
    (extras,) = {tuple(re.findall(r"\.\[([\w,]+)\]", " ".join(rest)))}
    wanted = list(PROJECT["dependencies"])
    for extra in extras[0].split(","):
        wanted += PROJECT["optional-dependencies"][extra]
    for text in requires("ray") or []:  # what ray[default] brings, and a bare ray in the tests' environment lacks
        marker = Requirement(text).marker
        if marker and "extra" in str(marker) and marker.evaluate({"extra": "default"}):
            wanted.append(text)
    missing = {name for text in wanted if (name := canonicalize_name(Requirement(text).name)) not in PINS}
    assert not missing, f"constraints.txt has no version of {missing}"
    assert any("ray[default]" in text for text in wanted), "KubeRay asks the dashboard, which a bare ray has not"


def test_what_is_copied_is_there_and_is_sent_to_the_engine() -> None:
    """A file that was renamed, or that .dockerignore keeps back: the build would stop after half an hour."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for name, stage in STAGES.items():
        for _, value in (entry for entry in stage.instructions if entry[0] == "COPY"):
            *sources, _ = value.split()
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in STAGES, name
                continue
            for source in sources:
                assert (ROOT / source).exists(), f"{name}: {source}"
                kept = False
                for rule in rules:
                    if fnmatch(source, rule.lstrip("!")) or source.startswith(rule.lstrip("!") + "/"):
                        kept = rule[0] != "!"
                assert not kept, f".dockerignore keeps {source} back"
    packages = {"pad_pipeline", "stages", "workflows"}
    for builder in ("cuda-builder", "cpu-builder"):
        assert packages <= {value.split()[0] for word, value in STAGES[builder].instructions if word == "COPY"}


def test_every_file_names_the_images_that_the_dockerfile_builds() -> None:
    """A new version of pad whose images are still called by the old one's name."""
    header = (DOCKER / "Dockerfile").read_text()
    for target, image in IMAGES.items():
        assert f"--target {target} -t {image} ." in header
    for path in TEXTS:
        for image in re.findall(r"\bpad:[\w.-]+", path.read_text()):
            assert image in IMAGES.values(), f"{path.name}: {image}"


def ray_start_options() -> dict[str, Any]:
    from ray.scripts.scripts import start

    return {option: parameter for parameter in start.params for option in parameter.opts}


def check_ray_start(words: list[str]) -> None:
    """That each is an option of the Ray that constraints.txt pins."""
    options = ray_start_options()
    for word in words:
        name, _, value = word.partition("=")
        assert name in options, f"ray start has no {name}"
        assert bool(value) != bool(options[name].is_flag), word


def test_compose_makes_a_cluster_that_nobody_else_reaches() -> None:
    """A published port, a token with a default, GPUs in the CPU image, an option that this Ray has not."""
    compose, gpu = (yaml.safe_load(path.read_text()) for path in COMPOSE)
    assert set(compose["services"]) == {"head", "worker"} == set(gpu["services"])
    for name, service in compose["services"].items():
        assert service["image"] == IMAGES[service["build"]["target"]]
        assert (COMPOSE[0].parent / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert not {"ports", "network_mode", "privileged"} & service.keys(), name
        assert service["environment"]["RAY_AUTH_MODE"] == "token" and service["cap_drop"] == ["ALL"]
        for text in re.findall(r"\$\{[^}]+\}", str(service)):
            may_be_empty = text == "${TORCH_CPU:-}"  # then PyPI's build is installed
            assert ":?" in text or may_be_empty, f"{text} would be empty in silence"
        assert service["entrypoint"] == ["ray"] and service["command"][0] == "start"
        check_ray_start(service["command"][1:])
        assert service["healthcheck"]["test"][:3] == ["CMD", "ray", "health-check"]
        named = {volume.partition(":")[0] for volume in service["volumes"] if volume[0] != "$"}
        assert named <= compose["volumes"].keys()
    head, worker = compose["services"]["head"], compose["services"]["worker"]
    port = next(word.partition("=")[2] for word in head["command"] if word.startswith("--port="))
    assert f"--address=head:{port}" in worker["command"]
    assert "--include-dashboard=false" in head["command"]
    assert "--block" in head["command"] and "--block" in worker["command"]
    assert worker["depends_on"]["head"]["condition"] == "service_healthy"
    for service in gpu["services"].values():
        assert service["image"] == IMAGES["cuda"] and service["build"]["target"] == "cuda"
    (device,) = gpu["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in gpu["services"]["head"]


def test_compose_reads_its_own_files() -> None:
    """What the checks by hand don't see, where Docker's compose is installed; it needs no engine for that."""
    command = ["docker", "compose"]
    if not shutil.which("docker") or subprocess.run([*command, "version"], capture_output=True).returncode:
        pytest.skip("no docker compose")
    files = [word for path in COMPOSE for word in ("-f", str(path))]
    environment = os.environ | {"PAD_DATA": "/data", "RAY_AUTH_TOKEN": "token"}
    done = subprocess.run([*command, *files, "config"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


CLUSTER_FIELDS = {
    *("rayVersion", "headGroupSpec", "workerGroupSpecs", "authOptions", "enableInTreeAutoscaling"),
    *("autoscalerOptions", "gcsFaultToleranceOptions", "headServiceAnnotations", "suspend", "managedBy"),
}
GROUP_FIELDS = {"rayStartParams", "template", "resources", "labels"}
HEAD_FIELDS = GROUP_FIELDS | {"serviceType", "headService", "enableIngress"}
WORKER_FIELDS = GROUP_FIELDS | {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "numOfHosts",
    "idleTimeoutSeconds",
}
AUTOSCALER_FIELDS = {
    *("version", "idleTimeoutSeconds", "resources", "securityContext", "upscalingMode", "image", "imagePullPolicy"),
    *("env", "envFrom", "volumeMounts"),
}
JOB_FIELDS = {
    *("entrypoint", "rayClusterSpec", "clusterSelector", "submissionMode", "submitterPodTemplate", "submitterConfig"),
    *("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "activeDeadlineSeconds", "runtimeEnvYAML"),
    *("suspend", "metadata", "jobId", "managedBy", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources"),
}


def manifest(path: Path) -> dict[str, Any]:
    (found,) = [one for one in yaml.safe_load_all(path.read_text()) if one["apiVersion"] == "ray.io/v1"]
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_are_what_kuberay_takes(path: Path) -> None:
    """A misspelt field (which a server without validation ignores), a group without what KubeRay requires, another
    version of Ray than the image holds."""
    made = manifest(path)
    assert made["kind"] == {"rayjob": "RayJob", "raycluster": "RayCluster"}[path.stem]
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", made["metadata"]["name"])
    spec = made["spec"]
    if made["kind"] == "RayJob":
        assert spec.keys() <= JOB_FIELDS, spec.keys() - JOB_FIELDS
        assert spec["shutdownAfterJobFinishes"] or not spec["ttlSecondsAfterFinished"]
        assert spec["backoffLimit"] > 0, "a head that dies would end the job"
        spec = spec["rayClusterSpec"]
    assert spec.keys() <= CLUSTER_FIELDS, spec.keys() - CLUSTER_FIELDS
    assert spec["rayVersion"] == PINS["ray"]
    assert spec["enableInTreeAutoscaling"] is True and spec["autoscalerOptions"].keys() <= AUTOSCALER_FIELDS
    assert spec["autoscalerOptions"]["version"] == "v2" and spec["autoscalerOptions"]["idleTimeoutSeconds"] >= 60
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head.keys() <= HEAD_FIELDS and head["rayStartParams"]["num-cpus"] == "0"
    assert len({group["groupName"] for group in workers}) == len(workers) > 0
    for group in workers:
        assert group.keys() <= WORKER_FIELDS, group.keys() - WORKER_FIELDS
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] > 0
        asked = re.findall(r"--workers \d+-(\d+) ", path.read_text())
        assert 0 < max(map(int, asked)) <= group["maxReplicas"], "workers that the autoscaler may not make"
    for group in (head, *workers):
        for name, value in group["rayStartParams"].items():
            assert isinstance(value, str), f"KubeRay takes strings: {name}"
            check_ray_start([f"--{name}" if value == "true" else f"--{name}={value}"])
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"] == f"registry.example.com/{IMAGES['cuda']}"
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            asked, most = container["resources"]["requests"], container["resources"]["limits"]
            assert asked == most and {"cpu", "memory"} <= asked.keys(), "Ray counts the limits"
            assert ("nvidia.com/gpu" in most) == (group is not head)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_keep_the_head_on_nodes_that_stay_and_everything_inside(path: Path) -> None:
    """Workers that pre-emptible nodes repel, a head that one of them gets or that is moved, an autoscaler without the
    token that it needs, ports or rights that nobody asked for."""
    made = manifest(path)
    spec = made["spec"].get("rayClusterSpec", made["spec"])
    assert spec["authOptions"]["mode"] == "token" and spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not {"Ingress", "NodePort", "LoadBalancer", "hostNetwork", "hostPort", "hostPath"} & set(
        re.findall(r"\w+", re.sub(r"#.*", "", path.read_text()))
    )
    head = spec["headGroupSpec"]["template"]["spec"]
    affinity = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = affinity["nodeSelectorTerms"]  # terms are alternatives: with two, one clause would be enough
    refused = {clause["key"] for clause in term["matchExpressions"] if clause["operator"] == "NotIn"}
    assert len(refused) == 4 and "tolerations" not in head
    kept = spec["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert kept == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    beside = spec["autoscalerOptions"]["securityContext"]
    assert not beside["allowPrivilegeEscalation"] and beside["capabilities"] == {"drop": ["ALL"]}
    for group in spec["workerGroupSpecs"]:
        tolerated = {toleration["key"] for toleration in group["template"]["spec"]["tolerations"]}
        assert {"nvidia.com/gpu", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= tolerated
        assert tolerated - {"nvidia.com/gpu"} <= refused, "a taint that the head does not know of"
    for pod in (head, *(group["template"]["spec"] for group in spec["workerGroupSpecs"])):
        # The autoscaler runs beside the head, and asks Kubernetes for workers with the token of the pod.
        assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is (pod is head)
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            (secret,) = [source["secretRef"]["name"] for source in container["envFrom"]]
            assert f"create secret generic {secret} " in path.read_text()
            assert f"create secret generic {secret} " in (DOCKER / "README.md").read_text()
