"""Residual couplings whose backward pass rebuilds activations from outputs instead of storing them.

A unit couples two halves of the channels, y1 = x1 + F(x2) and y2 = x2 + G(y1), and is undone by
x2 = y2 - G(y1) and x1 = y1 - F(x2). A block of units keeps its input and its output, whatever their number.

Source: Gomez et al. 2017 (The Reversible Residual Network), equations 6 to 8 and algorithm 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Halves = tuple[Tensor, Tensor]


class ReversibleBlock(nn.Sequential):
    """Coupled units, run one after another over the two halves of a feature map's channels.

    Reversible, a training step stores the block's input and output alone, and its backward pass runs
    F and G of every unit once more. Gradients, BatchNorm's running statistics and `state_dict()` are those of
    the plain form. Forward hooks on layers inside the block see the rerun too; hooks on the block don't.
    Under autocast the residual stream stays in float32 and only F, G and the shortcuts run in the lower
    precision: halves rounded to bfloat16 could not be rebuilt.

    Args:
        units: The first one may change size and channels (its input is stored); all others must be invertible.
        reversible: False: plain autograd, which stores what every layer needs.

    Raises:
        ValueError: If a unit after the first is not invertible.
    """

    def __init__(self, units: "Sequence[ReversibleUnit]", *, reversible: bool = True) -> None:
        super().__init__(*units)
        for index, unit in enumerate(units):
            if index > 0 and not unit.invertible:
                raise ValueError(f"units.{index}: only the first unit of a block may have shortcuts")
        self.reversible = reversible

    def forward(self, features: Tensor) -> Tensor:
        """Give the map after all units, (N, C', H', W'), from the one before them, (N, C, H, W) with C even."""
        if self.reversible and torch.is_grad_enabled():
            output: Tensor = _RebuildingBlock.apply(self, features, *self.parameters())
            return output
        return self.run_units(features)

    def run_units(self, features: Tensor) -> Tensor:
        """What `forward` computes, by whatever autograd does at the moment."""
        halves = _split(features)
        for unit in self.units:
            halves = unit(*halves)
        return torch.cat(halves, dim=1)

    @property
    def units(self) -> "list[ReversibleUnit]":
        """The units, in order."""
        return [unit for unit in self if isinstance(unit, ReversibleUnit)]


class ReversibleUnit(nn.Module):
    """y1 = S1(x1) + F(x2), y2 = S2(x2) + G(y1), where the shortcuts S1 and S2 are the identity if not given.

    Args:
        f: The residual function F, from x2 to the shape of y1.
        g: The residual function G, from y1 to the shape of y2.
        shortcuts: S1 and S2, for a unit that changes size or channels; it can't be inverted then.
    """

    def __init__(self, f: nn.Module, g: nn.Module, shortcuts: tuple[nn.Module, nn.Module] | None = None) -> None:
        super().__init__()
        self.f = f
        self.g = g
        self.shortcuts = None if shortcuts is None else nn.ModuleList(shortcuts)

    @property
    def invertible(self) -> bool:
        """Whether the outputs determine the inputs."""
        return self.shortcuts is None

    def forward(self, x1: Tensor, x2: Tensor) -> Halves:
        """Give y1 and y2."""
        y1 = self._shortcut(0, x1) + self.f(_lowered(x2))
        y2 = self._shortcut(1, x2) + self.g(_lowered(y1))
        return y1, y2

    def inverse(self, y1: Tensor, y2: Tensor) -> Halves:
        """Give back x1 and x2, exact up to rounding; BatchNorm's running statistics move as in `forward`.

        Raises:
            ValueError: If the unit has shortcuts.
        """
        if not self.invertible:
            raise ValueError("inverse: a unit with shortcuts can't be inverted")
        x2 = y2 - self.g(_lowered(y1))
        x1 = y1 - self.f(_lowered(x2))
        return x1, x2

    def _shortcut(self, half: int, features: Tensor) -> Tensor:
        if self.shortcuts is None:
            return features
        shortcut: Tensor = self.shortcuts[half](_lowered(features))
        return shortcut


class _RebuildingBlock(torch.autograd.Function):
    """A whole block as one node of the graph. Parameters are its inputs, so that their hooks (DDP's) fire as usual."""

    @staticmethod
    def forward(ctx: Any, block: ReversibleBlock, features: Tensor, *parameters: Tensor) -> Tensor:
        ctx.block = block
        ctx.conditions = _Conditions.now(block, features)
        with ctx.conditions.autocast():
            output = block.run_units(features)
        # Nothing but the first two is read back from here. The others make autograd refuse, as it does for any
        # layer, a backward pass after they were changed in place.
        frozen = [buffer for module in block.modules() if not module.training for buffer in module.buffers(False)]
        ctx.save_for_backward(features, output, *parameters, *frozen)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, output = ctx.saved_tensors[:2]
        block: ReversibleBlock = ctx.block
        wants_input, *wanted = ctx.needs_input_grad[1:]
        parameters = list(block.parameters())
        rerun = _Rerun({parameter for parameter, is_wanted in zip(parameters, wanted, strict=True) if is_wanted})
        first, *others = block.units
        with ctx.conditions.restored(block):
            outputs, slopes = _split(output), _split(gradients[0])
            for unit in reversed(others):
                outputs, slopes = rerun.invertible_unit(unit, outputs, slopes)
            slope = rerun.first_unit(first, _split(features), outputs[0], slopes, wants_input=wants_input)
        if slope is not None:
            slope = slope.to(features.dtype)
        return None, slope, *(rerun.gradients.get(parameter) for parameter in parameters)


class _Rerun:
    """Runs units again, from the last to the first, and gathers the gradients of the wanted parameters.

    "Slopes" are the gradients of the loss by a unit's two outputs. One function's graph is alive at a time.
    """

    def __init__(self, wanted: set[nn.Parameter]) -> None:
        self.wanted = wanted
        self.gradients: dict[nn.Parameter, Tensor] = {}

    def invertible_unit(self, unit: ReversibleUnit, outputs: Halves, slopes: Halves) -> tuple[Halves, Halves]:
        """Give the unit's inputs, rebuilt, and the gradients by them (Gomez et al., algorithm 1)."""
        (y1, y2), (slope1, slope2) = outputs, slopes
        residual, slope = self._differentiate(unit.g, y1, slope2)
        x2, slope1 = y2 - residual, slope1 + slope
        residual, slope = self._differentiate(unit.f, x2, slope1)
        return (y1 - residual, x2), (slope1, slope2 + slope)

    def first_unit(
        self, unit: ReversibleUnit, inputs: Halves, y1: Tensor, slopes: Halves, *, wants_input: bool
    ) -> Tensor | None:
        """Give the gradient by the stored input (None if nobody wants it)."""
        (x1, x2), (slope1, slope2) = inputs, slopes
        slope1 = slope1 + self._differentiate(unit.g, y1, slope2)[1]
        through_f = self._differentiate(unit.f, x2, slope1, wants_input=wants_input)[1]
        if unit.shortcuts is not None:
            slope1 = self._differentiate(unit.shortcuts[0], x1, slope1, wants_input=wants_input)[1]
            slope2 = self._differentiate(unit.shortcuts[1], x2, slope2, wants_input=wants_input)[1]
        return torch.cat((slope1, slope2 + through_f), dim=1) if wants_input else None

    def _differentiate(
        self, function: nn.Module, at: Tensor, slope: Tensor, *, wants_input: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Give the function's value and the gradient by its input, which is empty if not wanted."""
        with torch.enable_grad():
            point = at.detach().requires_grad_(wants_input)
            value: Tensor = function(_lowered(point))
        parameters = [parameter for parameter in function.parameters() if parameter in self.wanted]
        variables = [point] * wants_input + parameters
        if not variables:
            return value, value.new_empty(0)
        gradients = list(torch.autograd.grad(value, variables, slope.to(value.dtype)))
        by_input = gradients.pop(0) if wants_input else value.new_empty(0)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            known = self.gradients.get(parameter)
            self.gradients[parameter] = gradient if known is None else known + gradient
        return value.detach(), by_input


@dataclass(frozen=True)
class _Conditions:
    """What the forward pass ran under, besides its tensors."""

    device_type: str
    lower_precision: torch.dtype | None
    training: tuple[bool, ...]

    @classmethod
    def now(cls, block: nn.Module, features: Tensor) -> "_Conditions":
        modes = tuple(module.training for module in block.modules())
        return cls(features.device.type, _autocast_dtype(features), modes)

    def autocast(self) -> torch.autocast:
        # Autocast remembers lowered weights: the copies made here, without gradient, must not reach other layers.
        enabled = self.lower_precision is not None
        return torch.autocast(self.device_type, dtype=self.lower_precision, enabled=enabled, cache_enabled=False)

    @contextmanager
    def restored(self, block: nn.Module) -> Iterator[None]:
        """The same precision and train or eval modes again, and buffers that may be written to in vain.

        Running statistics must not move a second time. Every buffer is swapped for a copy, and put back
        afterwards: that holds for BatchNorm, SyncBatchNorm and any layer with a forward pass of its own.
        """
        modules = list(block.modules())
        modes = [module.training for module in modules]
        buffers = [(module, *named) for module in modules for named in module.named_buffers(recurse=False)]
        try:
            for module, mode in zip(modules, self.training, strict=True):
                module.training = mode
            for module, name, buffer in buffers:
                setattr(module, name, buffer.clone())
            with self.autocast():
                yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for module, name, buffer in buffers:
                setattr(module, name, buffer)


def _split(features: Tensor) -> Halves:
    """The two halves of the channels, in float32 where autocast had lowered them."""
    if features.dtype == _autocast_dtype(features):
        features = features.float()
    x1, x2 = features.chunk(2, dim=1)
    if features.is_contiguous(memory_format=torch.channels_last):
        # Views would skip every other half pixel: convolutions over those are a third slower.
        x1 = x1.contiguous(memory_format=torch.channels_last)
        x2 = x2.contiguous(memory_format=torch.channels_last)
    return x1, x2


def _lowered(features: Tensor) -> Tensor:
    """The stream as a residual function reads it: in autocast's precision, where there is one."""
    dtype = _autocast_dtype(features)
    return features if dtype is None or features.dtype != torch.float32 else features.to(dtype)


def _autocast_dtype(features: Tensor) -> torch.dtype | None:
    device_type = features.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None
