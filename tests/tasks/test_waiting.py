"""A step never waits for its device: make_views, a forward and a backward pass look at no value there.

On a GPU torch itself can tell. Without one, tensors on torch's device "meta", which have shapes but no content, go the
same way through the code, and what would wait on a GPU can be seen among the operations.
"""

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rayssl.backbones import ResNet, ResNetConfig
from rayssl.backbones.autoencoder import AutoEncoder
from rayssl.data.augment import Draws
from rayssl.data.loaders import Batch
from rayssl.methods.mgta_stage import AutoEncoderStage, AutoEncoderTask, TripletTerm
from rayssl.tasks import JigsawConfig, MoCoConfig, PretextTask, RotationConfig, SimCLRConfig, SupervisedConfig
from rayssl.tasks.augmented_views import AugmentationLevel
from rayssl.tasks.base import TaskConfig, TaskSetting
from rayssl.training.optimizers import SGDConfig
from rayssl.training.stage import Stage, TrainedStage
from tests.gpu import waiting_is_an_error

SIDE, COUNT = 32, 8
LEVEL = AugmentationLevel(color_strength=1.0, gray=0.5, blur=0.5, sobel=0.5)
TASKS: dict[str, tuple[TaskConfig, object]] = {
    "jigsaw": (JigsawConfig(grid=2), {"num_permutations": 20}),
    "rotation": (RotationConfig(copies="one"), {"angles": 4}),
    "rotation in all angles": (RotationConfig(), {"angles": 4}),
    "rotation in discs": (RotationConfig(copies="one", corners="mask"), {"angles": 8}),
    "rotation as in the paper": (RotationConfig(corners="paper"), {"angles": 8}),
    "simclr": (SimCLRConfig(), LEVEL),
    "moco": (MoCoConfig(queue_size=16, batchnorm_splits=2), LEVEL),
    "supervised": (SupervisedConfig(), LEVEL),
}


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Permutations are kept away from the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def small_backbone() -> ResNet:
    return ResNetConfig(depth=18, width=4, stem="small").build()


def build_task(config: TaskConfig, level: object) -> PretextTask:
    setting = TaskSetting(image_size=SIDE, batch_size=COUNT, classes=("a", "b"))
    task: PretextTask = config.build(config.parse_level(level), setting)
    return task


def build_stage(name: str) -> TrainedStage:
    if name == "mgta":
        task = AutoEncoderTask(LEVEL, image_size=SIDE)
        return AutoEncoderStage(AutoEncoder(small_backbone()), task, triplet=TripletTerm(0.5, "soft"), reduction="mean")
    return Stage(small_backbone(), (1, 2, 3, 4, 5), build_task(*TASKS[name]))


def make_batch(device: str, *, window: int) -> Batch:
    """Only the windows lie on the device, as the loader gives them."""
    windows = torch.zeros(COUNT, window, window, 3, dtype=torch.uint8, device=device)
    numbers = torch.arange(COUNT)
    return Batch(windows.permute(0, 3, 1, 2), Draws(0, 0, 0, batch_size=COUNT), numbers, numbers % 2)


def take_step(stage: TrainedStage, batch: Batch, optimizer: torch.optim.Optimizer | None = None) -> None:
    """What the training loop does with a batch; without an optimiser up to the gradients."""
    views = stage.task.make_views(batch)
    outcome = stage(views.inputs.contiguous(memory_format=torch.channels_last), views.targets)
    outcome.loss.backward()
    for value in outcome.metrics.values():
        value.double()
    if optimizer is not None:
        optimizer.step()


class WaitsOnMeta(TorchDispatchMode):
    """Collects the operations that would make the host wait if the device "meta" were a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        has_meta = any(each.is_meta for each in tensors)
        if name in ("_to_copy", "copy_") and self._blocks(name, args, kwargs):
            self.found.append(f"{name} of {tuple(args[-1].shape)}")
        elif has_meta and name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique"):
            self.found.append(name)
        elif has_meta and name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            # A mask is looked at; an index on the CPU is copied, and waited for.
            indices = [each for each in args[1] if each is not None]
            if any(not each.is_meta or each.dtype == torch.bool for each in indices):
                self.found.append(name)
        return func(*args, **kwargs)

    @staticmethod
    def _blocks(name: str, args: Any, kwargs: Any) -> bool:
        """Whether the copy goes from one device to the other, and is waited for."""
        if name == "copy_":
            target, source = args[0].device, args[1].device
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        else:
            source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
            non_blocking = kwargs.get("non_blocking", False)
        return source.type != target.type and not (non_blocking and target.type == "meta")


@pytest.mark.parametrize("window", [24, 32, 45])
@pytest.mark.parametrize("name", [*TASKS, "mgta"])
def test_a_step_copies_without_waiting_and_looks_at_no_value(
    name: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no "meta"
    stage = build_stage(name).train()
    if isinstance(stage, Stage):
        stage.task.make_views(make_batch("cpu", window=window))  # what a task makes once, such as permutations
    stage.to("meta")
    with WaitsOnMeta() as waits:
        take_step(stage, make_batch("meta", window=window))
    assert waits.found == []
    assert all(parameter.grad is not None for parameter in stage.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    "look",
    [
        lambda there, here: here.to("meta"),
        lambda there, here: here.to(there),
        lambda there, here: there[here.long()],
        lambda there, here: there[there > 0],
        lambda there, here: there.copy_(here),
        lambda there, here: there.sum().item(),
        lambda there, here: (there > 0).nonzero(),
    ],
    ids=["to a device", "to a tensor's", "index", "mask", "copy_", "item", "nonzero"],
)
def test_what_waits_is_found(look: Any) -> None:
    """Or the test above would be green for ever."""
    there, here = torch.zeros(3, device="meta"), torch.zeros(3)
    with WaitsOnMeta() as waits, suppress(NotImplementedError, RuntimeError):  # what needs values can't be run here
        look(there, here)
    assert len(waits.found) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("window", [24, 32, 45])
@pytest.mark.parametrize("name", [*TASKS, "mgta"])
def test_a_step_on_a_gpu_never_waits_for_it(name: str, window: int) -> None:
    stage = build_stage(name).to("cuda").train()
    optimizer = SGDConfig().build(stage)
    batch = make_batch("cuda", window=window)
    take_step(stage, batch, optimizer)  # the first one may: plans of convolutions, memory
    with waiting_is_an_error():
        take_step(stage, batch, optimizer)
    assert all(parameter.isfinite().all() for parameter in stage.parameters())
