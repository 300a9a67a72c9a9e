"""Residual couplings whose backward pass rebuilds activations from outputs instead of storing them.

A unit couples two halves of the channels, y1 = x1 + F(x2) and y2 = x2 + G(y1), and is undone by
x2 = y2 - G(y1) and x1 = y1 - F(x2). A block of units keeps its input and its output, whatever their number.

Source: Gomez et al. 2017 (The Reversible Residual Network), equations 6 to 8 and algorithm 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rayssl.backbones.rerun import Conditions, Halves, Rerun, lowered, must_not_change, split


class ReversibleBlock(nn.Sequential):
    """Coupled units, run one after another over the two halves of a feature map's channels.

    Reversible, a training step stores the block's input and output alone, and its backward pass runs
    F and G of every unit once more. Gradients (up to rounding), BatchNorm's running statistics and `state_dict()`
    are those of the plain form. Forward hooks on layers inside the block see the rerun too; the block's own don't.
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

    @property
    def units(self) -> "list[ReversibleUnit]":
        """The units, in order."""
        return [unit for unit in self if isinstance(unit, ReversibleUnit)]

    def forward(self, features: Tensor) -> Tensor:
        """Give the map after all units, (N, C', H', W'), from the one before them, (N, C, H, W) with C even."""
        first, *others = self.units
        if not (self.reversible and torch.is_grad_enabled()):
            halves = first(*split(features))
            for unit in others:
                halves = unit(*halves)
            return torch.cat(halves, dim=1)
        trail = _Trail()
        halves = _FirstUnit.apply(trail, first, features, *first.parameters())
        for unit in others:
            halves = _InvertibleUnit.apply(trail, unit, *halves, *unit.parameters())
        output: Tensor = _Join.apply(trail, *halves)
        return output


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
        y1 = self._shortcut(0, x1) + self.f(lowered(x2))
        y2 = self._shortcut(1, x2) + self.g(lowered(y1))
        return y1, y2

    def inverse(self, y1: Tensor, y2: Tensor) -> Halves:
        """Give back x1 and x2, exact up to rounding; BatchNorm's running statistics move as in `forward`.

        Raises:
            ValueError: If the unit has shortcuts.
        """
        if not self.invertible:
            raise ValueError("inverse: a unit with shortcuts can't be inverted")
        x2 = y2 - self.g(lowered(y1))
        x1 = y1 - self.f(lowered(x2))
        return x1, x2

    def _shortcut(self, half: int, features: Tensor) -> Tensor:
        if self.shortcuts is None:
            return features
        shortcut: Tensor = self.shortcuts[half](lowered(features))
        return shortcut.to(features.dtype)


class _Trail:
    """Hands rebuilt activations down a block's nodes while its backward pass runs, and holds no more than one map."""

    def __init__(self) -> None:
        self._halves: Halves | None = None

    def leave(self, halves: Halves) -> None:
        """Leave the inputs of the unit above, which are the outputs of the one below."""
        self._halves = halves

    def take(self) -> Halves:
        """Take the outputs of the unit whose turn it is."""
        halves = self._halves
        assert halves is not None, "a unit's backward pass ran before that of the unit above"
        self._halves = None
        return halves


# The nodes of a block in autograd's graph. Parameters are inputs of their unit's node: their gradients leave by
# the usual way, unit by unit, so that hooks fire (DDP's, which overlap with the rest of the backward pass).


class _FirstUnit(torch.autograd.Function):
    """The unit whose input is stored: from the whole map to the halves after it."""

    @staticmethod
    def forward(ctx: Any, trail: _Trail, unit: ReversibleUnit, features: Tensor, *_parameters: Tensor) -> Halves:
        ctx.trail, ctx.unit, ctx.conditions = trail, unit, Conditions.now(unit, features)
        ctx.save_for_backward(features, *must_not_change(unit))
        halves: Halves = unit(*split(features))
        return halves

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope1: Tensor, slope2: Tensor) -> tuple[Tensor | None, ...]:
        unit, features, wants_input = ctx.unit, ctx.saved_tensors[0], ctx.needs_input_grad[2]
        ctx.trail.take()  # The rebuilt outputs end here: this unit starts from what was stored.
        with ctx.conditions.restored(unit):
            rerun = Rerun(unit, ctx.needs_input_grad[3:])
            _, by_halves = rerun.differentiate(unit, split(features), (slope1, slope2), wants_inputs=wants_input)
        slope = torch.cat(by_halves, dim=1).to(features.dtype) if wants_input else None
        return None, None, slope, *rerun.gradients


class _InvertibleUnit(torch.autograd.Function):
    """A unit that stores nothing: it takes its outputs from the trail and leaves its inputs (algorithm 1)."""

    @staticmethod
    def forward(ctx: Any, trail: _Trail, unit: ReversibleUnit, x1: Tensor, x2: Tensor, *_parameters: Tensor) -> Halves:
        ctx.trail, ctx.unit, ctx.conditions = trail, unit, Conditions.now(unit, x1)
        ctx.save_for_backward(*must_not_change(unit))
        halves: Halves = unit(x1, x2)
        return halves

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope1: Tensor, slope2: Tensor) -> tuple[Tensor | None, ...]:
        unit, _ = ctx.unit, ctx.saved_tensors
        y1, y2 = ctx.trail.take()
        with ctx.conditions.restored(unit):
            rerun = Rerun(unit, ctx.needs_input_grad[4:])
            (residual,), (slope,) = rerun.differentiate(unit.g, (lowered(y1),), (slope2,))
            x2, slope1 = y2 - residual, slope1 + slope
            (residual,), (slope,) = rerun.differentiate(unit.f, (lowered(x2),), (slope1,))
            x1, slope2 = y1 - residual, slope2 + slope
        ctx.trail.leave((x1, x2))
        return None, None, slope1, slope2, *rerun.gradients


class _Join(torch.autograd.Function):
    """The whole map from its halves. It is stored, and is where the trail starts."""

    @staticmethod
    def forward(ctx: Any, trail: _Trail, y1: Tensor, y2: Tensor) -> Tensor:
        output = torch.cat((y1, y2), dim=1)
        ctx.trail = trail
        ctx.save_for_backward(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (output,) = ctx.saved_tensors
        ctx.trail.leave(split(output))
        return None, *split(slope)
