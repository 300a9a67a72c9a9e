"""The machine itself: libraries, GPUs, shared memory and limits."""

import os
import resource
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rayssl import __version__
from rayssl.doctor.finding import Finding

_LIBRARIES = ("torch", "torchvision", "ray", "mlflow", "scikit-learn", "numpy", "pydantic", "pyarrow", "matplotlib")
_LEAST_SHARED_GIB = 1.0
_LEAST_FILES = 4096
_LEAST_PROCESSES = 4096
_ENOUGH = 65536
_DEVICES = Path("/dev")
_SHARED = Path("/dev/shm")
_CGROUP_PROCESSES = Path("/sys/fs/cgroup/pids.max")


def python() -> Finding:
    """The interpreter."""
    return Finding("python", True, f"{sys.version.split()[0]}, {sys.executable}")


def libraries() -> Finding:
    """What is installed, and what is missing."""
    found, missing = [f"rayssl {__version__}"], []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("libraries", False, f"missing: {', '.join(missing)}. Install them: pip install -e .")
    return Finding("libraries", True, ", ".join(found))


def gpus() -> Finding:
    """The GPUs that torch can use, each tried, beside those that the machine has."""
    try:
        import torch
    except OSError as error:  # a shared library of CUDA that is missing
        return Finding("gpus", False, f"torch can't be imported ({error}). Install it anew.")
    here = nvidia_gpus()
    with warnings.catch_warnings(record=True) as told:  # the reason why it has none
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available and here == 0:
        return Finding("gpus", True, f"none; {os.cpu_count()} CPU cores (cluster.gpus_per_worker must be 0)")
    if not available:
        return Finding("gpus", False, f"{here or 'an unknown number of'} NVIDIA GPUs, but {_why_unused(told)}")
    names = []
    for index in range(torch.cuda.device_count()):
        names.append(torch.cuda.get_device_name(index))
        try:
            works = torch.ones(2, device=f"cuda:{index}").sum().item() == 2
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            return Finding(
                "gpus",
                False,
                f"{names[-1]} (number {index}) can't compute ({reason}). torch {torch.__version__} is for CUDA "
                f"{torch.version.cuda}: install a build that knows this GPU, or look at it with nvidia-smi",
            )
        if not works:
            return Finding("gpus", False, f"{names[-1]} (number {index}) computes 1 + 1 wrongly. Take it out of use.")
    more = f"; the machine has {here}" if here is not None and here > len(names) else ""
    return Finding("gpus", True, f"{', '.join(names)}, CUDA {torch.version.cuda}{more}")


def nvidia_gpus() -> int | None:
    """How many the machine has, whether or not torch can use them; None if nvidia-smi fails."""
    devices = sum(path.name.removeprefix("nvidia").isdigit() for path in _DEVICES.glob("nvidia*"))
    command = shutil.which("nvidia-smi")
    if devices or command is None:
        return devices
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else None


def _why_unused(told: list[warnings.WarningMessage]) -> str:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for CPUs alone. Install its build for CUDA"
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible} hides them from torch. Unset it, or list their numbers in it"
    reason = str(told[0].message).strip().splitlines()[0].rstrip(".") if told else "it does not say why"
    return (
        f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, can't use them ({reason}). nvidia-smi names "
        "the newest CUDA that the driver knows: update the driver, or install an older build of torch; a "
        "container needs --gpus all"
    )


def shared_memory() -> Finding:
    """Room in /dev/shm, through which loaders and Ray hand over pictures."""
    name, way_out = "shared memory", "start the container with --shm-size=8g (Kubernetes: an emptyDir of medium Memory)"
    try:
        usage = shutil.disk_usage(_SHARED)
    except OSError:
        return Finding(name, False, f"there is no {_SHARED}, which loaders of pictures need; {way_out}")
    total, free = usage.total / 2**30, usage.free / 2**30
    if total < _LEAST_SHARED_GIB:
        return Finding(name, False, f"{_SHARED} has {total:.2f} GiB; {way_out}")
    if not os.access(_SHARED, os.W_OK):
        return Finding(name, False, f"{_SHARED} can't be written; its mode must be 1777")
    if free < _LEAST_SHARED_GIB:
        return Finding(
            name, False, f"{_SHARED} has {free:.2f} of {total:.0f} GiB free; delete what dead processes left there"
        )
    return Finding(name, True, f"{_SHARED} has {free:.0f} of {total:.0f} GiB free")


def open_files() -> Finding:
    """How many files a process may have open."""
    way_out = "ulimit -n {} (a container: --ulimit nofile={})"
    return _limit("open files", resource.RLIMIT_NOFILE, _LEAST_FILES, way_out)


def processes() -> Finding:
    """How many processes and threads the user, or the container, may have."""
    finding = _limit(
        "processes", resource.RLIMIT_NPROC, _LEAST_PROCESSES, "ulimit -u {} (a container: --ulimit nproc={})"
    )
    try:
        most = int(_CGROUP_PROCESSES.read_text())
    except (OSError, ValueError):  # no such limit, or "max"
        return finding
    if finding.ok and most < _LEAST_PROCESSES:
        return Finding(
            "processes",
            False,
            f"the container may have {most}; Ray wants {_LEAST_PROCESSES} or more: start it with "
            f"--pids-limit={_ENOUGH} (Kubernetes: podPidsLimit of the kubelet)",
        )
    return finding


def locked_memory() -> Finding:
    """How much memory can be locked, which counts where GPUs talk over InfiniBand."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding("locked memory", True, "unlimited")
    amount = f"at most {soft / 2**20:,.0f} MiB"
    if (_DEVICES / "infiniband").exists():
        return Finding(
            "locked memory",
            False,
            f"{amount}; NCCL over InfiniBand wants it unlimited: ulimit -l unlimited (a container: --ulimit "
            "memlock=-1)",
        )
    return Finding("locked memory", True, f"{amount}, which is enough without InfiniBand")


def _limit(name: str, kind: int, least: int, way_out: str) -> Finding:
    soft, hard = resource.getrlimit(kind)
    if soft == resource.RLIM_INFINITY:
        return Finding(name, True, "unlimited")
    if soft >= least:
        return Finding(name, True, f"at most {soft}")
    to = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if to < least:
        return Finding(
            name,
            False,
            f"at most {soft}, and the hard limit is {hard}; Ray wants {least} or more: let root raise it, "
            f"{way_out.format(_ENOUGH, _ENOUGH)}",
        )
    return Finding(name, False, f"at most {soft}; Ray wants {least} or more: {way_out.format(to, to)}")
