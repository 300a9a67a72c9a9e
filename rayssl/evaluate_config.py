"""EvaluateConfig: all that decides the result of `rayssl evaluate`, built from the source and dotted overrides."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from rayssl.backbones import AnyBackbone
from rayssl.config import AnyStoragePath, ClusterConfig
from rayssl.data import AnyData
from rayssl.errors import ConfigError
from rayssl.evaluation import AnyEvaluation
from rayssl.evaluation.feature_store import KEPT_GIB
from rayssl.recipe_file import load_recipe_text
from rayssl.runs import locate
from rayssl.schema import Config
from rayssl.sources import Source, find_source
from rayssl.storage import local_folder, parse_storage_path

_MAYBE_WITHOUT_TEST = ("folder", "npz")
"""Data sets that may have no test pictures of their own, so that some are held out."""


class EvaluateConfig(Config):
    """A whole evaluation."""

    data: AnyData
    """The pictures; those of the run if it is not said."""
    backbone: AnyBackbone
    """The encoder."""
    weights: Path | None = None
    """File of its weights, or a checkpoint's folder; None: random ones."""
    evaluation: AnyEvaluation
    """The protocol and its settings."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides splits, order, subsets, and the weights of a random network."""
    seeds: int = Field(default=1, ge=1)
    """Repetitions with other seeds; their mean and deviation are given."""
    sanity: bool = False
    """Whether to measure once more with shuffled labels, which must give chance."""
    keep_features_gib: float = Field(default=KEPT_GIB, ge=0)
    """Features of whole sets that stay in evaluations/.features beside the results, so that the next protocol or call
    on the same encoder and pictures finds them; after each call the ones not used for longest are deleted down to this
    size. In GiB; 0 keeps none."""
    cluster: ClusterConfig = ClusterConfig(workers=0)
    """Where it runs: the run's workers if it is not said, or this process."""
    storage_path: AnyStoragePath = Path("runs")
    """Folder of all runs, or object store, where ids are looked for and the results of other sources go."""

    @property
    def storage_folder(self) -> Path:
        """That folder on this machine; of an object store the working copy."""
        return local_folder(self.storage_path)

    @property
    def fingerprint(self) -> str:
        """Eight hex digits, shared by configs that agree in all that decides the result."""
        not_decisive = {"storage_path", "cluster", "keep_features_gib"}
        resolved: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude=not_decisive)
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:8]


def load_evaluation(
    source: str, protocol: str, overrides: Sequence[str] = ()
) -> tuple[EvaluateConfig, Source, list[str]]:
    """Build the config of an evaluation: the source's own settings, the protocol's defaults, then the overrides.

    Args:
        source: As on the command line; see `find_source`.
        protocol: Name of the evaluation.
        overrides: Such as "data.name=voc2007"; a data set with another name than the source's replaces that section.

    Returns:
        The config, the source, and notes for the user.

    Raises:
        ConfigError: If the source is unknown, or with all mistakes of the settings.
    """
    storage_path = parse_storage_path(
        _value_of("storage_path", overrides) or str(EvaluateConfig.model_fields["storage_path"].default)
    )
    name, storage_path = locate(source, storage_path=storage_path)
    found = find_source(name, storage_path=storage_path)
    sections: dict[str, Any] = json.loads(json.dumps(found.defaults))
    sections["evaluation"] = {"name": protocol}
    sections["storage_path"] = str(storage_path)
    if found.weights is not None:
        sections["weights"] = str(found.weights)
    notes = _replace_data(sections, overrides)
    try:
        config, more_notes = load_recipe_text(
            EvaluateConfig, yaml.safe_dump(sections, sort_keys=False), source=f"evaluate {source}", overrides=overrides
        )
    except ConfigError as error:
        raise ConfigError(f"{error}{_help(sections, overrides)}") from None
    if found.needs_weights and config.weights is None:
        raise ConfigError(
            f"weights: is required: {source} needs a file of torchvision's weights, such as weights=resnet50.pth "
            "(nothing is downloaded). A network without training is random:" + source.partition(":")[2]
        )
    return config, found, [*notes, *more_notes]


def _replace_data(sections: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Drop the source's data section if another set is named: its root, limit and sizes were chosen for the old one."""
    name = _value_of("data.name", overrides)
    old = sections.get("data")
    if name is None or (old is not None and old["name"] == name):
        return []
    sections["data"] = {"name": name}
    if name not in _MAYBE_WITHOUT_TEST or _value_of("data.test_root", overrides) is not None:
        sections["data"]["validation_fraction"] = 0.0
    if old is None:
        return []
    return [
        f"data: {name} replaces the run's {old['name']}; views are the new set's, not {old['image_size']} px "
        f"(data.image_size={old['image_size']} keeps them)"
    ]


def _help(sections: dict[str, Any], overrides: Sequence[str]) -> str:
    said = [key for key in ("data", "backbone") if key in sections or any(o.startswith(key) for o in overrides)]
    helps = {
        "data": "The source says nothing of pictures. Name them, such as: data.name=voc2007 data.root=DIR",
        "backbone": "The file says nothing of its network. Name it, such as: backbone.name=resnet backbone.depth=50",
    }
    return "".join(f"\n{text}" for key, text in helps.items() if key not in said)


def _value_of(key: str, overrides: Sequence[str]) -> str | None:
    """The last value that an override gives to a key, as text."""
    values = [text.partition("=")[2].strip() for text in overrides if text.partition("=")[0].strip() == key]
    return values[-1] if values else None
