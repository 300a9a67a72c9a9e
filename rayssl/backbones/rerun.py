"""Running layers a second time, in the backward pass, as they ran the first time."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

Halves = tuple[Tensor, Tensor]
Tensors = tuple[Tensor, ...]


class Rerun:
    """Runs a unit's functions again, one graph alive at a time, and gathers the gradients of its parameters.

    Args:
        unit: The functions' owner.
        wanted: For each of its parameters, in order, whether it asked for a gradient in the forward pass.
    """

    def __init__(self, unit: nn.Module, wanted: Sequence[bool]) -> None:
        self._gradients: dict[nn.Parameter, Tensor | None] = dict.fromkeys(unit.parameters())
        self._wanted = {parameter for parameter, wants in zip(self._gradients, wanted, strict=True) if wants}

    @property
    def gradients(self) -> list[Tensor | None]:
        """By each parameter, in the unit's order."""
        return list(self._gradients.values())

    def differentiate(
        self, function: nn.Module, inputs: Tensors, slopes: Tensors, *, wants_inputs: bool = True
    ) -> tuple[Tensors, Tensors]:
        """Evaluate a function and pull a gradient back through it.

        Args:
            function: The unit, or one of its modules; gives a tensor or a tuple of them.
            inputs: Where to evaluate it.
            slopes: The gradient of the loss by each of its values.
            wants_inputs: Whether the gradients by the inputs are needed.

        Returns:
            The values, and the gradients by the inputs (none if not wanted).
        """
        with torch.enable_grad():
            points = tuple(tensor.detach().requires_grad_(wants_inputs) for tensor in inputs)
            value = function(*points)
        values: Tensors = value if isinstance(value, tuple) else (value,)
        slopes = tuple(slope.to(tensor.dtype) for slope, tensor in zip(slopes, values, strict=True))
        parameters = [parameter for parameter in function.parameters() if parameter in self._wanted]
        variables = (*points, *parameters) if wants_inputs else parameters
        gradients = torch.autograd.grad(values, variables, slopes) if variables else ()
        num_inputs = len(points) if wants_inputs else 0
        for parameter, gradient in zip(parameters, gradients[num_inputs:], strict=True):
            known = self._gradients[parameter]
            self._gradients[parameter] = gradient if known is None else known + gradient
        return tuple(tensor.detach() for tensor in values), gradients[:num_inputs]


@dataclass(frozen=True)
class Conditions:
    """What a unit's forward pass ran under, besides its tensors."""

    device_type: str
    lower_precision: torch.dtype | None
    """Autocast's, or None where it is off."""
    training: tuple[bool, ...]
    """Train (or eval) mode of every module in the unit."""

    @classmethod
    def now(cls, unit: nn.Module, features: Tensor) -> "Conditions":
        """Note the conditions at the moment, for the device of `features`."""
        modes = tuple(module.training for module in unit.modules())
        return cls(features.device.type, _autocast_dtype(features), modes)

    @contextmanager
    def restored(self, unit: nn.Module) -> Iterator[None]:
        """The noted precision and modes, and buffers that may be written to in vain.

        Running statistics must not move a second time. Every buffer is swapped for a copy, and put back
        afterwards: that holds for BatchNorm, SyncBatchNorm and any layer with a forward pass of its own.
        """
        modules = list(unit.modules())
        modes = [module.training for module in modules]
        buffers = [(module, *named) for module in modules for named in module.named_buffers(recurse=False)]
        try:
            for module, mode in zip(modules, self.training, strict=True):
                module.training = mode
            for module, name, buffer in buffers:
                setattr(module, name, buffer.clone())
            with self._autocast():
                yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for module, name, buffer in buffers:
                setattr(module, name, buffer)

    def _autocast(self) -> AbstractContextManager[object]:
        if not torch.amp.is_autocast_available(self.device_type):
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.lower_precision, enabled=self.lower_precision is not None)


def must_not_change(unit: nn.Module) -> list[Tensor]:
    """What a rerun reads from the layers: parameters, and buffers of layers in eval mode.

    A node stores them, though it never reads them back, because autograd then refuses a backward pass after
    any of them was changed in place, as it does for plain layers.
    """
    frozen = [buffer for module in unit.modules() if not module.training for buffer in module.buffers(recurse=False)]
    return [*unit.parameters(), *frozen]


def split(features: Tensor) -> Halves:
    """Give the two halves of the channels, in float32 where autocast had lowered them."""
    is_traced = isinstance(features, fx.Proxy)  # into its portable form, which knows no autocast
    if not is_traced and features.dtype == _autocast_dtype(features):
        features = features.float()
    x1, x2 = features.chunk(2, dim=1)
    if not is_traced and features.is_contiguous(memory_format=torch.channels_last):
        # A view would hold half of each pixel's channels, with gaps: convolutions over it are a third slower.
        x1 = x1.contiguous(memory_format=torch.channels_last)
        x2 = x2.contiguous(memory_format=torch.channels_last)
    return x1, x2


def lowered(features: Tensor) -> Tensor:
    """Give the residual stream as a function reads it: in autocast's precision, where there is one."""
    if isinstance(features, fx.Proxy):
        return features
    dtype = _autocast_dtype(features)
    return features if dtype is None or features.dtype != torch.float32 else features.to(dtype)


def _autocast_dtype(features: Tensor) -> torch.dtype | None:
    device_type = features.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None
