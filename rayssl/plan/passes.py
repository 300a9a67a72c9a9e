"""What a run does beside its steps: features of many pictures, clusters, online probes."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rayssl.backbones import NUM_BLOCKS, Backbone
from rayssl.clustering import kmeans
from rayssl.config import ExperimentConfig
from rayssl.data.loaders import plain_views
from rayssl.evaluation import OnlineEvaluation
from rayssl.evaluation.features import extract_features
from rayssl.plan.calibration import SyntheticPictures
from rayssl.plan.material import Material
from rayssl.runtime import LocalRuntime

_PICTURES = {"cpu": 16, "cuda": 500}
_FEW, _MORE = 100, 300
"""Numbers of pictures that online probes are timed with; what more of them cost is drawn from the two."""
_MOST_CLASSES = 20
_MOST_ROWS = 4000


@dataclass
class Passes:
    """Times of one machine for one recipe; each is taken once and remembered.

    With a speed, operations are counted in place of being timed; probes and clusters are left out then.
    """

    config: ExperimentConfig
    material: Material
    encoder: Backbone
    runtime: LocalRuntime
    flops_per_second: float | None = None
    _known: dict[tuple[object, ...], float] = field(default_factory=dict)

    def measuring_seconds(self, last_block: int) -> float:
        """Seconds of one online measurement, in one process."""
        wanted = self.config.online.images
        if self.flops_per_second is not None:
            learned = wanted if self.material.classes and self.material.num_held_out else 0
            return (learned + wanted // 2) * self.forward_seconds(last_block)
        if wanted <= _MORE:
            return self._probe_seconds(last_block, wanted)
        few, more = (self._probe_seconds(last_block, count) for count in (_FEW, _MORE))
        return more + max(0.0, more - few) / (_MORE - _FEW) * (wanted - _MORE)

    def clustering_seconds(self, num_pictures: int, clusters: tuple[int, ...]) -> float:
        """Seconds in which one process tells features of pictures apart, for all numbers of clusters together."""
        if self.flops_per_second is not None:
            return 0.0
        rows = min(num_pictures, max(_MOST_ROWS, 4 * clusters[-1]))
        features = torch.randn(rows, self.encoder.block_channels[-1], generator=torch.Generator().manual_seed(0))
        features = features.to(self.runtime.device)

        def run(number: int) -> Callable[[], object]:
            return lambda: kmeans(features, number)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            seconds = [self._once(("k-means", rows, number), run(number)) for number in clusters]
        return sum(seconds) * num_pictures / rows

    def forward_seconds(self, last_block: int = NUM_BLOCKS) -> float:
        """Seconds of one picture through the encoder, without gradients, in one process."""
        count = _PICTURES[self.runtime.device.type] if self.flops_per_second is None else 2
        pictures = SyntheticPictures(count, side=self.material.side)

        def run() -> object:
            views = plain_views(
                pictures,
                np.arange(count),
                image_size=self.config.data.image_size,
                eval_resize=self.config.data.eval_resize,
                batch_size=count,
                device=self.runtime.device,
            )
            return extract_features(self.encoder, views, blocks=[last_block], pool=_average, device=self.runtime.device)

        if self.flops_per_second is None:
            return self._once(("forward", last_block), run) / count
        with FlopCounterMode(display=False) as flops:
            run()
        return flops.get_total_flops() / count / self.flops_per_second

    def _probe_seconds(self, last_block: int, count: int) -> float:
        classes = self.material.classes[:_MOST_CLASSES]
        held_out = SyntheticPictures(count, side=self.material.side, classes=classes)
        online = OnlineEvaluation(
            self.config.online.model_copy(update={"images": count}),
            SyntheticPictures(2 * count, side=self.material.side, classes=classes),
            held_out if self.material.num_held_out else None,
            data=self.config.data,
            seed=self.config.seed,
            runtime=self.runtime,
        )
        return self._once(("probe", last_block, count), lambda: online.measure(self.encoder, last_block))

    def _once(self, key: tuple[object, ...], run: Callable[[], object]) -> float:
        """Seconds of the second of two calls, taken once a key."""
        if key not in self._known:
            run()
            start = time.perf_counter()
            run()
            if self.runtime.device.type == "cuda":
                torch.cuda.synchronize(self.runtime.device)
            self._known[key] = time.perf_counter() - start
        return self._known[key]


def _average(feature_map: Tensor, block: int) -> Tensor:
    return feature_map.mean((2, 3))
