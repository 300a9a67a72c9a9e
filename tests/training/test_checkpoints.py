"""Checkpoints come back as they were written, whole or not at all, and never run code."""

import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rayssl.errors import CheckpointError
from rayssl.training.checkpoints import Checkpoint, Cursor, load_checkpoint, save_checkpoint


def trained(seed: int = 0) -> Checkpoint:
    """A checkpoint with everything that one can hold."""
    torch.manual_seed(seed)
    network, head = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), nn.Linear(3, 2)
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        head(network(torch.randn(5, 4))).square().sum().backward()
        optimizer.step()
    return Checkpoint(
        Cursor(1, 2),
        network.state_dict(),
        method={"labels": torch.tensor([3, 1, 2])},
        head=head.state_dict(),
        optimizer=optimizer.state_dict(),
        history=[{"stage": 1, "epoch": 1, "loss": 0.1 + 0.2}],
        config={"name": "run", "seed": 3, "method": {"stages": [{"blocks": [1, 2]}]}},
    )


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    checkpoint = trained()
    save_checkpoint(checkpoint, tmp_path / "some" / "where")
    found = load_checkpoint(tmp_path / "some" / "where")
    assert (found.cursor, found.history, found.config) == (checkpoint.cursor, checkpoint.history, checkpoint.config)
    assert_same_tensors(found.backbone, checkpoint.backbone)
    assert_same_tensors(found.method, checkpoint.method)
    assert_same_tensors(found.head, checkpoint.head)
    assert found.optimizer["param_groups"] == checkpoint.optimizer["param_groups"]
    for index, state in checkpoint.optimizer["state"].items():
        assert torch.equal(found.optimizer["state"][index]["momentum_buffer"], state["momentum_buffer"])


def test_an_optimiser_goes_on_from_its_state_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def step(weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        weight.grad = weight.detach() - 1
        optimizer.step()

    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    step(weight, optimizer)
    save_checkpoint(Checkpoint(Cursor(), {"w": weight.detach()}, optimizer=optimizer.state_dict()), tmp_path / "c")
    step(weight, optimizer)

    found = load_checkpoint(tmp_path / "c")
    twin = nn.Parameter(found.backbone["w"])
    resumed = torch.optim.SGD([twin], lr=0.1, momentum=0.9)
    resumed.load_state_dict(found.optimizer)
    step(twin, resumed)
    assert torch.equal(twin, weight)


def test_a_newer_checkpoint_of_the_same_name_replaces_the_older_one(tmp_path: Path) -> None:
    save_checkpoint(trained(seed=0), tmp_path / "c")
    (tmp_path / "c" / "stray").touch()
    newer = trained(seed=1)
    save_checkpoint(newer, tmp_path / "c")
    assert_same_tensors(load_checkpoint(tmp_path / "c").backbone, newer.backbone)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["checkpoint.json", "tensors.pt"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_crash_before_the_renaming_leaves_what_was_there(
    tmp_path: Path, exists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power fails while the second file is written: the folder is the old one, or there is none; then it works."""
    old = trained(seed=0)
    if exists:
        save_checkpoint(old, tmp_path / "c")

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(trained(seed=1), tmp_path / "c")
    assert (tmp_path / "c.partial" / "tensors.pt").exists()
    assert (tmp_path / "c").exists() == exists
    if exists:
        assert_same_tensors(load_checkpoint(tmp_path / "c").backbone, old.backbone)
    save_checkpoint(trained(seed=1), tmp_path / "c")
    assert_same_tensors(load_checkpoint(tmp_path / "c").backbone, trained(seed=1).backbone)
    assert not (tmp_path / "c.partial").exists()


def test_no_reader_ever_sees_half_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after every renaming and deleting the folder holds one whole checkpoint, or is not there."""
    save_checkpoint(trained(seed=0), tmp_path / "c")
    wholes = [trained(seed=seed).backbone["0.weight"] for seed in (0, 1)]
    looks: list[list[bool]] = []

    def look() -> None:
        if (tmp_path / "c").exists():
            weight = load_checkpoint(tmp_path / "c").backbone["0.weight"]
            looks.append([torch.equal(weight, whole) for whole in wholes])

    rename, unlink = os.rename, os.unlink

    def watched(function: object) -> object:
        def call(*arguments: object, **options: object) -> None:
            look()
            function(*arguments, **options)  # type: ignore[operator]
            look()

        return call

    monkeypatch.setattr(os, "rename", watched(rename))
    monkeypatch.setattr(os, "unlink", watched(unlink))
    save_checkpoint(trained(seed=1), tmp_path / "c")
    assert looks[0] == [True, False] and looks[-1] == [False, True]
    assert all(sum(seen) == 1 for seen in looks)


def test_a_flipped_bit_is_never_loaded_as_a_weight(tmp_path: Path) -> None:
    """Anywhere in the file: refused with the folder's name, or harmless (the gaps that align the tensors)."""
    checkpoint = trained()
    save_checkpoint(checkpoint, tmp_path / "c")
    content = (tmp_path / "c" / "tensors.pt").read_bytes()
    places = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[places.randrange(len(content))] ^= 1 << places.randrange(8)
        (tmp_path / "c" / "tensors.pt").write_bytes(damaged)
        try:
            found = load_checkpoint(tmp_path / "c")
        except CheckpointError as error:
            assert str(error).startswith(f"{tmp_path / 'c'}: ")
            refused += 1
        else:
            assert_same_tensors(found.backbone, checkpoint.backbone)
    assert refused > 50


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    """0: what a full disk leaves."""
    save_checkpoint(trained(), tmp_path / "c")
    content = (tmp_path / "c" / "tensors.pt").read_bytes()
    (tmp_path / "c" / "tensors.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"c: can't be read \(.+\)\. If there is no other"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("name", ["checkpoint.json", "tensors.pt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    save_checkpoint(trained(), tmp_path / "c")
    (tmp_path / "c" / name).unlink()
    with pytest.raises(CheckpointError, match=f"c: is no checkpoint, {name} is missing"):
        load_checkpoint(tmp_path / "c")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: is no checkpoint"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "", "[]", "3", "{}", '{"format": 2}', '{"format": 3}', "null", "\x00"])
def test_json_that_says_something_else_is_refused(tmp_path: Path, text: str) -> None:
    save_checkpoint(trained(), tmp_path / "c")
    (tmp_path / "c" / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match="c: "):
        load_checkpoint(tmp_path / "c")


def test_a_later_format_is_named_even_if_its_files_are_others(tmp_path: Path) -> None:
    save_checkpoint(trained(), tmp_path / "c")
    (tmp_path / "c" / "tensors.pt").unlink()
    (tmp_path / "c" / "checkpoint.json").write_text(json.dumps({"format": 4}))
    with pytest.raises(CheckpointError, match="must be of format 3, got 4"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    "content", [[1], {"backbone": {}}, dict.fromkeys(("backbone", "head", "method", "optimizer", "more"), {})]
)
def test_tensors_under_other_names_are_refused(tmp_path: Path, content: object) -> None:
    save_checkpoint(trained(), tmp_path / "c")
    torch.save(content, tmp_path / "c" / "tensors.pt")
    with pytest.raises(CheckpointError, match="must hold backbone, head, method, optimizer"):
        load_checkpoint(tmp_path / "c")


class Malicious:
    """Unpickled, it makes a folder; harmless, but it could be anything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("archived", [True, False])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, archived: bool) -> None:
    """Inside torch's archive and as a bare pickle; and the message does not say how to run it after all."""
    save_checkpoint(trained(), tmp_path / "c")
    content = {"backbone": Malicious(tmp_path / "owned"), "head": {}, "optimizer": {}}
    if archived:
        torch.save(content, tmp_path / "c" / "tensors.pt")
        assert zipfile.is_zipfile(tmp_path / "c" / "tensors.pt")
    else:
        (tmp_path / "c" / "tensors.pt").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "c")
    assert str(caught.value).startswith(f"{tmp_path / 'c'}: ")
    assert "weights_only" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert not (tmp_path / "owned").exists()
    shutil.rmtree(tmp_path / "c")
