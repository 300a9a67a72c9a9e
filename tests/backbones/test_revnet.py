"""RevNets against the same network under plain autograd, and against the paper's counts."""

import copy
import datetime
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn

from rayssl.backbones.reversible import ReversibleBlock, ReversibleUnit
from rayssl.backbones.revnet import Bottleneck, RevNet, RevNetConfig


def twins(depth: int = 50, width: int = 8) -> tuple[RevNet, RevNet]:
    """A small RevNet in float64 that rebuilds activations, and the same one under plain autograd.

    BatchNorm's statistics and shifts are random: fresh ones leave exact zeros, where ReLU's slope hangs on rounding.
    """
    torch.manual_seed(0)
    rebuilding = RevNet(depth, width=width, stem="small").double()
    for module in rebuilding.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(1, 2)
    plain = RevNet(depth, width=width, stem="small", reversible=False).double()
    plain.load_state_dict(rebuilding.state_dict())
    return rebuilding, plain


def pictures(count: int = 4, side: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random images, the same ones every time."""
    return torch.randn(count, 3, side, side, dtype=dtype, generator=torch.Generator().manual_seed(1))


def loss_of(features: Tensor) -> Tensor:
    """A loss whose slope differs at every element."""
    weights = torch.randn(features.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return (features.double() * weights).sum()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """By parameter; those without one are left out."""
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def assert_same_gradients(network: nn.Module, reference: nn.Module) -> None:
    """In norm, relative 1e-8, by every parameter."""
    ours, theirs = gradients(network), gradients(reference)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-8 * gradient.norm(), name


def assert_same_buffers(network: nn.Module, reference: nn.Module) -> None:
    """Bit for bit."""
    for (name, ours), theirs in zip(network.named_buffers(), reference.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


# Layout


def test_revnet50_has_the_papers_channels_and_parameters() -> None:
    """Spec 1: filters 128 / 128, 256, 512, 832 (x4), 24,224,128 parameters without classifier."""
    with torch.device("meta"):
        backbone = RevNetConfig().build()
    assert backbone.block_channels == (128, 512, 1024, 2048, 3328)
    assert sum(p.numel() for p in backbone.parameters()) == 24_224_128


def test_a_deeper_revnet_has_eight_more_units_in_its_fourth_block() -> None:
    """Gomez et al.'s counterpart of ResNet-101 is 2-2-11-2; a unit's size is counted by hand."""
    function = 2 * (1024 + 256 + 256) + 1024 * 256 + 9 * 256 * 256 + 256 * 1024
    with torch.device("meta"):
        backbone = RevNet(101)
    assert sum(p.numel() for p in backbone.parameters()) == 24_224_128 + 8 * 2 * function


@pytest.mark.parametrize(
    ("stem", "side", "sides"), [("imagenet", 224, [112, 56, 28, 14, 7]), ("small", 32, [32, 32, 16, 8, 4])]
)
def test_blocks_give_maps_of_the_papers_sizes(stem: str, side: int, sides: list[int]) -> None:
    backbone = RevNet(50, width=8, stem=stem).eval()
    images = pictures(1, side, torch.float32)
    for block, (channels, expected) in enumerate(zip((8, 32, 64, 128, 208), sides, strict=True), start=1):
        assert backbone(images, block).shape == (1, channels, expected, expected)


def test_state_dict_has_the_same_keys_either_way() -> None:
    rebuilding, plain = twins()
    assert list(rebuilding.state_dict()) == list(plain.state_dict())


def test_a_copy_is_whole_and_its_blocks_are_its_own() -> None:
    backbone = RevNet(50, width=8, stem="small")
    twin = copy.deepcopy(backbone)
    twin(pictures(dtype=torch.float32)).sum().backward()
    assert gradients(twin).keys() == dict(backbone.named_parameters()).keys()
    assert not gradients(backbone)


# Gradients and statistics


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("depth", [50, 101])
def test_gradients_and_statistics_are_those_of_plain_autograd(depth: int, training: bool) -> None:
    """By parameters and images; running statistics move once a step although layers run twice."""
    rebuilding, plain = twins(depth)
    images = [pictures().requires_grad_() for _ in range(2)]
    for network, own in zip((rebuilding, plain), images, strict=True):
        loss_of(network.train(training)(own)).backward()
    ours, theirs = images[0].grad, images[1].grad
    assert ours is not None and theirs is not None
    assert (ours - theirs).norm() <= 1e-8 * theirs.norm()
    assert len(gradients(plain)) == len(list(plain.parameters()))
    assert_same_gradients(rebuilding, plain)
    assert_same_buffers(rebuilding, plain)
    counts = [buffer.item() for name, buffer in rebuilding.named_buffers() if name.endswith("num_batches_tracked")]
    assert set(counts) == {int(training)}


def test_two_forward_passes_may_come_before_one_backward_pass() -> None:
    """As in a Siamese method: each pass rebuilds its own activations."""
    rebuilding, plain = twins()
    first, second = pictures(8).chunk(2)
    for network in (rebuilding, plain):
        loss_of(network(first) * network(second).tanh()).backward()
    assert_same_gradients(rebuilding, plain)
    assert_same_buffers(rebuilding, plain)


def test_a_graph_that_is_retained_can_be_walked_twice() -> None:
    rebuilding, plain = twins()
    for network in (rebuilding, plain):
        loss = loss_of(network(pictures()))
        loss.backward(retain_graph=True)
        loss.backward()
    assert_same_gradients(rebuilding, plain)


def test_a_mode_changed_before_the_backward_pass_does_not_change_it() -> None:
    rebuilding, plain = twins()
    loss = loss_of(rebuilding(pictures()))
    rebuilding.eval()
    loss.backward()
    loss_of(plain(pictures())).backward()
    assert_same_gradients(rebuilding, plain)
    assert not any(module.training for module in rebuilding.modules())


def test_frozen_layers_get_no_gradient() -> None:
    """A PSL stage: B1 and B2 under no_grad, B3 and half of B4 trained."""
    rebuilding, plain = twins()
    for network in (rebuilding, plain):
        network.layer3.units[1].requires_grad_(False)
        with torch.no_grad():
            below = network(pictures(), 2)
        loss_of(network.blocks[3](network.blocks[2](below))).backward()
    assert gradients(rebuilding)
    assert_same_gradients(rebuilding, plain)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_features_without_a_graph_are_the_same(context: type[torch.no_grad] | type[torch.inference_mode]) -> None:
    rebuilding, plain = twins()
    with context():
        assert torch.equal(rebuilding(pictures()), plain(pictures()))
    assert_same_buffers(rebuilding, plain)


def test_channels_last_is_kept_and_changes_no_gradient() -> None:
    rebuilding, plain = twins()
    rebuilding.to(memory_format=torch.channels_last)
    features = rebuilding(pictures().to(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)
    loss_of(features).backward()
    loss_of(plain(pictures())).backward()
    assert_same_gradients(rebuilding, plain)


class CountingNorm(nn.BatchNorm2d):
    """A BatchNorm with a forward pass of its own, which always updates, as a synchronised one might."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None and self.running_mean is not None
        self.num_batches_tracked = self.num_batches_tracked + 1
        self.running_mean.lerp_(input.detach().mean((0, 2, 3)), 0.5)
        return nn.functional.batch_norm(input, None, None, self.weight, self.bias, training=True)


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm, CountingNorm])
def test_statistics_of_other_batch_norms_move_once_too(norm: type[nn.BatchNorm2d]) -> None:
    rebuilding, plain = twins()
    for network in (rebuilding, plain):
        for module in list(network.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.BatchNorm2d:
                    setattr(module, name, norm(child.num_features).double())
        loss_of(network.layer2(network.layer1(network.conv1(pictures())))).backward()
    assert_same_gradients(rebuilding, plain)
    assert_same_buffers(rebuilding, plain)
    assert rebuilding.state_dict()["layer1.0.g.bn1.num_batches_tracked"] == 1


def test_weights_changed_before_the_backward_pass_are_noticed() -> None:
    """Plain autograd refuses as well; rerunning layers with other weights would be wrong without a word."""
    rebuilding, _ = twins()
    loss = loss_of(rebuilding(pictures()))
    with torch.no_grad():
        rebuilding.get_parameter("layer2.1.f.conv2.weight").mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Units


def test_the_inverse_of_a_unit_gives_its_inputs_back() -> None:
    torch.manual_seed(0)
    unit = ReversibleUnit(Bottleneck(8, 8), Bottleneck(8, 8)).double()
    halves = torch.randn(2, 4, 8, 6, 6, dtype=torch.float64).unbind()
    with torch.no_grad():
        rebuilt = unit.inverse(*unit(*halves))
    for original, half in zip(halves, rebuilt, strict=True):
        torch.testing.assert_close(half, original, rtol=1e-12, atol=1e-12)


def test_only_the_first_unit_of_a_block_may_change_channels() -> None:
    plain = ReversibleUnit(nn.Identity(), nn.Identity())
    projecting = ReversibleUnit(nn.Identity(), nn.Identity(), (nn.Identity(), nn.Identity()))
    with pytest.raises(ValueError, match=r"units\.1: only the first unit of a block may have shortcuts"):
        ReversibleBlock([plain, projecting])
    with pytest.raises(ValueError, match="can't be inverted"):
        projecting.inverse(torch.zeros(1), torch.zeros(1))


# Mixed precision


def test_rebuilding_adds_nothing_to_the_rounding_of_bfloat16() -> None:
    """The residual stream stays in float32: next to bfloat16's own error, the difference to plain autograd is small."""
    exact = twins()[1]
    loss_of(exact(pictures())).backward()
    found = []
    for network in twins():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = network.float()(pictures(dtype=torch.float32))
        assert features.dtype == torch.float32
        loss_of(features).backward()
        found.append(torch.cat([gradient.flatten() for gradient in gradients(network).values()]))
    truth = torch.cat([gradient.flatten() for gradient in gradients(exact).values()])
    assert all(gradient.isfinite().all() for gradient in found)
    assert (found[0] - found[1]).norm() < 0.01 * (found[1] - truth).norm()


def test_autocast_caches_no_weight_that_lost_its_gradient() -> None:
    """A layer that is used by a rebuilding block and plainly, under one autocast, gets both gradients."""
    shared = nn.Conv2d(4, 4, 1)
    block = ReversibleBlock([ReversibleUnit(shared, nn.Conv2d(4, 4, 1))])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rebuilt, plainly = block(torch.ones(1, 8, 2, 2)).sum(), shared(torch.ones(1, 4, 2, 2)).sum()
    only_plainly = torch.autograd.grad(plainly, shared.weight)[0]
    assert torch.equal(only_plainly, torch.full((4, 4, 1, 1), 4.0))
    assert torch.autograd.grad(rebuilt, shared.weight)[0].ne(0).all()


# Memory


def stored_bytes(network: nn.Module, images: Tensor) -> int:
    """What a forward pass keeps for the backward pass, weights and statistics not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*network.parameters(), *network.buffers()]}
    stored: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        features = network(images)
    assert features.requires_grad
    return sum(stored.values())


def test_stored_activations_do_not_grow_with_depth() -> None:
    images = pictures(2, 32, torch.float32)
    sizes = {
        (depth, reversible): stored_bytes(RevNet(depth, width=8, stem="small", reversible=reversible), images)
        for depth in (50, 101)
        for reversible in (True, False)
    }
    assert sizes[101, True] < 1.1 * sizes[50, True]
    assert sizes[101, False] > 1.4 * sizes[50, False]
    assert sizes[50, True] < 0.3 * sizes[50, False]


# Distributed


def test_ddp_sees_every_gradient() -> None:
    """DDP waits for each parameter's hook and fails the next step if one did not fire; the world is one process."""
    rebuilding, plain = twins()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        wrapped = nn.parallel.DistributedDataParallel(rebuilding)
        for network in (wrapped, wrapped, plain, plain):
            loss_of(network(pictures())).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert_same_gradients(rebuilding, plain)


def backward_in_a_worker(rank: int, port: int, folder: Path) -> None:
    """One of two DDP workers: its half of the pictures, its gradients to a file."""
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, rank == 0, datetime.timedelta(seconds=30))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, store=store)
    network = twins()[0]
    wrapped = nn.parallel.DistributedDataParallel(network)
    loss_of(wrapped(pictures(8).chunk(2)[rank])).backward()
    torch.save(gradients(network), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ddp_workers_get_the_mean_of_their_gradients(tmp_path: Path) -> None:
    """Two processes over gloo, against plain autograd on each half of the batch, one after the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(backward_in_a_worker, (port, tmp_path), nprocs=2)
    plain = twins()[1]
    for half in pictures(8).chunk(2):
        loss_of(plain(half)).div(2).backward()
    for rank in range(2):
        ours = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, gradient in gradients(plain).items():
            assert (ours[name] - gradient).norm() <= 1e-8 * gradient.norm(), name
