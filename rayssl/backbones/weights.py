"""Weights from a file into a backbone: torchvision's, `encoder.pt` of a run, and checkpoints that wrap either."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rayssl.backbones.base import Backbone
from rayssl.errors import CheckpointError

_CLASSIFIERS = ("fc.", "classifier.", "head.")
_WRAPPERS = ("state_dict", "model", "backbone", "encoder")
_PREFIXES = ("module.", "backbone.", "encoder.")
_SHOWN = 3


def load_weights(backbone: Backbone, file: Path) -> None:
    """Fill a backbone from a file of weights with torchvision's key names; a classifier in it is left out.

    Args:
        backbone: The network to fill.
        file: What torch.save wrote: a state dict, or a dictionary that holds one as "state_dict", "model" or
            "backbone". Prefixes such as "module." are dropped. Only tensors and plain containers are read.

    Raises:
        CheckpointError: If the file is missing, unreadable or holds the weights of another network.
    """
    weights = _without_prefix(_state_dict(file))
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(_CLASSIFIERS)}
    expected = backbone.state_dict()
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    surplus = [name for name in weights if name not in expected]
    wrong = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in weights.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems = [
        f"{what}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        for what, names in (("missing", missing), ("unknown", surplus), ("of another size", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{file}: holds the weights of another network than the recipe's backbone ({'; '.join(problems)}). Set "
            "backbone to the network that the file is from."
        )
    backbone.load_state_dict(weights, strict=False)  # files of old torch lack num_batches_tracked


def _state_dict(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file.expanduser(), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: does not exist. Give a file of weights, such as a run's encoder.pt.") from None
    except pickle.UnpicklingError:  # torch's own message advises to switch the protection off
        raise CheckpointError(
            f"{file}: holds something other than tensors, which could run code when it is read, or is no file of "
            "weights. Save the network's state_dict() alone."
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{file}: can't be read ({reason}). Give a file of weights that torch.save wrote."
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{file}: must hold a network's state_dict(), names and tensors.")
    return dict(content)


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefixes that wrappers put before all names."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights
