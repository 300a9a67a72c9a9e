"""SimCLR, MoCo v2 and the supervised reference: views, heads, and steps against lightly's parts."""

import copy
import math
import warnings

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

import rayssl.tasks.augmented_views
from rayssl.data.augment import Draws
from rayssl.errors import DataError
from rayssl.tasks import MoCoConfig, SimCLRConfig, SupervisedConfig, TaskSetting
from rayssl.tasks.augmented_views import AugmentationLevel, augmented_view
from rayssl.tasks.moco import MoCoHead
from tests.tasks.task_batches import as_batch

T1 = AugmentationLevel()
T2 = AugmentationLevel(color_strength=1.0, gray=0.2)
T3 = AugmentationLevel(color_strength=1.0, gray=0.2, blur=0.5, sobel=0.2)
SETTING = TaskSetting(image_size=8, batch_size=8)


def pictures(count: int, side: int = 12) -> Tensor:
    return torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def draws(count: int, step: int = 0) -> Draws:
    return Draws(0, 0, step, batch_size=count)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (T1, {"resized_crop", "flip"}),
        (T2, {"resized_crop", "flip", "color_jitter", "grayscale"}),
        (T3, {"resized_crop", "flip", "color_jitter", "grayscale", "gaussian_blur", "sobel"}),
    ],
)
def test_levels_lie_within_each_other(
    level: AugmentationLevel, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each level does what the one before does and more (PSL 3.3.3)."""
    used: set[str] = set()
    module = rayssl.tasks.augmented_views
    for name in ("resized_crop", "flip", "color_jitter", "grayscale", "gaussian_blur", "sobel"):
        original = getattr(module, name)

        def watched(*arguments: object, name: str = name, original: object = original, **named: object) -> Tensor:
            used.add(name)
            return original(*arguments, **named)  # type: ignore[operator]

        monkeypatch.setattr(module, name, watched)
    augmented_view(pictures(4), draws(4), level, image_size=8)
    assert used == expected


def test_a_share_of_the_views_is_grey_and_none_without_the_setting() -> None:
    for level, share in ((T1, 0.0), (T2, 0.2)):
        views = augmented_view(pictures(1000), draws(1000), level, image_size=4)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        pixels = views * std + mean
        grey = (pixels - pixels.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-4
        assert grey.float().mean().item() == pytest.approx(share, abs=0.04)


def test_both_views_of_a_picture_differ_and_are_the_same_on_two_workers() -> None:
    config = SimCLRConfig()
    task = config.build(T3, SETTING)
    images = pictures(6)
    first, second = task.make_views(as_batch(images, draws(6))).inputs.chunk(2)
    assert not any(torch.allclose(a, b) for a, b in zip(first, second, strict=True))
    halves = [
        task.make_views(
            as_batch(images[3 * rank : 3 * rank + 3], Draws(0, 0, 0, batch_size=6, rank=rank, world_size=2))
        )
        for rank in range(2)
    ]
    for index, whole in enumerate((first, second)):
        torch.testing.assert_close(torch.cat([half.inputs.chunk(2)[index] for half in halves]), whole)


def test_simclrs_loss_is_lightlys() -> None:
    pytest.importorskip("lightly")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightly.loss import NTXentLoss
    config = SimCLRConfig(temperature=0.3, projection_dim=6)
    task = config.build(T1, SETTING)
    head = task.build_head(5, ())
    feature_map = torch.randn(16, 5, 2, 2, requires_grad=True)
    outcome = task.compute_loss(head, feature_map, torch.arange(8))
    outcome.loss.backward()
    assert feature_map.grad is not None
    twin = feature_map.detach().clone().requires_grad_()
    expected = NTXentLoss(temperature=0.3)(*head(twin.mean((2, 3))).chunk(2))
    expected.backward()
    torch.testing.assert_close(outcome.loss, expected)
    torch.testing.assert_close(feature_map.grad, twin.grad)
    assert task.chance == pytest.approx(1 / 15)


def test_views_that_match_are_all_found() -> None:
    task = SimCLRConfig(projection_dim=8).build(T1, SETTING)
    rows = torch.eye(8).repeat(2, 1)[:, :, None, None]
    outcome = task.compute_loss(nn.Identity(), rows, torch.arange(8))
    assert outcome.metrics["accuracy"].item() == 1.0


def encoder() -> tuple[nn.Module, ...]:
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
    ]
    return tuple(blocks)


def test_steps_of_moco_are_those_of_lightlys_parts() -> None:
    """Three steps: the keys' parameters, the queue and the loss. In eval mode, where no statistics move."""
    pytest.importorskip("lightly")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightly.loss import NTXentLoss
        from lightly.models.utils import update_momentum
    config = MoCoConfig(queue_size=16, key_momentum=0.9, projection_dim=5, temperature=0.2, batchnorm_splits=2)
    task = config.build(T1, SETTING)
    blocks = encoder()
    head = task.build_head(6, blocks)
    query = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head.projection)
    query.eval()
    twin, twin_key = copy.deepcopy(query), copy.deepcopy(query)
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=(16, 5))
    criterion.memory_bank.bank = head.queue.clone()
    head.train()
    head.key_blocks.eval()
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.5) for network in (query, twin)]
    for step in range(3):
        views = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(10 * step + i)) for i in range(2)]
        feature_map = blocks[1](blocks[0](views[0]))
        outcome = task.compute_loss(head, feature_map, views[1])
        update_momentum(twin, twin_key, m=0.9)
        with torch.no_grad():
            keys = twin_key(views[1])
        expected = criterion(twin(views[0]), keys)
        torch.testing.assert_close(outcome.loss, expected)
        for optimizer, loss in zip(optimizers, (outcome.loss, expected), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(head.queue, criterion.memory_bank.bank)
    found = [*head.key_blocks.parameters(), *head.key_projection.parameters()]
    torch.testing.assert_close(found, list(twin_key.parameters()))
    assert not any(p.requires_grad for p in found)


def test_keys_are_normalised_in_shuffled_groups_and_come_back_in_order() -> None:
    config = MoCoConfig(queue_size=16, batchnorm_splits=4, projection_dim=5)
    blocks = encoder()
    head = config.build(T1, SETTING).build_head(6, blocks)
    head.train()
    views = torch.randn(8, 3, 8, 8)
    sizes: list[int] = []
    head.key_blocks[0].register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    before = copy.deepcopy(head)
    keys = head.encode_keys(views)
    assert sizes == 4 * [2]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for group in order.chunk(4):
        torch.testing.assert_close(keys[group], before._key(views[group]))
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(8))


def test_the_key_encoders_statistics_are_its_own_and_frozen_blocks_are_shared() -> None:
    blocks = encoder()
    blocks[0].requires_grad_(False).eval()
    head = MoCoConfig(queue_size=16, batchnorm_splits=2).build(T1, SETTING).build_head(6, blocks)
    assert len(head.key_blocks) == 1
    head.train()
    before = copy.deepcopy([block.state_dict() for block in blocks])
    head.encode_keys(torch.randn(8, 3, 8, 8))
    torch.testing.assert_close([block.state_dict() for block in blocks], before)
    means = [dict(block.named_buffers())["1.running_mean"] for block in (head.key_blocks[0], blocks[1])]
    assert not torch.equal(*means)


def test_a_restored_head_goes_on_where_it_was() -> None:
    """Queue, key encoder and the next shuffle are in its state."""
    config = MoCoConfig(queue_size=16, batchnorm_splits=2)
    task = config.build(T1, SETTING)
    blocks = encoder()
    first = task.build_head(6, blocks)
    for _ in range(3):
        task.compute_loss(first, torch.randn(8, 6, 2, 2), torch.randn(8, 3, 8, 8))
    torch.manual_seed(5)
    second: MoCoHead = task.build_head(6, blocks)
    second.load_state_dict(first.state_dict())
    feature_map, keys = torch.randn(8, 6, 2, 2), torch.randn(8, 3, 8, 8)
    losses = [task.compute_loss(head, feature_map, keys).loss for head in (first, second)]
    assert losses[0] == losses[1]
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "setting", "message"),
    [
        (MoCoConfig(queue_size=100), SETTING, r"queue_size: must be a multiple of training.batch_size, 8, got 100.*96"),
        (MoCoConfig(queue_size=80, batchnorm_splits=3), SETTING, "batchnorm_splits: must divide"),
        (MoCoConfig(queue_size=80, batchnorm_splits=8), SETTING, "groups of 2 or more"),
        (MoCoConfig(queue_size=80), TaskSetting(8, 8, 2, sync_batchnorm=True), "sync_batchnorm: must be false"),
    ],
)
def test_moco_refuses_what_can_not_work(config: MoCoConfig, setting: TaskSetting, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.check(T1, setting)


def test_the_supervised_reference_tells_labels_and_leaves_out_pictures_without() -> None:
    task = SupervisedConfig().build(T1, TaskSetting(8, 4, classes=("a", "b", "c")))
    views = task.make_views(as_batch(pictures(4), draws(4), torch.tensor([2, -1, 0, 1])))
    assert views.targets.tolist() == [2, -1, 0, 1] and task.chance == pytest.approx(1 / 3)
    head = task.build_head(5, ())
    feature_map = torch.randn(4, 5, 2, 2)
    outcome = task.compute_loss(head, feature_map, views.targets)
    logits = head(feature_map.mean((2, 3)))[[0, 2, 3]]
    labels = torch.tensor([2, 0, 1])
    torch.testing.assert_close(outcome.loss, functional.cross_entropy(logits, labels))
    assert outcome.metrics["accuracy"].item() == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    nothing = task.compute_loss(head, feature_map, torch.full((4,), -1))
    assert nothing.loss.item() == 0 and not math.isnan(nothing.metrics["accuracy"].item())


def test_the_supervised_reference_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match="supervised needs pictures with labels"):
        SupervisedConfig().build(T1, SETTING)


def test_a_mistake_in_a_level_is_named() -> None:
    with pytest.raises(ValidationError, match="blur"):
        SimCLRConfig().parse_level({"blur": 2})
