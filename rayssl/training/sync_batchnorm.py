"""BatchNorm over the batch of all workers: torch's on GPUs, and ours where torch has none, on CPUs."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rayssl.collectives import gather_rows, is_distributed


def synchronize_batchnorm(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Make every BatchNorm inside `modules` normalise by the whole group's batch; nothing changes with one worker.

    Layers are replaced in their containers but keep their parameter and buffer tensors, so that optimisers and
    checkpoints see the same numbers. A layer that several containers hold becomes one layer again in all of them, if
    all are given: left out, it would no longer follow the others between training and evaluation.

    Args:
        modules: On `device`; none a BatchNorm itself.
        device: Where they run.
    """
    if not is_distributed():
        return
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in [part for module in modules for part in module.modules()]:
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, GroupBatchNorm | nn.SyncBatchNorm):
                if child not in replaced:
                    replaced[child] = _synchronized(child, device)
                setattr(parent, name, replaced[child])


def _synchronized(layer: _BatchNorm, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
        return converted
    return GroupBatchNorm.sharing(layer)


class GroupBatchNorm(_BatchNorm):
    """BatchNorm whose statistics are those of all workers' batches, by a gather with gradient.

    Every worker must hold as many samples, as they do in training. In eval mode it is the plain layer.
    """

    @classmethod
    def sharing(cls, layer: _BatchNorm) -> "GroupBatchNorm":
        """Make one with the parameters and buffers of `layer`, the same tensors."""
        shared = cls(layer.num_features, layer.eps, layer.momentum, affine=False, track_running_stats=False)
        shared.affine, shared.track_running_stats = layer.affine, layer.track_running_stats
        shared.weight, shared.bias = layer.weight, layer.bias
        shared.running_mean, shared.running_var = layer.running_mean, layer.running_var
        shared.num_batches_tracked = layer.num_batches_tracked
        shared.training = layer.training
        return shared

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (N, C, ...) by mean and variance over all workers' N and all places."""
        if not self.training or not is_distributed():
            return super().forward(inputs)
        values = inputs.float()
        places = [0, *range(2, inputs.ndim)]
        # Mean and variance of equal shares combine without the cancellation of a sum of squares.
        shares = gather_rows(torch.stack([values.mean(places), values.var(places, unbiased=False)])[None])
        mean = shares[:, 0].mean(0)
        variance = shares[:, 1].mean(0) + (shares[:, 0] - mean).square().mean(0)
        self._update_running(mean.detach(), variance.detach(), len(shares) * inputs.numel() // inputs.shape[1])
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        shape = (1, -1, *[1] * (inputs.ndim - 2))
        result = (values - mean.view(shape)) * scale.view(shape)
        if self.affine:
            result = result + self.bias.view(shape)
        return result.to(inputs.dtype)

    def _update_running(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """As torch does: an exponential average, of the unbiased variance; a cumulative one without momentum."""
        if self.running_mean is None or self.running_var is None:
            return
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), momentum)

    def _check_input_dim(self, inputs: Tensor) -> None:
        """Any number of places, as nn.SyncBatchNorm."""
        if inputs.ndim < 2:
            raise ValueError(f"inputs: must have at least 2 dimensions, (N, C, ...), got {inputs.ndim}")
