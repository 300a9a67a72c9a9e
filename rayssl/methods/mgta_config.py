"""The settings of MGTA, and the rules among them and the rest of the recipe."""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from rayssl.backbones import AnyBackbone, Backbone, ResNetConfig
from rayssl.backbones.autoencoder import check_side
from rayssl.errors import ConfigError
from rayssl.losses import Margin, Reduction
from rayssl.methods.mgta import MGTA
from rayssl.schema import Config
from rayssl.tasks import TaskSetting
from rayssl.tasks.augmented_views import AugmentationLevel

Weight = Annotated[float, Field(ge=0)]


class BaselineConfig(Config):
    """The stage before the rounds, IAE: one auto-encoder rebuilds all pictures (section 4.2)."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the training pictures (section 4.2: 100)."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Of this stage; null: optimizer.learning_rate. The paper names none; 1e-3 with Adam is our choice."""


class RoundsConfig(Config):
    """The rounds, in which each network labels one half of the pictures for the other (sections 3.4 and 4.2)."""

    count: int = Field(default=10, ge=0)
    """How many (section 4.2: 10); 0: the baseline alone is the result, without a final round."""
    epochs: int = Field(default=10, ge=1)
    """Passes of each network over its half in a round (section 4.2: 10)."""
    learning_rate: float | None = Field(default=3e-4, gt=0)
    """Of the rounds and of the final one; null: optimizer.learning_rate. The paper names none; the default is ours, for
    Adam."""
    lambda_: tuple[Weight, Weight] = Field(default=(0.1, 1.0), alias="lambda")
    """Weight of the triplet loss in the first and in the last round; the final round has the last (section 4.2: from .1
    to 1)."""
    lambda_shape: Literal["linear", "cosine", "geometric"] = "linear"
    """How it goes from the first round's to the last's: linear (section 4.2), half a cosine, or by equal factors."""
    guidance: Literal["alternating", "simultaneous"] = "alternating"
    """alternating: the second half is labelled by the network that the first has just trained (section 4.2);
    simultaneous: both are labelled before either network trains (section 3.4)."""
    resplit: bool = False
    """Whether every round draws its halves anew (section 3.4); a network then labels pictures that it was trained on
    in other rounds. Else they are drawn once (section 4.2)."""

    @model_validator(mode="after")
    def _factors_exist(self) -> Self:
        if self.lambda_shape == "geometric" and min(self.lambda_) == 0:
            raise ValueError(f"lambda: must be above 0 for lambda_shape: geometric, got {list(self.lambda_)}")
        return self

    @property
    def triplet_weights(self) -> list[float]:
        """Lambda of each round."""
        first, last = self.lambda_
        progress = np.linspace(0, 1, self.count)
        if self.lambda_shape == "geometric":
            return np.geomspace(first, last, self.count).tolist()
        if self.lambda_shape == "cosine":
            progress = (1 - np.cos(np.pi * progress)) / 2
        return (first + (last - first) * progress).tolist()


class ClusterGridConfig(Config):
    """Several numbers of clusters, of which a criterion chooses whenever pictures are labelled (section 3.2)."""

    grid: tuple[int, ...]
    """The numbers, ascending, at least two of them."""
    criterion: Literal["calinski_harabasz"] = "calinski_harabasz"
    """The number with the highest score of Calinski and Harabasz (equation 2) is taken."""

    @field_validator("grid")
    @classmethod
    def _ascending(cls, grid: tuple[int, ...]) -> tuple[int, ...]:
        if len(grid) < 2:
            raise ValueError(
                f"must hold at least two numbers to choose from, got {list(grid)}. "
                "For a known number write clusters: NUMBER"
            )
        if grid[0] < 2:
            raise ValueError(
                f"must hold numbers of at least 2, as one cluster tells nothing apart, got {list(grid)}. "
                f"Leave out {grid[0]}"
            )
        if any(after <= before for before, after in zip(grid, grid[1:], strict=False)):
            raise ValueError(f"must ascend, got {list(grid)}. Write {sorted(set(grid))}")
        return grid


class TripletConfig(Config):
    """The batch-hard triplet loss and its batches (section 3.3.1)."""

    margin: Margin = 0.3
    """By how much a negative must be farther than a positive, alpha, above 0, in units of the embeddings, which are
    not normalised; soft: softplus in place of the hinge (Hermans et al. 2017). The paper names none; .3 is ours."""
    classes: int = Field(default=16, ge=2)
    """Clusters in a batch, over all workers, P. The paper names none."""
    instances: int = Field(default=4, ge=2)
    """Pictures of each cluster in a batch, K. The paper names none. P x K takes the place of training.batch_size in
    the rounds."""

    @field_validator("margin")
    @classmethod
    def _positive(cls, margin: Margin) -> Margin:
        if margin != "soft" and float(margin) <= 0:
            raise ValueError(f"must be greater than 0, or soft, got {margin}")
        return margin


class FinalConfig(Config):
    """The last stage: N1 labels all pictures and N2 is trained on them (section 4.2)."""

    epochs: int = Field(default=10, ge=1)
    """Passes over all training pictures (section 4.2: 10)."""


class MGTAConfig(Config):
    """Mutual guidance of two auto-encoders (MGTA, sections 3 and 4.2)."""

    name: Literal["mgta"] = "mgta"
    """The method's tag."""
    baseline: BaselineConfig = BaselineConfig()
    """The auto-encoder that both networks start from."""
    rounds: RoundsConfig = RoundsConfig()
    """Mutual guidance."""
    clusters: int | ClusterGridConfig = 300
    """Clusters of a half, at least 2, or a grid of numbers (section 4.2: 100 and 300)."""
    whiten: Annotated[int, Field(ge=1)] | Literal[True] | None = None
    """Whether embeddings are PCA-whitened and L2-normalised before k-means (DeepCluster; not in the paper): null: no;
    true: in all directions in which they vary; a number: in so many."""
    triplet: TripletConfig = TripletConfig()
    """The loss over pseudo labels."""
    reduction: Reduction = "mean"
    """mean: losses are means over pixels and anchors (section 4.2 says "Mean Square Error"); sum: equations 6 and 7 to
    the letter, in which the pixels drown the triplets."""
    views: AugmentationLevel = AugmentationLevel(smallest_crop=0.5)
    """Augmentation of what the networks see and rebuild. The paper names none; a mild crop and a flip are ours."""
    final: FinalConfig = FinalConfig()
    """The last stage."""

    @field_validator("clusters")
    @classmethod
    def _several(cls, clusters: int | ClusterGridConfig) -> int | ClusterGridConfig:
        if isinstance(clusters, int) and clusters < 2:
            raise ValueError(
                f"must be at least 2, as one cluster tells nothing apart, got {clusters}. The paper takes 100 and 300"
            )
        return clusters

    @model_validator(mode="after")
    def _enough_clusters(self) -> Self:
        fewest, wanted = self.cluster_numbers[0], self.triplet.classes
        if self.rounds.count and wanted > fewest:
            raise ValueError(
                f"triplet.classes: must be at most {fewest}, the clusters that there may be, got {wanted}. "
                "Lower it or raise method.clusters"
            )
        return self

    @property
    def cluster_numbers(self) -> tuple[int, ...]:
        """The numbers of clusters that may come about, ascending."""
        return (self.clusters,) if isinstance(self.clusters, int) else self.clusters.grid

    def check(self, setting: TaskSetting) -> None:
        """Every worker gets the same number of pictures in every step, in the rounds whole groups of one cluster.

        Raises:
            ValueError: If a batch can't be shared out so.
        """
        if setting.accumulate > 1:
            raise ValueError(
                f"training.accumulate: must be 1 with mgta, whose triplets are looked for in the whole batch, got "
                f"{setting.accumulate}. Lower training.batch_size and method.triplet.classes, or raise cluster.workers"
            )
        workers = setting.workers
        shared = {"training.batch_size": setting.batch_size}
        if self.rounds.count:
            shared["method.triplet.classes"] = self.triplet.classes
        for key, value in shared.items():
            if value % workers:
                above = value + workers - value % workers
                raise ValueError(
                    f"{key}: must be a multiple of {workers}, cluster.workers, so that each gets as much of a batch, "
                    f"got {value}. Set it to {above} or change cluster.workers"
                )

    def check_backbone(self, backbone: AnyBackbone, image_size: int) -> None:
        """The decoder mirrors a ResNet and gives back the size that went in.

        Raises:
            ValueError: If there is no mirror, or the views would come back in another size.
        """
        if not isinstance(backbone, ResNetConfig):
            raise ValueError(
                f"backbone.name: must be resnet, which the decoder of method mgta mirrors, got {backbone.name}"
            )
        try:
            check_side(image_size, stem=backbone.stem)
        except ValueError as error:
            raise ValueError(f"data.image_size: {str(error).removeprefix('image side: ')}") from None

    def check_pictures(self, count: int) -> None:
        """Refuse too few pictures, before anything is trained.

        Raises:
            ConfigError: If a half can't be cut into as many clusters, or not be batched.
        """
        if self.rounds.count == 0:
            return
        half, largest = count // 2, self.cluster_numbers[-1]
        if isinstance(self.clusters, int) and largest > half:
            raise ConfigError(
                f"method.clusters: must be at most {half}, the pictures of a half, got {largest}. "
                "Lower it, or raise data.limit."
            )
        if largest >= half and not isinstance(self.clusters, int):
            raise ConfigError(
                f"method.clusters.grid: must hold numbers below {half}, the pictures of a half, got {largest}. "
                "Leave it out, or raise data.limit."
            )
        batch = self.triplet.classes * self.triplet.instances
        if batch > half:
            raise ConfigError(
                f"method.triplet: a batch takes {self.triplet.classes} clusters x {self.triplet.instances} pictures = "
                f"{batch}, but a half has only {half} pictures. Lower method.triplet.classes or "
                "method.triplet.instances, or raise data.limit."
            )

    def build(self, encoder: Backbone, setting: TaskSetting, *, seed: int) -> MGTA:
        """Bind the method to an encoder.

        Raises:
            ConfigError: If embeddings are to be whitened in more directions than they have.
        """
        width = encoder.block_channels[-1]
        if self.whiten is not None and self.whiten is not True and self.whiten > width:
            raise ConfigError(
                f"method.whiten: must be at most {width}, the width of the embeddings, got {self.whiten}. "
                "Lower it, or write true for all directions in which they vary."
            )
        return MGTA(self, encoder, setting, seed=seed)
