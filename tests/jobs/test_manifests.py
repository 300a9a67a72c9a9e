"""The files under jobs/: against the launcher's own schema, and against what the rest of them says."""

import json
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayssl.config import load_config

ROOT = Path(__file__).parent.parent.parent
JOBS = ROOT / "jobs"


def kuberay() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((JOBS / "kuberay-rayjob.yaml").read_text())
    return loaded


def test_the_launcher_file_follows_rays_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    spec = find_spec("ray")
    assert spec is not None and spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((JOBS / "ray-cluster.yaml").read_text()), schema)


def test_the_rayjob_has_what_kuberay_requires() -> None:
    """By the RayJob's definition, ray.io/v1: entrypoint, a head and worker groups, each with a pod template."""
    manifest = kuberay()
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    assert set(spec) <= {
        *("entrypoint", "runtimeEnvYAML", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        "rayClusterSpec",
    }
    cluster = spec["rayClusterSpec"]
    assert set(cluster) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            for amount in (*container["resources"]["requests"].values(), *container["resources"]["limits"].values()):
                assert re.fullmatch(r"\d+(Gi)?", amount)


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
