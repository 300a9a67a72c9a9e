"""Where an encoder comes from: a run, one of its checkpoints, a file of weights, torchvision, or nowhere (random)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from rayssl.backbones import AnyBackbone, Backbone, load_weights
from rayssl.config import ExperimentConfig, load_config
from rayssl.errors import CheckpointError, ConfigError
from rayssl.methods import MGTAConfig, PSLConfig
from rayssl.recipe_file import did_you_mean, flatten, to_plain
from rayssl.runs import bring_run, newest_run
from rayssl.storage import StoragePath, local_folder
from rayssl.training.checkpoints import load_checkpoint

BACKBONES: dict[str, dict[str, Any]] = {
    "resnet18": {"name": "resnet", "depth": 18},
    "resnet34": {"name": "resnet", "depth": 34},
    "resnet50": {"name": "resnet", "depth": 50},
    "revnet50": {"name": "revnet", "depth": 50},
}
"""Networks that `random:` and `torchvision:` name."""
_HELP = (
    "SOURCE is a run (its folder, id or recipe), a checkpoint (RUN/stage-2), a file of weights (encoder.pt), "
    "torchvision:resnet50 with weights=FILE, or random:resnet50"
)


@dataclass(frozen=True)
class Source:
    """An encoder before it is built: where its weights are, and what its evaluation takes over."""

    name: str
    """What results are filed under: the run's id, the file's or the network's name."""
    run_folder: Path | None = None
    """The run that it belongs to; results go there."""
    weights: Path | None = None
    """A file of weights or a checkpoint's folder; None: random ones, or those that the user names."""
    needs_weights: bool = False
    """Whether the user has to name a file."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """The sections of the run that an evaluation starts from: data, backbone, seed, cluster."""
    part: str = ""
    """Which part of the run it is, such as "stage-2"; "" for its result."""
    paper_row: str | None = None
    """The row of the papers' tables that it belongs to."""


def find_source(text: str, *, storage_path: StoragePath) -> Source:
    """Find what a SOURCE on the command line names. No weights are read.

    Args:
        text: As the user wrote it; for the address of a run what `locate` makes of it.
        storage_path: Folder of all runs, or the object store, where ids are looked for.

    Raises:
        ConfigError: If there is no such thing, or a run is not finished.
        CheckpointError: If a checkpoint is damaged.
    """
    kind, colon, network = text.partition(":")
    if colon and kind in ("random", "torchvision"):
        return _named_network(kind, network)
    bring_run(text, storage_path=storage_path)
    folder = local_folder(storage_path).expanduser()
    for path in (Path(text).expanduser(), folder / text):
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            return _file(path)
    if newest := newest_run(text, storage_path=folder):
        return _folder(newest.path)
    names = [*_run_ids(folder), *(f"{kind}:{name}" for kind, name in _named_networks())]
    raise ConfigError(f"source '{text}': unknown.{did_you_mean(text, names)} {_HELP}")


def load_encoder(backbone: AnyBackbone, weights: Path | None, *, seed: int) -> Backbone:
    """Build an encoder and fill it; without weights the seed decides them.

    Args:
        backbone: The network.
        weights: A file, or the folder of a checkpoint.
        seed: For random weights.

    Raises:
        CheckpointError: If the weights can't be read, or are another network's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = backbone.build().to(memory_format=torch.channels_last)
    if weights is None:
        return encoder
    if not weights.is_dir():
        load_weights(encoder, weights)
        return encoder
    try:
        encoder.load_state_dict(load_checkpoint(weights).backbone)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{weights}: holds the weights of another network than backbone ({reason}).") from None
    return encoder


def _named_networks() -> Iterator[tuple[str, str]]:
    for name in BACKBONES:
        yield "random", name
        if name != "revnet50":
            yield "torchvision", name


def _named_network(kind: str, network: str) -> Source:
    names = [name for known, name in _named_networks() if known == kind]
    if network not in names:
        raise ConfigError(
            f"source '{kind}:{network}': unknown.{did_you_mean(network, names)} There are: "
            f"{', '.join(f'{kind}:{name}' for name in names)}"
        )
    return Source(
        f"{kind}-{network}",
        needs_weights=kind == "torchvision",
        defaults={"backbone": BACKBONES[network]},
        paper_row="Random" if kind == "random" else "Supervised",
    )


def _folder(path: Path) -> Source:
    if (path / "checkpoint.json").is_file():
        return _checkpoint(path)
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"source '{path}': is neither a run, config.yaml is missing, nor a checkpoint. {_HELP}")
    if not (path / "encoder.pt").is_file():
        stages = sorted(each.name for each in path.glob("stage-*") if (each / "checkpoint.json").is_file())
        there = f" There are its checkpoints: {', '.join(str(path / name) for name in stages)}" if stages else ""
        raise ConfigError(f"source '{path}': the run is not finished, it has no encoder.pt.{there}")
    config = load_config(path / "config.yaml")
    return _of_run(path, config, path / "encoder.pt")


def _checkpoint(path: Path) -> Source:
    run_folder = path.resolve().parent
    if (run_folder / "config.yaml").is_file():
        return _of_run(run_folder, load_config(run_folder / "config.yaml"), path, part=path.resolve().name)
    content = load_checkpoint(path).config
    defaults = {key: content[key] for key in ("data", "backbone", "seed") if key in content}
    return Source(path.resolve().name, weights=path.resolve(), defaults=defaults)


def _file(path: Path) -> Source:
    if (path.parent / "config.yaml").is_file() and path.name == "encoder.pt":
        return _of_run(path.parent, load_config(path.parent / "config.yaml"), path)
    return Source(path.stem, weights=path.resolve())


def _of_run(run_folder: Path, config: ExperimentConfig, weights: Path, part: str = "") -> Source:
    sections = to_plain(config)
    return Source(
        run_folder.resolve().name,
        run_folder=run_folder.resolve(),
        weights=weights.resolve(),
        defaults={key: sections[key] for key in ("data", "backbone", "seed", "cluster")},
        part=part,
        paper_row=None if part else paper_row(config),
    )


def paper_row(config: ExperimentConfig) -> str | None:
    """The row of the papers' tables that a recipe reproduces in kind, such as "Jigsaw+PSL"; None if there is none."""
    method = config.method
    if isinstance(method, MGTAConfig):
        return f"MGTA (k={method.clusters})" if method.clusters in (100, 300) else None
    assert isinstance(method, PSLConfig)
    task = {"jigsaw": "Jigsaw", "rotation": "Rotation", "simclr": "SimCLR", "moco": "MoCov2"}.get(method.task.name)
    if task is None:
        is_revnet = config.backbone.name == "revnet"
        return f"Supervised{' (RevNet-50)' if is_revnet else ''}" if method.task.name == "supervised" else None
    stages = [stage.blocks for stage in method.stages]
    if len(stages) == 1:
        return task
    if any(not set(one) & set(other) for one, other in pairwise(stages)):
        return None  # greedy: in no table
    levels = {str(sorted(flatten(stage.level).items())) for stage in method.stages}
    if len(levels) == 1:
        return f"{task}+SL"
    return f"{task}+PSL_f" if method.gradient == "full" else f"{task}+PSL"


def _run_ids(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/config.yaml"))
