"""Layer-wise adaptive rate scaling, the optimiser of large batches."""

import math
from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT


class LARS(Optimizer):
    """Momentum SGD whose step, in each weight tensor, is in proportion to the length of that tensor.

    For a weight w with gradient g and velocity v:

        rate = trust_coefficient * |w| / (|g| + weight_decay * |w| + eps)
        v <- momentum * v + rate * (g + weight_decay * w)
        w <- w - lr * v

    A weight of length zero takes rate 1, so that it can leave zero; one whose gradient is zero does not decay either.
    Parameters in groups with `adapt=False` always take rate 1, which is torch's SGD. SimCLR puts biases and
    normalisation there, with a `weight_decay` of 0 as well.

    Nothing in a step waits for the device.

    Args:
        params: Parameters, or dictionaries of them with any of the settings below and `adapt` (True unless given).
        lr: Learning rate, at least 0.
        momentum: In [0, 1).
        weight_decay: At least 0; 0 does not turn the adaptation off.
        trust_coefficient: Above 0; .001 as in SimCLR.
        eps: Keeps the denominator from zero; at least 0.

    Raises:
        ValueError: If a setting is out of its range.

    Source: You et al. 2017, equation 6 and algorithm 1. As in torch's SGD, but not in theirs, lr comes after the
    momentum, which is the same while lr stays. SimCLR's program also has |g + weight_decay * w| as denominator; at its
    decay of 1e-6 that is no difference to speak of.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "adapt": True,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Add parameters with settings of their own.

        Args:
            param_group: "params", and the settings in which they differ from the constructor's.

        Raises:
            ValueError: If a setting is out of its range, or a parameter is known already.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient.

        Args:
            closure: Computes the gradients anew and returns the loss.

        Returns:
            What the closure returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                velocities = self._velocities(weights)
                torch._foreach_mul_(velocities, group["momentum"])
                torch._foreach_add_(velocities, _updates(weights, group))
                torch._foreach_add_(weights, velocities, alpha=-group["lr"])
        return loss

    def _velocities(self, weights: Sequence[Tensor]) -> list[Tensor]:
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return [self.state[weight]["momentum_buffer"] for weight in weights]


def _updates(weights: list[Tensor], group: dict[str, float]) -> tuple[Tensor, ...]:
    """Gradients with decay, each times its tensor's rate."""
    decay = group["weight_decay"]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    decayed = torch._foreach_add(gradients, weights, alpha=decay)
    if not group["adapt"]:
        return decayed
    weight_norms = torch.stack(torch._foreach_norm(weights))  # (number of tensors,)
    gradient_norms = torch.stack(torch._foreach_norm(gradients))
    rates = group["trust_coefficient"] * weight_norms / (gradient_norms + decay * weight_norms + group["eps"])
    rates = rates.masked_fill(gradient_norms == 0, 0.0).masked_fill(weight_norms == 0, 1.0)
    return torch._foreach_mul(decayed, rates.unbind())


def _check(settings: dict[str, object]) -> None:
    for name in ("lr", "weight_decay", "eps"):
        value = settings[name]
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{name}: must be a number of at least 0, got {value}")
    momentum, trust = settings["momentum"], settings["trust_coefficient"]
    if not isinstance(momentum, (int, float)) or not 0 <= momentum < 1:
        raise ValueError(f"momentum: must be in [0, 1), got {momentum}")
    if not isinstance(trust, (int, float)) or not 0 < trust < math.inf:
        raise ValueError(f"trust_coefficient: must be above 0, got {trust}")
