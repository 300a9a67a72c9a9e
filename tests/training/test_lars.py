"""LARS against its formula in Python floats, lightly's LARS, and torch's SGD where it does not adapt."""

import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayssl.training.lars import LARS
from tests.gpu import waiting_is_an_error

Groups = list[dict[str, Any]]


def random_parameters(*, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Two weights and two biases of a small network."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 2, 2), (5, 4), (4,), (5,)]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def as_simclr(parameters: list[nn.Parameter], *, weight_decay: float) -> Groups:
    """Weights adapt and decay, biases do neither."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]


def take_step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, seed: int) -> None:
    """One step along random gradients, those of the seed."""
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    optimizer.step()


def values(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Copies that later steps leave alone."""
    return [p.detach().clone() for p in parameters]


def test_two_steps_by_hand() -> None:
    """|w| = 5 and |g| = 10: rate .1 * 5 / (10 + .5 * 5); then the same again with the velocity that it had."""
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    optimizer = LARS([weight], lr=2.0, momentum=0.5, weight_decay=0.5, trust_coefficient=0.1, eps=0.0)
    weight.grad = torch.tensor([[6.0, 8.0]], dtype=torch.float64)
    optimizer.step()
    first = [0.04 * (6 + 1.5), 0.04 * (8 + 2)]
    moved = [3 - 2 * first[0], 4 - 2 * first[1]]
    assert weight.tolist()[0] == pytest.approx(moved)
    optimizer.step()
    rate = 0.1 * math.hypot(*moved) / (10 + 0.5 * math.hypot(*moved))
    second = [0.5 * v + rate * (g + 0.5 * w) for v, g, w in zip(first, (6, 8), moved, strict=True)]
    assert weight.tolist()[0] == pytest.approx([w - 2 * v for w, v in zip(moved, second, strict=True)])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [1e-4, 0.3])
def test_steps_are_lightlys_with_the_same_exclusions(momentum: float, weight_decay: float) -> None:
    """Lightly leaves out whatever has no decay; its first weight is all zeros here, which must be able to move."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference_class = pytest.importorskip("lightly.utils.lars").LARS
    ours, theirs = random_parameters(), random_parameters()
    for parameters in (ours, theirs):
        parameters[0].data.zero_()
    optimizer = LARS(as_simclr(ours, weight_decay=weight_decay), lr=0.5, momentum=momentum)
    reference = reference_class(as_simclr(theirs, weight_decay=weight_decay), lr=0.5, momentum=momentum)
    for step in range(6):
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = 0.5 / (step + 1)
        take_step(optimizer, ours, seed=step)
        take_step(reference, theirs, seed=step)
        torch.testing.assert_close(values(ours), values(theirs))


def test_a_gradient_of_zero_moves_a_weight_by_its_velocity_alone_as_lightlys() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference_class = pytest.importorskip("lightly.utils.lars").LARS
    ours, theirs = random_parameters()[:1], random_parameters()[:1]
    optimizer = LARS(ours, lr=0.5, weight_decay=0.1)
    reference = reference_class(theirs, lr=0.5, momentum=0.9, weight_decay=0.1)
    for optim, parameters in ((optimizer, ours), (reference, theirs)):
        take_step(optim, parameters, seed=0)
        parameters[0].grad = torch.zeros_like(parameters[0])
        optim.step()
    torch.testing.assert_close(values(ours), values(theirs))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_groups_that_do_not_adapt_follow_torchs_sgd(weight_decay: float) -> None:
    ours, theirs = random_parameters(), random_parameters()
    optimizer = LARS([{"params": ours, "adapt": False}], lr=0.1, weight_decay=weight_decay)
    reference = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=weight_decay)
    for step in range(5):
        take_step(optimizer, ours, seed=step)
        take_step(reference, theirs, seed=step)
    torch.testing.assert_close(values(ours), values(theirs))


def test_no_decay_does_not_turn_adaptation_off() -> None:
    """The first step has the length lr * trust_coefficient * |w|, whatever the gradient's."""
    parameters = random_parameters(dtype=torch.float64)
    before = values(parameters)
    optimizer = LARS(parameters, lr=3.0, weight_decay=0.0, trust_coefficient=0.01)
    take_step(optimizer, parameters, seed=0)
    for old, new in zip(before, values(parameters), strict=True):
        torch.testing.assert_close((new - old).norm(), 3.0 * 0.01 * old.norm())


def test_the_scale_of_the_gradient_does_not_matter_without_decay() -> None:
    small, large = random_parameters(dtype=torch.float64), random_parameters(dtype=torch.float64)
    for parameters, scale in ((small, 1e-3), (large, 1e3)):
        optimizer = LARS(parameters, lr=1.0, eps=0.0)
        for p in parameters:
            p.grad = scale * p.detach().cos()
        optimizer.step()
    torch.testing.assert_close(values(small), values(large))


def test_a_parameter_without_a_gradient_stays_and_has_no_state() -> None:
    parameters = random_parameters()
    before = values(parameters)
    optimizer = LARS(as_simclr(parameters, weight_decay=0.5), lr=1.0)
    parameters[1].grad = torch.ones_like(parameters[1])
    optimizer.step()
    moved = [not p.equal(old) for p, old in zip(parameters, before, strict=True)]
    assert moved == [False, True, False, False]
    assert set(optimizer.state) == {parameters[1]}


def test_gradients_are_left_as_they_are() -> None:
    """The loop may log their norms after the step."""
    parameters = random_parameters()
    optimizer = LARS(as_simclr(parameters, weight_decay=0.5), lr=1.0)
    take_step(optimizer, parameters, seed=0)
    generator = torch.Generator().manual_seed(0)
    for p in parameters:
        assert p.grad is not None
        assert p.grad.equal(torch.randn(p.shape, generator=generator))


def test_a_restored_optimiser_goes_on_bit_for_bit() -> None:
    """Through a file, as a checkpoint does, into an optimiser that was made with other settings."""
    whole, cut = random_parameters(), random_parameters()
    optimizer = LARS(as_simclr(whole, weight_decay=0.1), lr=0.5)
    first_half = LARS(as_simclr(cut, weight_decay=0.1), lr=0.5)
    for step in range(3):
        take_step(optimizer, whole, seed=step)
        take_step(first_half, cut, seed=step)
    file = io.BytesIO()
    torch.save({"weights": values(cut), "optimizer": first_half.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    restored = [nn.Parameter(weight) for weight in saved["weights"]]
    second_half = LARS(as_simclr(restored, weight_decay=0.0), lr=9.0, momentum=0.0, trust_coefficient=0.5)
    second_half.load_state_dict(saved["optimizer"])
    for step in range(3, 6):
        take_step(optimizer, whole, seed=step)
        take_step(second_half, restored, seed=step)
    assert all(a.equal(b) for a, b in zip(values(whole), values(restored), strict=True))


def test_a_step_reads_no_value_back_from_the_device() -> None:
    """Tensors on the meta device have no values, so whatever asked for one would raise."""
    parameters = [nn.Parameter(p.to("meta")) for p in random_parameters()]
    optimizer = LARS(as_simclr(parameters, weight_decay=0.1), lr=0.1)
    for _ in range(2):
        for p in parameters:
            p.grad = torch.empty_like(p)
        optimizer.step()
    assert len(optimizer.state) == 4


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_waits_for_it_and_gives_the_cpus_weights() -> None:
    on_cpu, on_gpu = random_parameters(), [nn.Parameter(p.detach().cuda()) for p in random_parameters()]
    reference = LARS(as_simclr(on_cpu, weight_decay=0.1), lr=0.5)
    optimizer = LARS(as_simclr(on_gpu, weight_decay=0.1), lr=0.5)
    for step in range(4):
        take_step(reference, on_cpu, seed=step)
        for p, other in zip(on_gpu, on_cpu, strict=True):
            assert other.grad is not None
            p.grad = other.grad.cuda()
        with waiting_is_an_error():
            optimizer.step()
    torch.testing.assert_close([p.cpu() for p in values(on_gpu)], values(on_cpu))


def test_a_closure_is_run_with_gradients_and_its_loss_returned() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert (weight < 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.1}, "lr: must be a number of at least 0, got -0.1"),
        ({"lr": math.nan}, "lr: must be a number of at least 0, got nan"),
        ({"momentum": 1.0}, r"momentum: must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1e-6}, "weight_decay: must be a number of at least 0"),
        ({"trust_coefficient": 0.0}, "trust_coefficient: must be above 0, got 0.0"),
        ({"eps": -1.0}, "eps: must be a number of at least 0"),
    ],
)
def test_impossible_settings_are_refused_for_all_and_for_a_group(settings: dict[str, float], message: str) -> None:
    make: list[Callable[[], object]] = [
        lambda: LARS(random_parameters(), **{"lr": 0.1, **settings}),
        lambda: LARS([{"params": random_parameters(), **settings}], lr=0.1),
    ]
    for constructor in make:
        with pytest.raises(ValueError, match=message):
            constructor()
