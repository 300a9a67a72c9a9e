"""Schedules against the paper's numbers and torch's schedulers; SGD against its formula."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rayssl.backbones import ResNetConfig
from rayssl.training.loop import StageSchedule
from rayssl.training.optimizers import CosineScheduleConfig, SGDConfig, StepsScheduleConfig, parameter_groups


def small_network() -> nn.Sequential:
    """Every kind of parameter that a stage has: convolution, normalisation, a layer with a bias."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_steps_are_those_of_the_paper() -> None:
    """Section 4.1: .01, a tenth of it after 20, 40 and 50 of 60 epochs ("20/20/10/10")."""
    config = SGDConfig()
    schedule = StageSchedule(0, 3, epochs=60, epochs_before=0, epochs_run=180, scope="stage")
    rates = [config.learning_rate * config.schedule.scale(schedule.progress(epoch, 0.0)) for epoch in range(60)]
    assert rates == pytest.approx(20 * [1e-2] + 20 * [1e-3] + 10 * [1e-4] + 10 * [1e-5])


@pytest.mark.parametrize("epochs", [3, 6, 7, 12, 30, 60, 90, 600])
def test_steps_fall_on_whole_epochs_in_runs_of_any_length(epochs: int) -> None:
    """A third of the epochs is a third whatever their number: rounding must not delay the drop by an epoch."""
    steps = StepsScheduleConfig()
    for epoch in range(epochs):
        for step in range(5):
            drops = sum(60 * (5 * epoch + step) >= 5 * epochs * at for at in (20, 40, 50))
            assert steps.scale((epoch + step / 5) / epochs) == pytest.approx(0.1**drops)


def test_steps_are_torchs_multi_step_schedule() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 8], gamma=0.2)
    steps = StepsScheduleConfig(fractions=(0.3, 0.8), factor=0.2)
    for epoch in range(10):
        assert 0.5 * steps.scale(epoch / 10) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_cosine_is_torchs_annealing() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    cosine = CosineScheduleConfig()
    for step in range(40):
        assert 0.3 * cosine.scale(step / 40) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_warm_up_rises_linearly_and_meets_the_cosine() -> None:
    """Ten of 200 epochs, as SimCLR; afterwards half a cosine over the other 190."""
    cosine = CosineScheduleConfig(warmup=0.05)
    assert [cosine.scale(epoch / 200) for epoch in range(10)] == pytest.approx([epoch / 10 for epoch in range(10)])
    assert cosine.scale(10 / 200) == pytest.approx(1)
    assert cosine.scale(105 / 200) == pytest.approx(0.5)
    late = [cosine.scale(epoch / 200) for epoch in range(10, 200)]
    assert late == sorted(late, reverse=True)
    assert 0 < late[-1] < 1e-3


@pytest.mark.parametrize(
    "fields", [{"fractions": (0.0,)}, {"fractions": (1.0,)}, {"factor": 0}, {"factor": 1}, {"milestones": (3,)}]
)
def test_steps_that_could_not_happen_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        StepsScheduleConfig.model_validate(fields)


def test_a_schedule_over_a_stage_restarts_with_it_and_one_over_the_run_does_not() -> None:
    """Three stages of 2, 3 and 5 epochs: shares of the stage against shares of all ten."""
    lengths = [2, 3, 5]
    for index, (epochs, before) in enumerate(zip(lengths, [0, 2, 5], strict=True)):
        of_stage = StageSchedule(index, 3, epochs, before, 10, "stage")
        of_run = StageSchedule(index, 3, epochs, before, 10, "run")
        for epoch in range(epochs):
            for quarter in range(4):
                assert of_stage.progress(epoch, quarter / 4) == pytest.approx((4 * epoch + quarter) / (4 * epochs))
                assert of_run.progress(epoch, quarter / 4) == pytest.approx((4 * (before + epoch) + quarter) / 40)


def test_only_weights_of_two_dimensions_and_more_decay() -> None:
    """Checked on a whole ResNet by the kind of its modules, not by the shape of their parameters."""
    network = nn.Sequential(ResNetConfig(depth=50, width=4).build(), nn.Linear(128, 8))
    spared = set()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            spared |= {id(p) for p in module.parameters()}
        elif getattr(module, "bias", None) is not None:
            spared.add(id(module.bias))
    decayed, kept = parameter_groups(network, weight_decay=0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    ids = [[id(p) for p in group["params"]] for group in (decayed, kept)]  # type: ignore[attr-defined]
    assert set(ids[1]) == spared
    assert sorted(ids[0] + ids[1]) == sorted(id(p) for p in network.parameters())


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_formula(nesterov: bool) -> None:
    """Velocity v <- m v + g + d w, then w <- w - lr v, or by Nesterov - lr (g + d w + m v); d is 0 where ndim is 1."""
    network = small_network()
    config = SGDConfig(learning_rate=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    optimizer = config.build(network)
    weights = [p.detach().clone() for p in network.parameters()]
    velocities = [torch.zeros_like(w) for w in weights]
    for step in range(4):
        gradients: list[Tensor] = []
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            gradients.append(p.grad.clone())
        optimizer.step()
        for i, gradient in enumerate(gradients):
            total = gradient + (0.01 * weights[i] if weights[i].ndim > 1 else 0)
            velocities[i] = 0.9 * velocities[i] + total
            weights[i] = weights[i] - 0.1 * (total + 0.9 * velocities[i] if nesterov else velocities[i])
    torch.testing.assert_close([p.detach() for p in network.parameters()], weights)


def test_a_frozen_weight_is_left_out_and_does_not_move() -> None:
    """Its gradient and its decay are there, yet the optimiser does not know it."""
    network = small_network()
    weight = next(network.parameters()).requires_grad_(False)
    frozen = weight.clone()
    weight.grad = torch.ones_like(frozen)
    optimizer = SGDConfig(learning_rate=0.1, weight_decay=0.5).build(network)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in network.parameters() if p.requires_grad}
    for _ in range(3):
        network(torch.randn(4, 3, 3, 3)).sum().backward()
        optimizer.step()
    assert torch.equal(weight, frozen)
