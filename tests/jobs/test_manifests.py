"""The files under jobs/: against the launcher's own schema, and against what the rest of them says."""

import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from rayssl.config import load_config
from tests.jobs.kubernetes_schemas import mistakes

ROOT = Path(__file__).parent.parent.parent
JOBS = ROOT / "jobs"
HEAD = "spec.rayClusterSpec.headGroupSpec"
WORKERS = "spec.rayClusterSpec.workerGroupSpecs.gpus"


def kuberay() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((JOBS / "kuberay-rayjob.yaml").read_text())
    return loaded


def launcher() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((JOBS / "ray-cluster.yaml").read_text())
    return loaded


def find(manifest: dict[str, Any], place: str) -> dict[str, Any]:
    """The part of a manifest at a dotted place, in which entries of lists go by their number or name."""
    part: Any = manifest
    for step in place.split(".") if place else []:
        if isinstance(part, list) and not step.isdigit():
            part = next(each for each in part if step in (each.get("name"), each.get("groupName")))
        else:
            part = part[int(step) if isinstance(part, list) else step]
    found: dict[str, Any] = part
    return found


def test_the_launcher_file_follows_rays_schema() -> None:
    spec = find_spec("ray")
    assert spec is not None and spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(launcher(), schema)


def test_the_launcher_takes_the_file_for_machines_of_ones_own() -> None:
    """Ray's own preparation of a `local` provider: it refuses what only a cloud has, and counts the machines."""
    from ray.autoscaler._private.local.config import prepare_local

    prepared, is_new = prepare_local(launcher())
    assert is_new
    (machine,) = prepared["available_node_types"].values()
    assert (machine["min_workers"], machine["max_workers"]) == (2, 2)


def test_the_rayjob_has_no_mistake() -> None:
    assert list(mistakes(kuberay())) == []


@pytest.mark.parametrize(
    ("place", "key", "wrong"),
    [
        (WORKERS, "minReplicas", "minReplica"),
        (WORKERS, "rayStartParams", "rayStartParameters"),
        (f"{WORKERS}.template.spec.containers.ray-worker.volumeMounts.memory", "mountPath", "mountpath"),
        (f"{WORKERS}.template.spec.volumes.memory", "emptyDir", "emptydir"),
        (f"{WORKERS}.template.spec.volumes.memory.emptyDir", "sizeLimit", "size"),
        (f"{WORKERS}.template.spec.volumes.shared.persistentVolumeClaim", "claimName", "claim"),
        (f"{WORKERS}.template.spec.containers.ray-worker.resources", "limits", "limit"),
        (f"{HEAD}.template.spec.containers.ray-head.envFrom.0", "secretRef", "secretref"),
        (f"{HEAD}.template.spec.containers.ray-head.ports.dashboard", "containerPort", "port"),
        ("spec", "ttlSecondsAfterFinished", "ttlSecondsAfterFinish"),
        ("spec", "backoffLimit", "backOffLimit"),
        ("spec.rayClusterSpec", "rayVersion", "version"),
    ],
)
def test_a_misspelt_key_is_found(place: str, key: str, wrong: str) -> None:
    manifest = kuberay()
    part = find(manifest, place)
    part[wrong] = part.pop(key)
    assert any(f"'{wrong}' was unexpected" in rule for _, rule in mistakes(manifest))


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (WORKERS, "minReplicas"),
        (WORKERS, "maxReplicas"),
        (WORKERS, "groupName"),
        (WORKERS, "template"),
        (f"{WORKERS}.template.spec", "containers"),
        (f"{WORKERS}.template.spec.containers.ray-worker", "name"),
        (f"{WORKERS}.template.spec.containers.ray-worker.volumeMounts.shared", "mountPath"),
        (f"{HEAD}.template.spec.volumes.shared", "name"),
        ("spec.rayClusterSpec", "headGroupSpec"),
        ("", "metadata"),
    ],
)
def test_a_key_that_is_left_out_is_found(place: str, key: str) -> None:
    manifest = kuberay()
    del find(manifest, place)[key]
    assert f"'{key}' is a required property" in [rule for _, rule in mistakes(manifest)]


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        (WORKERS, "replicas", "1"),
        (WORKERS, "maxReplicas", -1),
        (WORKERS, "workers", None),
        (f"{WORKERS}.template.spec", "terminationGracePeriodSeconds", "60s"),
        (f"{WORKERS}.template.spec", "automountServiceAccountToken", "no"),
        (f"{WORKERS}.template.spec.volumes.memory", "emptyDir", None),
        (f"{WORKERS}.template.spec.containers.ray-worker.resources.limits", "memory", "400 GiB"),
        (f"{HEAD}.rayStartParams", "num-cpus", 0),
        (f"{HEAD}.template.spec.containers.ray-head.ports.dashboard", "containerPort", "8265"),
        ("spec", "shutdownAfterJobFinishes", "yes"),
        ("spec", "activeDeadlineSeconds", 0),
        ("spec", "submissionMode", "JobMode"),
        ("spec", "submitterConfig", {"backoffLimit": "2"}),
        ("spec", "deletionStrategy", {"onSuccess": {"policy": "DeleteCluster"}}),
        ("spec.rayClusterSpec", "authOptions", {"mode": "tokens"}),
        ("", "apiVersion", "ray.io/v2"),
    ],
)
def test_a_value_of_the_wrong_kind_is_found(place: str, key: str, value: object) -> None:
    manifest = kuberay()
    find(manifest, place)[key] = value
    assert any(key in where.split(".") or f"'{key}' was unexpected" in rule for where, rule in mistakes(manifest))


def test_what_else_a_rayjob_may_say_is_no_mistake() -> None:
    manifest = kuberay()
    manifest["spec"] |= {
        "activeDeadlineSeconds": 864000,
        "preRunningDeadlineSeconds": 3600,
        "submissionMode": "K8sJobMode",
        "submitterConfig": {"backoffLimit": 5},
        "entrypointNumCpus": 0.5,
        "deletionStrategy": {
            "deletionRules": [
                {"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED", "ttlSeconds": 60}},
                {"policy": "DeleteCluster", "condition": {"jobDeploymentStatus": "Failed"}},
            ]
        },
        "suspend": False,
        "managedBy": "kueue.x-k8s.io/multikueue",
    }
    manifest["spec"]["rayClusterSpec"] |= {
        "authOptions": {"mode": "token"},
        "networkPolicy": {
            "mode": "DenyAllIngress",
            "workerGroups": [{"groupName": "gpus", "ingressRules": [{"ports": [{"port": 8265}]}]}],
        },
        "gcsFaultToleranceOptions": {"backend": "rocksdb", "storage": {"size": "10Gi"}},
        "autoscalerOptions": {"version": "v2", "resources": {"limits": {"cpu": 1}}},
    }
    find(manifest, f"{WORKERS}.template.spec").update(
        automountServiceAccountToken=False,
        terminationGracePeriodSeconds=120,
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        securityContext={"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 100},
    )
    find(manifest, f"{WORKERS}.template.spec.containers.ray-worker").update(
        lifecycle={"preStop": {"exec": {"command": ["ray", "stop"]}}},
        securityContext={"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    )
    assert list(mistakes(manifest)) == []


def test_every_mount_of_the_rayjob_has_its_volume_and_its_environment_can_be_read() -> None:
    spec = kuberay()["spec"]
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    cluster = spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_the_rayjobs_command_is_one_that_its_workers_can_run() -> None:
    words = kuberay()["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "rayssl", "pretrain"]
    config = load_config(words[4], words[5:])
    (group,) = kuberay()["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    has = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert (
        config.cluster.most_workers * config.cluster.gpus_per_worker == int(has["nvidia.com/gpu"]) * group["replicas"]
    )
    assert config.cluster.most_workers * config.cluster.cpus_per_worker <= int(has["cpu"]) * group["replicas"]
    assert config.storage_folder.is_absolute()


def test_all_files_name_the_ray_that_is_tested() -> None:
    assert f"rayproject/ray:{version('ray')}-" in (JOBS / "Dockerfile").read_text()
    assert kuberay()["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
