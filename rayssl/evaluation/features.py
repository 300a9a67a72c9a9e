"""Features of a frozen encoder: block by block, pooled, checked to leave it alone, and described in numbers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import exp, isqrt, nan, sqrt
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayssl.backbones import NUM_BLOCKS, Backbone
from rayssl.errors import ConfigError

_Name = TypeVar("_Name")

_GOYAL_POOLING = {  # block: ((channels, side) of the map at 224 px, (kernel, stride, padding))
    1: ((64, 112), (10, 10, 4)),
    2: ((256, 56), (16, 8, 0)),
    3: ((512, 28), (13, 5, 0)),
    4: ((1024, 14), (8, 3, 0)),
    5: ((2048, 7), (6, 1, 0)),
}
MOST_FEATURES = 9216
"""Of a block, after pooling (Goyal et al. 2019)."""


def run_blocks(backbone: Backbone, images: Tensor, *, last_block: int = NUM_BLOCKS) -> list[Tensor]:
    """Run B1 up to `last_block` and keep every block's map. Mode and autograd are the caller's business.

    Args:
        backbone: The encoder.
        images: Normalised pictures, (N, 3, S, S).
        last_block: 1..5; the blocks above are not run.

    Returns:
        The maps of B1..`last_block`, each (N, C, H, W).

    Raises:
        ValueError: If `last_block` is not one of 1..5.
    """
    if not 1 <= last_block <= NUM_BLOCKS:
        raise ValueError(f"last_block: must be 1..{NUM_BLOCKS}, got {last_block}")
    return list(_feature_maps(backbone, images, last_block))


def extract_features(
    backbone: Backbone,
    batches: Iterable[Tensor],
    *,
    blocks: Sequence[int],
    pool: Callable[[Tensor, int], Tensor],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    num_images: int | None = None,
) -> dict[int, Tensor]:
    """Pooled features of whole data sets, in eval mode and without autograd; the encoder's mode is restored.

    Args:
        backbone: The encoder, on `device`.
        batches: Normalised pictures, (N, 3, S, S) each.
        blocks: Which blocks, of 1..5; nothing above the highest is run.
        pool: Turns a block's map (N, C, H, W) and the block's number into features (N, F).
        device: Where the encoder runs.
        dtype: How the features are kept; float16 halves the memory and holds values up to 65,504.
        num_images: Pictures in all batches together. If given, the result is allocated once; otherwise the
            batches' features and the result are held at the same time.

    Returns:
        For each block (num_images, F) on the CPU, rows in the order of the pictures.

    Raises:
        ValueError: If a block is not one of 1..5, there are no batches, or not `num_images` pictures.
    """
    if not blocks or not set(blocks) <= set(range(1, NUM_BLOCKS + 1)):
        raise ValueError(f"blocks: must be some of 1..{NUM_BLOCKS}, got {list(blocks)}")
    rows = _Rows(num_images, dtype)
    pool_batches(backbone, batches, wanted={block: (block, pool) for block in blocks}, device=device, keep=rows.append)
    return rows.collect()


def pool_batches(
    backbone: Backbone,
    batches: Iterable[Tensor],
    *,
    wanted: Mapping[_Name, tuple[int, Callable[[Tensor, int], Tensor]]],
    device: torch.device | str,
    keep: Callable[[dict[_Name, Tensor]], None],
) -> None:
    """Run an encoder once and hand on several kinds of features, in eval mode and without autograd.

    Args:
        backbone: The encoder, on `device`; its mode is restored.
        batches: Normalised pictures, (N, 3, S, S) each.
        wanted: Name -> the block, 1..5, and what turns its map (N, C, H, W) and its number into features (N, F).
        device: Where the encoder runs.
        keep: Called with the features of each batch, name -> (N, F) on `device`.
    """
    last_block = max(block for block, _ in wanted.values())
    with _eval_mode(backbone):
        for images in batches:
            # Entered batch by batch: inference mode must leak neither into the caller's generator nor into the
            # result, which linear heads are trained on.
            with torch.inference_mode():
                maps = _feature_maps(backbone, images.to(device), last_block)
                pooled = {
                    name: pool(map_, block)
                    for block, map_ in enumerate(maps, start=1)
                    for name, (own_block, pool) in wanted.items()
                    if own_block == block
                }
            keep(pooled)


def pool_block(feature_map: Tensor, block: int, *, max_features: int = MOST_FEATURES) -> Tensor:
    """Reduce a block's map to at most about 9,200 features, as Goyal et al. 2019 do for their linear probes.

    A ResNet-50's maps of 224 px views get the paper's average pooling: 9216 / 9216 / 8192 / 9216 / 8192 features for
    B1..B5. Maps of any other size or width are averaged adaptively to the side floor(sqrt(9216 / C)), at least 1 and
    never more than the map's own side: a larger one would only repeat cells. B1's padding counts as zeros in the
    averages, PyTorch's default and what VISSL does; Goyal's Caffe2 code leaves it out. The two differ by a fixed
    factor for each border cell.

    Args:
        feature_map: (N, C, H, W).
        block: 1..5.
        max_features: Another number than the papers' 9216 averages adaptively at every size.

    Returns:
        (N, F), F = C times the cells of the pooled map; channel by channel, rows of cells within.

    Raises:
        ValueError: If `block` is not one of 1..5.
    """
    if block not in _GOYAL_POOLING:
        raise ValueError(f"block: must be 1..{NUM_BLOCKS}, got {block}")
    (paper_channels, paper_side), (kernel, stride, padding) = _GOYAL_POOLING[block]
    channels, height, width = feature_map.shape[1:]
    is_paper_size = (channels, height, width) == (paper_channels, paper_side, paper_side)
    if is_paper_size and max_features == MOST_FEATURES:
        return functional.avg_pool2d(feature_map, kernel, stride, padding).flatten(1)
    side = max(1, isqrt(max_features // channels))
    return functional.adaptive_avg_pool2d(feature_map, (min(side, height), min(side, width))).flatten(1)


def cache_dtype(num_images: int, num_features: int, *, limit_gib: float) -> torch.dtype:
    """Decide how precisely features are kept so that they fit in memory: float32, or else float16.

    Args:
        num_images: Pictures, training and test together.
        num_features: Features of a picture, all blocks together.
        limit_gib: Most memory, in GiB.

    Raises:
        ConfigError: If float16 does not fit either.
    """
    for dtype in (torch.float32, torch.float16):
        if num_images * num_features * dtype.itemsize <= limit_gib * 2**30:
            return dtype
    needed = num_images * num_features * torch.float16.itemsize / 2**30
    raise ConfigError(
        f"feature_cache_gib: {num_images:,} pictures with {num_features:,} features each take {needed:.1f} GiB "
        f"in float16, the limit is {limit_gib:g}. Raise it, set train_limit, or name fewer blocks."
    )


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Check that a module leaves the context as it entered it: every parameter and buffer, bit for bit.

    Train/eval modes and `requires_grad` flags are put back as they were, also after an exception. While the
    context is open, the tensors are held twice.

    Raises:
        RuntimeError: If a tensor changed, appeared or vanished; that is our bug, not a user's mistake.
    """
    before = {name: tensor.detach().clone() for name, tensor in _tensors(module)}
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    with _modes_kept(module):
        try:
            yield
        finally:
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)
    after = dict(_tensors(module))
    changed = sorted(before.keys() ^ after.keys())
    changed += [name for name in before.keys() & after.keys() if not _same_bits(before[name], after[name])]
    if changed:
        raise RuntimeError(f"an evaluation changed tensors of the encoder: {', '.join(sorted(changed))}")


def feature_statistics(features: Tensor) -> dict[str, float]:
    """Signs of collapse: how much features vary, and in how many directions.

    Args:
        features: (N, D), at least one row.

    Returns:
        `std`: The standard deviation over the pictures of the L2-normalised features, averaged over the D dimensions,
            times sqrt(D) (Chen and He 2021, SimSiam, section 4.1). About 1 for isotropic features, 0 for collapsed
            ones; features that are never negative lie between, as their common mean takes part of the norm.
        `effective_rank`: exp of the entropy, in nats, of the singular values divided by their sum (RankMe, Garrido
            et al. 2023, equation 1; Roy and Vetterli 2007). Of the *centred* features, unlike RankMe's, whose mean
            counts as one more direction; and without RankMe's added 1e-7. From 1 to min(N - 1, D); 0 if all rows
            are the same.
        Both are nan if a feature is not finite.

    Raises:
        ValueError: If there are no features.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features: must be (N, D) with N and D at least 1, got {tuple(features.shape)}")
    features = features.double()
    if not features.isfinite().all():
        return {"std": nan, "effective_rank": nan}
    deviations = functional.normalize(features, dim=1).std(dim=0, correction=0)
    return {"std": deviations.mean().item() * sqrt(features.shape[1]), "effective_rank": _effective_rank(features)}


def _effective_rank(features: Tensor) -> float:
    centred = features - features.mean(dim=0)
    # The eigenvalues of the smaller Gram matrix are the squared singular values, at a fraction of an SVD's cost.
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    energies = torch.linalg.eigvalsh(gram).clamp(min=0)
    rounding = torch.finfo(torch.float64).eps
    if energies.max() <= rounding * features.square().sum():
        return 0.0
    energies = energies.where(energies > len(energies) * rounding * energies.max(), 0.0)
    singular_values = energies.sqrt()
    return exp(torch.special.entr(singular_values / singular_values.sum()).sum().item())


def _feature_maps(backbone: Backbone, images: Tensor, last_block: int) -> Iterator[Tensor]:
    """The maps one at a time, so that a caller who pools them never holds all."""
    features = images
    for block in backbone.blocks[:last_block]:
        features = block(features)
        yield features


class _Rows:
    """Features of batch after batch, per block: in place if their number is known, else joined at the end."""

    def __init__(self, num_rows: int | None, dtype: torch.dtype) -> None:
        self._num_rows = num_rows
        self._dtype = dtype
        self._whole: dict[int, Tensor] = {}
        self._parts: dict[int, list[Tensor]] = {}
        self._filled = 0

    def append(self, pooled: dict[int, Tensor]) -> None:
        start = self._filled
        self._filled += len(next(iter(pooled.values())))
        for block, features in pooled.items():
            if self._num_rows is None:
                self._parts.setdefault(block, []).append(features.to("cpu", self._dtype))
                continue
            if self._filled > self._num_rows:
                raise ValueError(f"num_images: the batches hold more than the {self._num_rows} pictures announced")
            if block not in self._whole:
                self._whole[block] = torch.empty(self._num_rows, features.shape[1], dtype=self._dtype)
            self._whole[block][start : self._filled].copy_(features)

    def collect(self) -> dict[int, Tensor]:
        if self._filled == 0:
            raise ValueError("batches: must hold at least one picture")
        if self._num_rows is None:
            return {block: torch.cat(parts) for block, parts in self._parts.items()}
        if self._filled < self._num_rows:
            raise ValueError(f"num_images: {self._num_rows} pictures were announced, the batches hold {self._filled}")
        return self._whole


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    with _modes_kept(module):
        module.eval()
        yield


@contextmanager
def _modes_kept(module: nn.Module) -> Iterator[None]:
    """Restore train or eval mode part by part: frozen blocks of a training network are in eval mode."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _same_bits(before: Tensor, after: Tensor) -> bool:
    """Compare bytes, not values: nan equals itself, and 0 differs from -0."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    first, second = (tensor.detach().to(before.device).contiguous() for tensor in (before, after))
    return torch.equal(first.view(-1).view(torch.uint8), second.view(-1).view(torch.uint8))
