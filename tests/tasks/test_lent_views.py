"""Views lie in memory that is used again: never while anything looks at them, and at once if nothing does."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl.data.augment import Draws
from rayssl.methods.mgta_stage import AutoEncoderTask
from rayssl.tasks import JigsawConfig, MoCoConfig, RotationConfig, SimCLRConfig, SupervisedConfig
from rayssl.tasks.augmented_views import AugmentationLevel
from rayssl.tasks.base import TaskSetting
from tests.tasks.task_batches import as_batch

SIDE, COUNT = 32, 4
SETTING = TaskSetting(image_size=SIDE, batch_size=COUNT, classes=("a", "b"))
TASKS = {
    "jigsaw": lambda: build(JigsawConfig(grid=2), {"num_permutations": 20}),
    "rotation": lambda: build(RotationConfig(), {"angles": 4}),
    "rotation in discs": lambda: build(RotationConfig(corners="mask"), {"angles": 4}),
    "simclr": lambda: build(SimCLRConfig(), {}),
    "moco": lambda: build(MoCoConfig(queue_size=COUNT, batchnorm_splits=1), {}),
    "supervised": lambda: build(SupervisedConfig(), {}),
    "mgta": lambda: AutoEncoderTask(AugmentationLevel(), image_size=SIDE),
}


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Permutations are kept away from the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def build(config: Any, level: object) -> Any:
    return config.build(config.parse_level(level), SETTING)


def views_of(task: Any, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    windows = torch.randint(256, (COUNT, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    views: Tensor = task.make_views(as_batch(windows, Draws(0, 0, step, batch_size=COUNT))).inputs
    return views


@pytest.mark.parametrize("name", TASKS)
def test_views_stay_as_they_are_while_a_part_of_them_is_in_use(name: str) -> None:
    task = TASKS[name]()
    parts, copies = [], []
    for step in range(4):
        parts.append(views_of(task, step)[1:, 1])
        copies.append(parts[-1].clone())
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_the_next_step_gets_the_memory_of_views_that_are_gone(name: str) -> None:
    """And the views of a task that has never made any."""
    task = TASKS[name]()
    places = set()
    for step in range(3):
        views = views_of(task, step)
        assert views.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(views, views_of(TASKS[name](), step))
        places.add(views.data_ptr())
        del views
    assert len(places) == 1
