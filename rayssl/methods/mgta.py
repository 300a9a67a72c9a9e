"""MGTA, mutual guidance of two auto-encoders: each is trained by the clusters that the other sees.

A run is a list of stages: the baseline IAE, the rounds of two halves, and the final round. N2's encoder is the result.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rayssl.backbones import Backbone
from rayssl.backbones.autoencoder import AutoEncoder
from rayssl.data import Pictures
from rayssl.data.loaders import TrainLoader, plain_views
from rayssl.data.samplers import PKPlan, pk_batches
from rayssl.errors import CheckpointError, TrainingError
from rayssl.evaluation.base import derive_seed
from rayssl.methods.base import StagePlan
from rayssl.methods.mgta_schedule import MGTAStage, Network, list_stages, split_pictures
from rayssl.methods.mgta_stage import (
    AutoEncoderStage,
    AutoEncoderTask,
    TripletTerm,
    collapse_warnings,
    draw_reconstructions,
)
from rayssl.methods.pseudo_labels import Labelling, agreement, label_pictures, write_histogram
from rayssl.runtime import Runtime
from rayssl.tasks import TaskSetting
from rayssl.training.loop import StageSchedule
from rayssl.training.optimizers import AnyOptimizer
from rayssl.training.sync_batchnorm import synchronize_batchnorm

if TYPE_CHECKING:
    from rayssl.methods.mgta_config import MGTAConfig

# Keep these draws apart from each other and from the other uses of a run's seed; 11 is that of the halves.
_KMEANS_STREAM, _DECODER_STREAM = 12, 13
_AGREED = 0.99
"""Normalised mutual information above which two labellings are the same for all that matters."""
_DRAWN = 8


class MGTA:
    """The method bound to an encoder, N2's; see `MGTAConfig` and `Method`."""

    def __init__(self, config: "MGTAConfig", encoder: Backbone, setting: TaskSetting, *, seed: int) -> None:
        self.encoder = encoder
        self.stages = list_stages(config)
        self.num_stages = len(self.stages)
        self._config = config
        self._setting = setting
        self._seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, _DECODER_STREAM))
            second = AutoEncoder(encoder)
        device = next(encoder.parameters()).device
        second.decoder.to(memory_format=torch.channels_last)  # the encoder's layout is the caller's choice
        self._networks: dict[Network, AutoEncoder] = {2: second.to(device)}
        self._baseline: Backbone | None = None
        self._labels: dict[Network, np.ndarray] = {}  # the last ones of each network, -1 where it labelled nothing
        self._prepared = -1  # the stage that was prepared last: if it is prepared again, its labels are there

    def name_of(self, index: int) -> str:
        """The two halves of a round share its name."""
        return self.stages[index].name

    def settings_of(self, index: int) -> dict[str, Any]:
        """Epochs, the triplet loss's weight, and the learning rate if the stage has its own."""
        stage = self.stages[index]
        settings: dict[str, Any] = {"epochs": stage.epochs}
        rate = self._learning_rate(stage)
        if rate is not None:
            settings["learning_rate"] = rate
        if stage.labeller is not None:
            settings["lambda"] = stage.triplet_weight
        return settings

    def schedule(self, index: int) -> StageSchedule:
        """The learning rate's schedule restarts with every stage, as its optimiser does."""
        epochs = [stage.epochs for stage in self.stages]
        return StageSchedule(index, self.num_stages, epochs[index], sum(epochs[:index]), sum(epochs), "stage")

    def prepare(self, index: int, pictures: Pictures, runtime: Runtime, *, optimizer: AnyOptimizer) -> StagePlan:
        """Label what is to be trained on, unless a checkpoint gave the labels, and batch it by them.

        Raises:
            ConfigError: If there are too few pictures for the clusters or the batches of a half.
            CheckpointError: If the labels of the checkpoint are those of other pictures.
            TrainingError: If the clusters can't be batched.
        """
        self._config.check_pictures(len(pictures))
        stage = self.stages[index]
        told = _Told()
        if self._prepared != index:
            if index == 1:
                self._start_rounds()
            for labelled in self._labelled_before(index):
                self._label(labelled, index, pictures, runtime, told)
            self._prepared = index
        for network in self._networks.values():
            network.zero_grad(set_to_none=True)  # the gradients of the network that waits are memory for nothing
        rate = self._learning_rate(stage)
        return StagePlan(
            self._build_stage(stage, runtime),
            self._build_loader(index, pictures, runtime, told),
            optimizer if rate is None else optimizer.model_copy(update={"learning_rate": rate}),
            told.facts,
            warnings=tuple(told.warnings),
            pictures=tuple(told.files),
            measured=stage.trained == 2,
        )

    def remarks(self, index: int, row: Mapping[str, float]) -> list[str]:
        """A triplet loss that is stuck is told."""
        stage = self.stages[index]
        return [
            f"{stage.name}, N{stage.trained}: {text}" for text in collapse_warnings(row, self._config.triplet.margin)
        ]

    def draw(self, index: int, pictures: Pictures, runtime: Runtime) -> tuple[Path, ...]:
        """Pictures above what the network that the stage trained makes of them."""
        if runtime.rank != 0:
            return ()
        stage = self.stages[index]
        indices = np.linspace(0, len(pictures) - 1, _DRAWN).astype(int)
        (views,) = plain_views(pictures, indices, **self._view_sizes, batch_size=_DRAWN, device=runtime.device)
        path = runtime.folder / "reconstructions" / f"{stage.name}-n{stage.trained}.png"
        return (draw_reconstructions(self._networks[stage.trained], views, path),)

    def state(self) -> dict[str, Tensor]:
        """N1, N2's decoder, the baseline's encoder, and the labels."""
        state = {"prepared": torch.tensor(self._prepared)}
        parts: dict[str, torch.nn.Module | None] = {
            "n1.": self._networks.get(1),
            "n2.decoder.": self._networks[2].decoder,
            "baseline.": self._baseline,
        }
        for prefix, part in parts.items():
            if part is not None:
                state |= {f"{prefix}{name}": tensor for name, tensor in part.state_dict().items()}
        return state | {f"labels.n{number}": torch.from_numpy(labels) for number, labels in self._labels.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self._prepared = int(state["prepared"])
        self._networks[2].decoder.load_state_dict(_below("n2.decoder.", state))
        if "n1.encoder.conv1.weight" in state:
            self._start_rounds()
            self._networks[1].load_state_dict(_below("n1.", state))
            assert self._baseline is not None
            self._baseline.load_state_dict(_below("baseline.", state))
        numbers: tuple[Network, ...] = (1, 2)
        self._labels = {
            number: state[f"labels.n{number}"].cpu().numpy() for number in numbers if f"labels.n{number}" in state
        }

    def compared_encoders(self) -> dict[str, Backbone]:
        """The baseline's and N1's; none if the baseline is the result."""
        if self._baseline is None:
            return {}
        return {"baseline/": self._baseline, "n1/": self._networks[1].encoder}

    @property
    def _view_sizes(self) -> dict[str, int]:
        image_size = self._setting.image_size
        return {"image_size": image_size, "eval_resize": self._setting.eval_resize or image_size}

    def _start_rounds(self) -> None:
        """N1 starts as a copy of the baseline, as which N2 goes on."""
        self._baseline = copy.deepcopy(self.encoder)
        self._networks[1] = copy.deepcopy(self._networks[2])

    def _learning_rate(self, stage: MGTAStage) -> float | None:
        """The stage's own one; None: the recipe's."""
        return (self._config.baseline if stage.labeller is None else self._config.rounds).learning_rate

    def _labelled_before(self, index: int) -> tuple[MGTAStage, ...]:
        """The stages whose pictures are labelled before stage `index` is trained."""
        stage = self.stages[index]
        if stage.labeller is None:
            return ()
        if stage.round == 0 or self._config.rounds.guidance == "alternating":
            return (stage,)
        return (stage, self.stages[index + 1]) if stage.half == "D2" else ()

    def _label(self, stage: MGTAStage, index: int, pictures: Pictures, runtime: Runtime, told: "_Told") -> None:
        """Let a stage's labeller cluster its pictures, and tell about it."""
        assert stage.labeller is not None
        resplit = self._config.rounds.resplit
        indices = split_pictures(stage, len(pictures), seed=self._seed, resplit=resplit)
        who = f"n{stage.labeller}"
        clusters = self._config.clusters
        labelling = self._cluster(
            stage.labeller, clusters if isinstance(clusters, int) else clusters.grid, indices, index, pictures, runtime
        )
        told.facts |= {f"{who}/{name}": value for name, value in labelling.facts.items()}
        told.warnings += [f"{stage.name}, {who.upper()}: {text}" for text in labelling.warnings]
        labels = _spread(labelling.labels, indices, len(pictures))
        agreements = {
            "nmi/previous_round": self._labels.get(stage.labeller),
            "information_only/nmi_classes": pictures.labels,
        }
        if index > 1:  # before, the two networks are the same one
            others = self._cluster(stage.trained, labelling.num_clusters, indices, index, pictures, runtime)
            agreements["nmi/networks"] = _spread(others.labels, indices, len(pictures))
        for name, other in agreements.items():
            value = None if other is None else agreement(labels, other)
            if value is not None:
                told.facts[f"{who}/{name}"] = value
        agreed = told.facts.get(f"{who}/nmi/networks", 0.0)
        if agreed > _AGREED:
            told.warnings.append(
                f"{stage.name}: collapse: the two networks agree on everything (NMI of their clusters {agreed:.3f}), "
                "so that neither guides the other. Raise method.rounds.epochs or method.clusters."
            )
        self._labels[stage.labeller] = labels
        if runtime.rank == 0:
            path = runtime.folder / "clusters" / f"{stage.name}-{who}.txt"
            told.files.append(write_histogram(labelling.labels, path))

    def _cluster(
        self,
        network: Network,
        clusters: int | tuple[int, ...],
        indices: np.ndarray,
        index: int,
        pictures: Pictures,
        runtime: Runtime,
    ) -> Labelling:
        return label_pictures(
            self._networks[network].encoder,
            pictures,
            indices,
            clusters=clusters,
            whitening=self._config.whiten,
            **self._view_sizes,
            seed=derive_seed(self._seed, _KMEANS_STREAM, index),
            runtime=runtime,
        )

    def _build_stage(self, stage: MGTAStage, runtime: Runtime) -> AutoEncoderStage:
        network = self._networks[stage.trained]
        if self._setting.sync_batchnorm:
            synchronize_batchnorm((network, *network.encoder.blocks), runtime.device)
        triplet = None
        if stage.labeller is not None:
            triplet = TripletTerm(stage.triplet_weight, self._config.triplet.margin)
        task = AutoEncoderTask(self._config.views, image_size=self._setting.image_size)
        return AutoEncoderStage(network, task, triplet=triplet, reduction=self._config.reduction)

    def _build_loader(self, index: int, pictures: Pictures, runtime: Runtime, told: "_Told") -> TrainLoader:
        """Shuffled batches for the baseline, P clusters x K pictures for the others."""
        stage = self.stages[index]
        if stage.labeller is None:
            return TrainLoader(
                pictures,
                images_per_step=self._setting.batch_size,
                seed=self._seed,
                rank=runtime.rank,
                world_size=runtime.world_size,
            )
        labels = self._labels[stage.labeller]
        if len(labels) != len(pictures):
            raise CheckpointError(
                f"the checkpoint has labels for {len(labels)} pictures, but there are {len(pictures)}. "
                "Go on with the same pictures, or start over with --fresh."
            )
        indices = np.flatnonzero(labels >= 0)
        settings = self._config.triplet

        def plan(epoch: int) -> PKPlan:
            return pk_batches(
                labels[indices],
                num_classes=settings.classes,
                num_instances=settings.instances,
                seed=self._seed,
                epoch=epoch,
            )

        try:
            first = plan(self.schedule(index).epochs_before)
        except ValueError as error:
            raise TrainingError(
                f"{stage.name}: the clusters of N{stage.labeller} can't be batched ({error}) "
                "Lower method.triplet.classes, change method.clusters, or train the baseline longer."
            ) from error
        told.facts |= {
            "triplet_weight": stage.triplet_weight,
            f"n{stage.labeller}/clusters/dropped_images": float(len(indices) - len(np.unique(first.batches))),
        }
        return TrainLoader(
            pictures,
            images_per_step=settings.classes * settings.instances,
            seed=self._seed,
            rank=runtime.rank,
            world_size=runtime.world_size,
            order=lambda epoch: indices[plan(epoch).batches],
            labels=labels,
        )


class _Told:
    """What a stage's preparation tells."""

    def __init__(self) -> None:
        self.facts: dict[str, float] = {}
        self.warnings: list[str] = []
        self.files: list[Path] = []


def _spread(labels: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Labels of some pictures as labels of all, int64 (count,), -1 for the others."""
    spread = np.full(count, -1, dtype=np.int64)
    spread[indices] = labels
    return spread


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
