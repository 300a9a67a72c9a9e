"""Which weights each stage of PSL moves, bit for bit, and its ablations as lists of stages."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rayssl.backbones import Backbone, ResNetConfig
from rayssl.methods import PSL, PSLConfig
from rayssl.tasks import TaskSetting
from rayssl.training.optimizers import SGDConfig
from rayssl.training.stage import frozen_unchanged

PAPER = [([1, 2, 3], 2), ([2, 3, 4], 4), ([3, 4, 5], 8)]
"""Blocks and angles of S1, S2 and S3 (sections 3.2 and 3.3.2)."""


def psl_config(stages: Sequence[tuple[list[int], int]] = PAPER, **fields: Any) -> PSLConfig:
    listed = [{"blocks": blocks, "epochs": 2, "level": {"angles": angles}} for blocks, angles in stages]
    return PSLConfig.model_validate({"task": {"name": "rotation"}, "stages": listed, **fields})


def make_method(config: PSLConfig, seed: int = 3) -> PSL:
    torch.manual_seed(0)
    encoder: Backbone = ResNetConfig(depth=18, width=4, stem="small").build()
    return config.build(encoder, TaskSetting(image_size=8, batch_size=8), seed=seed)


def states(method: PSL) -> list[dict[str, Tensor]]:
    """Parameters and buffers of B1..B5."""
    return [{name: t.clone() for name, t in block.state_dict().items()} for block in method.encoder.blocks]


def train_stage_briefly(method: PSL, index: int) -> list[set[str]]:
    """Train two steps with momentum and weight decay; give the names of what changed in B1..B5."""
    before = states(method)
    stage = method.build_stage(index).train()
    optimizer = SGDConfig(learning_rate=0.1, weight_decay=0.1).build(stage)
    generator = torch.Generator().manual_seed(index)
    with frozen_unchanged(stage):
        for _ in range(2):
            optimizer.zero_grad()
            targets = torch.randint(round(1 / stage.task.chance), (16,), generator=generator)
            stage(torch.randn(16, 3, 8, 8, generator=generator), targets).loss.backward()
            optimizer.step()
    return [
        {name for name, tensor in old.items() if not torch.equal(tensor, new[name])}
        for old, new in zip(before, states(method), strict=True)
    ]


def changed_blocks(method: PSL) -> list[list[int]]:
    """Numbers of the blocks that each stage changed: all parameters and buffers of a block, or none."""
    names = [set(state) for state in states(method)]
    changed = []
    for index in range(method.num_stages):
        found = train_stage_briefly(method, index)
        assert all(some in (set(), every) for some, every in zip(found, names, strict=True))
        changed.append([number for number, some in enumerate(found, start=1) if some])
    return changed


@pytest.mark.parametrize(
    ("stages", "fields", "expected"),
    [
        pytest.param(PAPER, {}, [[1, 2, 3], [2, 3, 4], [3, 4, 5]], id="PSL"),
        pytest.param([(blocks, 8) for blocks, _ in PAPER], {}, [[1, 2, 3], [2, 3, 4], [3, 4, 5]], id="SL"),
        pytest.param(PAPER, {"gradient": "full"}, [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]], id="PSL_f"),
        pytest.param([([1, 2, 3, 4, 5], 8)], {}, [[1, 2, 3, 4, 5]], id="end to end"),
        pytest.param([([1, 2], 2), ([3, 4], 4), ([5], 8)], {}, [[1, 2], [3, 4], [5]], id="greedy"),
    ],
)
def test_a_stage_changes_its_own_blocks_and_no_bit_of_the_others(
    stages: list[tuple[list[int], int]], fields: dict[str, str], expected: list[list[int]]
) -> None:
    """Tables 5 and 6: the paper's methods are lists of stages. Momentum and decay of earlier stages are gone, too."""
    assert changed_blocks(make_method(psl_config(stages, **fields))) == expected


def test_frozen_statistics_move_only_where_asked() -> None:
    method = make_method(psl_config(frozen_batchnorm="batch"))
    train_stage_briefly(method, 0)
    changed = train_stage_briefly(method, 1)
    buffers = {name for name, _ in method.encoder.blocks[0].named_buffers()}
    assert changed[0] == buffers
    assert changed[4] == set()


def test_blocks_carry_over_from_stage_to_stage() -> None:
    """No copy, no new weights: building a stage changes nothing of the encoder."""
    method = make_method(psl_config())
    train_stage_briefly(method, 0)
    before = states(method)
    stage = method.build_stage(1)
    for old, new in zip(before, states(method), strict=True):
        assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    assert list(stage.trained) == list(method.encoder.blocks[1:4])


def test_a_head_is_the_same_whether_or_not_earlier_stages_ran_in_this_process() -> None:
    """Otherwise a run that resumes in stage 3 would not be the run that was interrupted."""
    long = make_method(psl_config())
    for index in range(2):
        train_stage_briefly(long, index)
    torch.manual_seed(12345)
    resumed = make_method(psl_config())
    heads = [method.build_stage(2).head.state_dict() for method in (long, resumed)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_heads_differ_between_stages_and_between_seeds_and_leave_torchs_generator_alone() -> None:
    config = psl_config([(blocks, 4) for blocks in ([1, 2, 3], [1, 2, 3])])
    method = make_method(config)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second = (method.build_stage(index).head.state_dict()["weight"] for index in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(first, second)
    assert not torch.equal(first, make_method(config, seed=4).build_stage(0).head.state_dict()["weight"])


def test_a_head_has_the_channels_of_its_last_block_and_the_angles_of_its_level() -> None:
    method = make_method(psl_config())
    shapes = [tuple(method.build_stage(index).head.state_dict()["weight"].shape) for index in range(3)]
    assert shapes == [(2, 8), (4, 16), (8, 32)]


@pytest.mark.parametrize("scope", ["stage", "run"])
def test_a_schedule_knows_its_place_in_the_run(scope: str) -> None:
    """Three stages of 60, 70 and 70 epochs, as the contrastive tasks' (section 4.1)."""
    stages = [
        {"blocks": blocks, "epochs": epochs, "level": {"angles": 4}}
        for (blocks, _), epochs in zip(PAPER, [60, 70, 70], strict=True)
    ]
    config = PSLConfig.model_validate({"task": {"name": "rotation"}, "stages": stages, "schedule_scope": scope})
    method = make_method(config)
    starts = [method.schedule(index).progress(0, 0.0) for index in range(3)]
    halves = [method.schedule(index).progress(method.schedule(index).epochs // 2, 0.0) for index in range(3)]
    assert starts == pytest.approx([0, 0, 0] if scope == "stage" else [0, 60 / 200, 130 / 200])
    assert halves == pytest.approx([0.5, 0.5, 0.5] if scope == "stage" else [30 / 200, 95 / 200, 165 / 200])
    assert [method.schedule(index).epochs_before for index in range(3)] == [0, 60, 130]


@pytest.mark.parametrize(
    ("partition", "rule"),
    [
        ([[2, 3]], r"stages\.0\.blocks: must start at 1 or below"),
        ([[1, 2], [4, 5]], r"stages\.1\.blocks: must start at 3 or below, .* got \[4, 5\]"),
        ([[1, 2, 3], [1, 2]], r"stages\.1\.blocks: must end at 3 or above"),
        ([[1, 3]], "must follow one another upwards"),
        ([[3, 2, 1]], "must follow one another upwards"),
        ([[1, 1]], "must follow one another upwards"),
        ([[]], "at least 1 item"),
        ([[0, 1]], "greater than or equal to 1"),
        ([[1, 2, 3, 4, 5, 6]], "less than or equal to 5"),
        ([], "at least 1 item"),
    ],
)
def test_a_partition_that_can_not_be_trained_is_refused(partition: list[list[int]], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        psl_config([(blocks, 4) for blocks in partition])


@pytest.mark.parametrize("partition", [[[1]], [[1, 2, 3], [1, 2, 3]], [[1], [1, 2], [1, 2, 3]], [[1, 2], [2], [3]]])
def test_unusual_partitions_that_can_be_trained_are_taken(partition: list[list[int]]) -> None:
    method = make_method(psl_config([(blocks, 4) for blocks in partition]))
    assert changed_blocks(method) == partition
