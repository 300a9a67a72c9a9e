"""Weights in and out: torchvision's files, wrapped ones, spoiled ones, and encoders that load where rayssl is not."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from rayssl.backbones import AnyBackbone, ResNetConfig, RevNetConfig, load_weights
from rayssl.errors import CheckpointError
from rayssl.tracking import MLflowTracker


@pytest.fixture(scope="module")
def peer() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


@pytest.mark.parametrize("form", ["plain", "wrapped", "distributed", "encoder alone"])
def test_torchvisions_weights_give_torchvisions_features(peer: nn.Module, form: str, tmp_path: Path) -> None:
    state = peer.state_dict()
    if form == "encoder alone":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    if form == "distributed":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": state, "epoch": 3} if form == "wrapped" else state, tmp_path / "weights.pth")
    encoder = ResNetConfig(depth=18).build().eval()
    load_weights(encoder, tmp_path / "weights.pth")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = peer.fc(encoder(images).mean((2, 3)))  # type: ignore[operator]
        torch.testing.assert_close(logits, peer(images))


def test_an_encoder_loads_into_plain_torchvision(tmp_path: Path) -> None:
    """Strictly, but for the classifier."""
    torch.save(ResNetConfig(depth=50).build().state_dict(), tmp_path / "encoder.pt")
    resnet = torchvision.models.resnet50()
    resnet.fc = nn.Identity()
    resnet.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True), strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing", "does not exist"),
        (b"no archive", "holds something other than tensors|can't be read"),
        ([1, 2], "must hold a network's state_dict"),
        ({"a": nn.Linear(1, 1)}, "holds something other than tensors"),
        ({"conv1.weight": torch.zeros(1)}, r"another network.*missing: bn1.weight, .*of another size: conv1.weight"),
        ({"strange": torch.zeros(1)}, r"unknown: strange"),
    ],
    ids=["missing", "no archive", "a list", "code", "another size", "other names"],
)
def test_a_file_of_other_content_is_refused(content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content != "nothing":
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=message):
        load_weights(ResNetConfig(depth=18, width=4, stem="small").build(), file)


LOAD = """
import sys; sys.modules["rayssl"] = None
import mlflow.pytorch, torch
images, expected = torch.load(sys.argv[2], weights_only=True)
assert torch.allclose(mlflow.pytorch.load_model(sys.argv[1])(images), expected, atol=1e-5)
"""


@pytest.mark.parametrize(
    "config",
    [ResNetConfig(depth=18, width=4, stem="small"), RevNetConfig(width=8, stem="small")],
    ids=["resnet", "revnet"],
)
@pytest.mark.filterwarnings("ignore")  # MLflow's, about pickle
def test_the_recorded_model_loads_where_rayssl_is_not_installed(config: AnyBackbone, tmp_path: Path) -> None:
    encoder = config.build().eval()
    tracker = MLflowTracker.open(tmp_path, uri=f"sqlite:///{tmp_path}/mlflow.db", notify=warnings.warn)
    tracker.log_model(encoder.portable(), "encoder")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.save((images, encoder(images)), tmp_path / "expected.pt")
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(tmp_path / "encoder"), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
