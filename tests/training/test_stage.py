"""A stage trains its blocks and its head, and nothing else moves."""

import pytest
import torch
from torch import Tensor, nn

from rayssl.backbones import Backbone, ResNetConfig
from rayssl.tasks import RotationTask
from rayssl.training.stage import Stage, frozen_unchanged


def small_backbone() -> Backbone:
    torch.manual_seed(0)
    return ResNetConfig(depth=18, width=4, stem="small").build()


def make_stage(blocks: list[int], *, frozen_batchnorm: str = "eval") -> tuple[Backbone, Stage]:
    backbone = small_backbone()
    for number, block in enumerate(backbone.blocks, start=1):
        block.requires_grad_(number in blocks)
    return backbone, Stage(backbone, blocks, RotationTask(4, image_size=8), frozen_batchnorm=frozen_batchnorm)


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(size) % 4


def train_step(stage: Stage) -> None:
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        stage(*batch()).loss.backward()
        optimizer.step()


def state_of(block: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in block.state_dict().values()]


def same(before: list[Tensor], after: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("blocks", [[1, 2, 3], [2, 3, 4], [3, 4, 5], [1, 2, 3, 4, 5], [5]])
def test_every_block_up_to_the_last_one_is_run_once_and_none_above(blocks: list[int]) -> None:
    backbone, stage = make_stage(blocks)
    runs: list[int] = []
    for number, block in enumerate(backbone.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: runs.append(number))
    stage(*batch())
    assert runs == list(range(1, blocks[-1] + 1))


@pytest.mark.parametrize("blocks", [[1, 2, 3], [2, 3, 4], [3, 4, 5], [3]])
def test_parameters_are_those_of_the_trained_blocks_and_the_head(blocks: list[int]) -> None:
    backbone, stage = make_stage(blocks)
    expected = {id(p) for number in blocks for p in backbone.blocks[number - 1].parameters()}
    expected |= {id(p) for p in stage.head.parameters()}
    found = [id(p) for p in stage.parameters()]
    assert set(found) == expected and len(found) == len(expected)
    assert not any(name.startswith("frozen") for name in stage.state_dict())


def test_loss_and_gradients_are_those_of_the_plain_network() -> None:
    backbone, stage = make_stage([2, 3, 4])
    inputs, targets = batch()
    stage.train()
    outcome = stage(inputs, targets)
    outcome.loss.backward()
    found = [p.grad.clone() for p in stage.parameters() if p.grad is not None]
    stage.zero_grad()

    twin, other = make_stage([2, 3, 4])
    other.head.load_state_dict(stage.head.state_dict())
    twin.blocks[0].eval()
    logits = other.head(twin(inputs, 4).mean((2, 3)))
    loss = nn.functional.cross_entropy(logits, targets)
    expected = torch.autograd.grad(loss, list(other.parameters()))
    torch.testing.assert_close(outcome.loss, loss)
    torch.testing.assert_close(found, list(expected))
    assert outcome.metrics["accuracy"] == (logits.argmax(1) == targets).float().mean()


def test_frozen_blocks_leave_no_autograd_graph() -> None:
    """Even where a parameter asks for gradients: no memory is spent on the blocks below."""
    backbone, stage = make_stage([3, 4])
    backbone.requires_grad_(True)
    outputs: list[Tensor] = []
    for block in backbone.blocks[:4]:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    stage(*batch()).loss.backward()
    assert [output.requires_grad for output in outputs] == [False, False, True, True]
    assert all(p.grad is None for block in backbone.blocks[:2] for p in block.parameters())
    assert all(p.grad is not None for block in backbone.blocks[2:4] for p in block.parameters())
    assert all(p.grad is None for p in backbone.blocks[4].parameters())


def test_frozen_blocks_stay_in_eval_mode() -> None:
    backbone, stage = make_stage([3, 4])
    stage.train()
    modes = [{module.training for module in block.modules()} for block in backbone.blocks[:4]]
    assert modes == [{False}, {False}, {True}, {True}]
    stage.eval()
    assert not any(module.training for block in backbone.blocks[:4] for module in block.modules())


def test_frozen_statistics_stay_with_eval_and_move_with_batch() -> None:
    for mode, stays in (("eval", True), ("batch", False)):
        backbone, stage = make_stage([3, 4], frozen_batchnorm=mode)
        before = [state_of(block) for block in backbone.blocks]
        weights = [p.clone() for block in backbone.blocks[:2] for p in block.parameters()]
        train_step(stage.train())
        unchanged = [same(old, state_of(block)) for old, block in zip(before, backbone.blocks, strict=True)]
        assert unchanged == [stays, stays, False, False, True]
        assert same(weights, [p for block in backbone.blocks[:2] for p in block.parameters()])


def test_frozen_blocks_with_batch_statistics_run_as_in_training() -> None:
    """A batch of one kind is normalised by itself: the map does not depend on its scale."""
    backbone, stage = make_stage([2], frozen_batchnorm="batch")
    seen: list[Tensor] = []
    backbone.blocks[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    inputs, targets = batch()
    stage.train()
    stage(inputs, targets)
    stage(100 * inputs, targets)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_training_passes_the_check_of_the_frozen_blocks(mode: str) -> None:
    _, stage = make_stage([2, 3], frozen_batchnorm=mode)
    stage.train()
    with frozen_unchanged(stage):
        train_step(stage)


def test_a_changed_frozen_parameter_is_caught_by_name() -> None:
    backbone, stage = make_stage([3])
    weight = next(backbone.blocks[1].parameters())
    with pytest.raises(RuntimeError, match=r"b2\.1\.0\.conv1\.weight$"), frozen_unchanged(stage), torch.no_grad():
        weight.view(-1)[0] += 1e-6


def test_a_changed_frozen_buffer_is_caught_by_name() -> None:
    backbone, stage = make_stage([2, 3])
    names = r"b1\.1\.running_mean, b1\.1\.running_var, b1\.1\.num_batches_tracked$"
    with pytest.raises(RuntimeError, match=names), frozen_unchanged(stage):
        backbone.blocks[0].train()
        backbone.blocks[0](batch()[0])


def test_with_batch_statistics_a_changed_parameter_is_still_caught() -> None:
    backbone, stage = make_stage([2, 3], frozen_batchnorm="batch")
    weight = next(backbone.blocks[0].parameters())
    with pytest.raises(RuntimeError, match=r"b1\.0\.weight"), frozen_unchanged(stage), torch.no_grad():
        weight.mul_(1.5)


def test_the_check_lets_an_error_of_the_training_through() -> None:
    backbone, stage = make_stage([2])
    with pytest.raises(ZeroDivisionError), frozen_unchanged(stage):
        backbone.blocks[0].train()
        backbone.blocks[0](batch()[0])
        raise ZeroDivisionError


def test_a_stage_of_all_blocks_has_nothing_frozen() -> None:
    backbone, stage = make_stage([1, 2, 3, 4, 5])
    before = [state_of(block) for block in backbone.blocks]
    with frozen_unchanged(stage):
        train_step(stage.train())
    assert not any(same(old, state_of(block)) for old, block in zip(before, backbone.blocks, strict=True))
