"""ExperimentConfig: everything that decides a run's result, in one frozen object, and how it is loaded."""

from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, GetPydanticSchema, PositiveInt, field_validator, model_validator
from pydantic_core import core_schema

from rayssl.backbones import AnyBackbone
from rayssl.data import AnyData
from rayssl.errors import ConfigError
from rayssl.evaluation import AnyEvaluation, OnlineConfig
from rayssl.methods import AnyMethod
from rayssl.recipe_file import did_you_mean, load_recipe
from rayssl.schema import Config
from rayssl.storage import StoragePath, checked_address, is_address, local_folder
from rayssl.tasks import TaskSetting
from rayssl.training.loop import TrainingConfig
from rayssl.training.optimizers import AnyOptimizer


def _path_or_address(value: Any, as_path: core_schema.ValidatorFunctionWrapHandler) -> StoragePath:
    return checked_address(value) if is_address(value) else Path(as_path(value))


AnyStoragePath = Annotated[
    StoragePath,
    GetPydanticSchema(
        lambda _, schema_of: core_schema.no_info_wrap_validator_function(_path_or_address, schema_of(Path))
    ),
]
"""A path that is written as in a shell, or an address such as s3://bucket/runs, which stays text."""


class ClusterConfig(Config):
    """The workers that train, and what each of them gets."""

    workers: Annotated[int, Field(ge=0)] | tuple[PositiveInt, PositiveInt] = 2
    """Worker processes of Ray Train; 0 trains in this process, without Ray. [1, 8]: as many as the cluster has room
    for, 1 to 8, fewer when nodes are lost, more when they come; batches and learning rate stay the same."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores, and threads of torch, of each worker."""
    gpus_per_worker: float = Field(default=0, ge=0, le=1)
    """GPUs of each worker; 0 trains on CPUs."""
    max_failures: int = Field(default=3, ge=0)
    """Times that lost workers are replaced before the run gives up."""
    timeout_s: float = Field(default=1800, gt=0)
    """Seconds that workers which train wait for one of them that hangs, before the group is started again. Where one
    measures or decodes, the others wait as long as that takes."""
    wait_s: float = Field(default=60, ge=0)
    """Seconds that a running cluster without room for the workers is waited for: nodes that are just replaced, or that
    an autoscaler starts, which may take ten minutes."""
    bucket_mib: float = Field(default=25, gt=0)
    """MiB of gradients that are averaged over the workers at a time, while the backward pass goes on."""
    address: str | None = None
    """A Ray cluster to join ("auto", or HOST:PORT); None: the one that RAY_ADDRESS names, or one of this run's own."""

    @field_validator("workers")
    @classmethod
    def _from_few_to_many(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(workers, tuple) and workers[0] >= workers[1]:
            raise ValueError(f"must be a number, or the least and the most, such as [1, 8], got {list(workers)}")
        return workers

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change while a run goes on."""
        return isinstance(self.workers, tuple)

    @property
    def most_workers(self) -> int:
        """How many there are if the cluster has room; 0 without Ray."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @property
    def least_workers(self) -> int:
        """With how many a run still goes on; 0 without Ray."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def group_sizes(self) -> range:
        """How many processes may share a step, without Ray this one."""
        return range(max(1, self.least_workers), max(1, self.most_workers) + 1)

    def describe_workers(self) -> str:
        """For a sentence: "2 workers", "1 to 8 workers"."""
        if isinstance(self.workers, tuple):
            return f"{self.workers[0]} to {self.workers[1]} workers"
        return f"{self.workers} worker{'' if self.workers == 1 else 's'}"


class ExperimentConfig(Config):
    """A whole recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the recipe; the first part of the run's id."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides initial weights, data order, augmentation, splits and probes."""
    data: AnyData
    """The pictures."""
    backbone: AnyBackbone
    """The encoder."""
    initial_weights: Path | None = None
    """File of weights that the encoder starts from, torchvision's or a run's encoder.pt; None: random ones."""
    method: AnyMethod
    """How it is pre-trained."""
    optimizer: AnyOptimizer
    """How a stage's weights are moved."""
    training: TrainingConfig = TrainingConfig()
    """Batches, precision, checkpoints."""
    cluster: ClusterConfig = ClusterConfig()
    """Where it runs."""
    online: OnlineConfig = OnlineConfig()
    """What is measured while it trains."""
    evaluations: tuple[AnyEvaluation, ...] = ()
    """What is measured at the end, beside a randomly initialised network."""
    storage_path: AnyStoragePath = Path("runs")
    """Folder of all runs; on a cluster one that every node sees, or an object store: s3://BUCKET/FOLDER."""

    @property
    def storage_folder(self) -> Path:
        """Folder of all runs on this machine; of an object store their working copy."""
        return local_folder(self.storage_path)

    @model_validator(mode="after")
    def _method_agrees(self) -> Self:
        """The method's own rules about batches, workers and views."""
        self.method.check_backbone(self.backbone, self.data.image_size)
        self.method.check(self.task_setting())
        for workers in self.cluster.group_sizes[:-1]:
            try:
                self.method.check(self.task_setting(workers=workers))
            except ValueError as error:
                raise ValueError(
                    f"{error}. Of {self.cluster.describe_workers()} there may be {workers}, and they need equal "
                    "shares of a step whose loss looks across all its pictures. Or set cluster.workers to one number"
                ) from None
        return self

    def task_setting(self, classes: tuple[str, ...] = (), *, workers: int | None = None) -> TaskSetting:
        """What a method's tasks have to know.

        Args:
            classes: The pictures', known once they are listed.
            workers: How many share a step; None: as many as there are at most.
        """
        accumulate = self.training.accumulate
        return TaskSetting(
            self.data.image_size,
            self.training.batch_size,
            workers or max(1, self.cluster.most_workers),
            self.training.sync_batchnorm,
            classes,
            self.data.eval_resize,
            parts=max(1, self.cluster.most_workers) * accumulate if self.cluster.is_elastic or accumulate > 1 else None,
            accumulate=accumulate,
        )


def recipe_names() -> list[str]:
    """Names of the recipes that come with rayssl."""
    return sorted(path.name.removesuffix(".yaml") for path in _recipes().iterdir() if path.name.endswith(".yaml"))


def recipe_summaries() -> list[tuple[str, str]]:
    """Name and first comment of each recipe that comes with rayssl, below the line that names the schema."""
    texts = {name: (_recipes() / f"{name}.yaml").read_text() for name in recipe_names()}
    return [(name, text.splitlines()[1].removeprefix("# ")) for name, text in texts.items()]


def find_recipe(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with rayssl.

    Raises:
        ConfigError: If there is no such file or name.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    if recipe in recipe_names():
        return Path(str(_recipes() / f"{recipe}.yaml"))
    raise ConfigError(
        f"recipe '{recipe}': unknown.{did_you_mean(recipe, recipe_names())} There are: {', '.join(recipe_names())}; "
        "or give a path that ends in .yaml"
    )


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Load a recipe and apply overrides such as "optimizer.learning_rate=0.1". No picture is read.

    Raises:
        ConfigError: With every mistake of the recipe and the overrides, a line each.
    """
    return load_config_with_notes(recipe, overrides)[0]


def load_config_with_notes(recipe: str | Path, overrides: Sequence[str] = ()) -> tuple[ExperimentConfig, list[str]]:
    """As `load_config`, and the notes that a person should read."""
    return load_recipe(ExperimentConfig, find_recipe(str(recipe)), overrides)


def _recipes() -> Traversable:
    return resources.files("rayssl") / "recipes"
