"""Optimisers over a stage's trainable parameters, and learning-rate schedules as functions of progress."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from rayssl.schema import Config
from rayssl.training.lars import LARS

Fraction = Annotated[float, Field(gt=0, lt=1)]


class StepsScheduleConfig(Config):
    """The learning rate is multiplied by `factor` at each of the fractions."""

    name: Literal["steps"] = "steps"
    fractions: tuple[Fraction, ...] = (20 / 60, 40 / 60, 50 / 60)
    """Shares of the schedule's length; PSL drops after 20, 40 and 50 of 60 epochs (section 4.1: "20/20/10/10")."""
    factor: float = Field(default=0.1, gt=0, lt=1)
    """Multiplier at each step (section 4.1: "dropped by a factor of 10")."""

    def scale(self, progress: float) -> float:
        """The learning rate's multiplier at `progress` in [0, 1)."""
        return self.factor ** sum(progress >= fraction for fraction in self.fractions)


class CosineScheduleConfig(Config):
    """A linear warm-up, then half a cosine down to zero (Loshchilov and Hutter 2017, without restarts)."""

    name: Literal["cosine"] = "cosine"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the schedule's length that warms up; SimCLR: 10 of 200 epochs, .05."""

    def scale(self, progress: float) -> float:
        """The learning rate's multiplier at `progress` in [0, 1)."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


class ConstantScheduleConfig(Config):
    """The learning rate stays as it is."""

    name: Literal["constant"] = "constant"

    def scale(self, progress: float) -> float:
        """1, whatever the progress."""
        return 1.0


AnySchedule = Annotated[
    StepsScheduleConfig | CosineScheduleConfig | ConstantScheduleConfig, Field(discriminator="name")
]


class SGDConfig(Config):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    learning_rate: float = Field(default=0.01, gt=0)
    """For the whole batch, as given: nothing is scaled (PSL: .01 at 256)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """As PSL, section 4.1."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Not applied to biases and normalisation parameters (PSL: "no decay for the bias")."""
    schedule: AnySchedule = StepsScheduleConfig()
    """Multiplier of the learning rate over a stage, or over the run (method.schedule_scope)."""

    def build(self, module: nn.Module) -> torch.optim.SGD:
        """An optimiser over the module's trainable parameters alone: a frozen weight left in one would still move."""
        return torch.optim.SGD(
            parameter_groups(module, weight_decay=self.weight_decay),
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            fused=True,
        )


class LARSConfig(Config):
    """Momentum SGD with a step in proportion to each weight's length, for large batches (You et al. 2017)."""

    name: Literal["lars"] = "lars"
    learning_rate: float = Field(default=0.3, gt=0)
    """For the whole batch, as given: nothing is scaled (PSL with SimCLR: .3 at 256)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """As SimCLR."""
    weight_decay: float = Field(default=1e-6, ge=0)
    """As SimCLR. Neither it nor the adaptation apply to biases and normalisation parameters."""
    trust_coefficient: float = Field(default=0.001, gt=0)
    """Length of a step as a share of the weight's, at learning rate 1."""
    schedule: AnySchedule = CosineScheduleConfig(warmup=0.05)
    """Multiplier of the learning rate over a stage, or over the run (method.schedule_scope)."""

    def build(self, module: nn.Module) -> LARS:
        """An optimiser over the module's trainable parameters alone."""
        decayed, plain = parameter_groups(module, weight_decay=self.weight_decay)
        return LARS(
            [decayed, {**plain, "adapt": False}],
            lr=self.learning_rate,
            momentum=self.momentum,
            trust_coefficient=self.trust_coefficient,
        )


class AdamConfig(Config):
    """Adam (Kingma and Ba 2015)."""

    name: Literal["adam"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    """For the whole batch, as given."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Shares of themselves that the averages of gradient and squared gradient keep in a step."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Added to the gradient; not for biases and normalisation parameters."""
    schedule: AnySchedule = ConstantScheduleConfig()
    """Multiplier of the learning rate over a stage, or over the run (method.schedule_scope)."""

    def build(self, module: nn.Module) -> torch.optim.Adam:
        """An optimiser over the module's trainable parameters alone."""
        return torch.optim.Adam(
            parameter_groups(module, weight_decay=self.weight_decay),
            lr=self.learning_rate,
            betas=self.betas,
            fused=True,
        )


AnyOptimizer = Annotated[SGDConfig | LARSConfig | AdamConfig, Field(discriminator="name")]


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, object]]:
    """Split trainable parameters into those with weight decay and those without: biases and normalisation, all 1-d."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
