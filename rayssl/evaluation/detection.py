"""Object detection: Faster R-CNN on a copy of the encoder (PSL, Table 8; MGTA, Table 3)."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rayssl.backbones import Backbone
from rayssl.data import DataConfig, Pictures
from rayssl.data.pictures import ImageList, check_bad_share
from rayssl.errors import ConfigError, DataError
from rayssl.evaluation.base import Outcome
from rayssl.evaluation.box_average_precision import voc_average_precision
from rayssl.evaluation.detection_examples import draw_examples
from rayssl.evaluation.detection_model import DetectorSettings, build_detector, set_short_sides
from rayssl.evaluation.detection_pictures import DetectionPictures
from rayssl.evaluation.detection_result import chance, describe_pictures, summarize, told_classes
from rayssl.evaluation.detection_training import Schedule, find_objects, seeded, train_detector
from rayssl.evaluation.features import unchanged
from rayssl.runtime import Runtime
from rayssl.schema import Config

__all__ = ["DetectionConfig", "voc_average_precision"]

Side = Annotated[int, Field(ge=32)]
Number = Annotated[int, Field(ge=1)]

_MOST_NAMED = 5
_LARGE_SET = 10_000
"""Training pictures from which on MGTA's longer schedule is taken: VOC2007 has 5,011, with 2012 there are 16,551."""
_MGTA_LENGTHS = {False: (50_000, (38 / 50,)), True: (100_000, (65 / 100,))}
_SETTINGS: dict[str, dict[str, Any]] = {
    "psl": {},
    "mgta": {
        "frozen_blocks": 4,
        "batch_size": 4,
        "iterations": None,
        "milestones": None,
        "warmup_iterations": 500,
        "warmup_factor": 1 / 3,
        "weight_decay": 5e-4,
        "sides": (600,),
        "test_side": 600,
        "max_side": 1000,
        "proposals_before": (12_000, 2000),
        "train_difficult": False,
    },
    "small": {
        "batch_size": 4,
        "learning_rate": 0.01,
        "iterations": 2000,
        "warmup_iterations": 200,
        "sides": (192, 224, 256),
        "test_side": 224,
        "max_side": 400,
        "proposals_before": (2000, 1000),
        "proposals": (500, 300),
        "regions": 64,
    },
}
"""What a setting fills in where the recipe says nothing."""


class DetectionConfig(Config):
    """Faster R-CNN with a C4 body: B1..B4 under the proposals, B5 in the head, every BatchNorm frozen."""

    name: Literal["detection"] = "detection"
    setting: Literal["psl", "mgta", "small"] = "psl"
    """Whose settings fill in what the recipe leaves out. psl: those below, for voc0712 (as detectron2); mgta: the body
    frozen, batches of 4, 50,000 iterations, 100,000 for more than 10,000 training pictures, at 600 px (as Detectron);
    small: 2,000 iterations of 4 pictures at 192 to 256 px, ours."""
    frozen_blocks: int = Field(default=2, ge=0, le=4)
    """B1 up to this block keep their weights."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures a step, over all workers."""
    learning_rate: float = Field(default=0.002, gt=0)
    """For the whole batch, as given: nothing is scaled (PSL's supervised row: .02)."""
    iterations: int | None = Field(default=25_000, ge=1)
    """Steps; None: as MGTA, by the number of pictures."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = (17 / 25,)
    """Shares of the iterations after each of which the learning rate falls to a tenth; None: as MGTA."""
    warmup_iterations: int = Field(default=1000, ge=0)
    """Steps over which the learning rate rises."""
    warmup_factor: float = Field(default=1e-3, ge=0, le=1)
    """Share of the learning rate from which it rises."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """On all weights."""
    sides: tuple[Side, ...] = Field(default=tuple(range(480, 801, 32)), min_length=1)
    """Short sides of training pictures in pixels, one drawn for each picture each time."""
    test_side: int = Field(default=800, ge=32)
    """Short side of test pictures, in pixels."""
    max_side: int = Field(default=1333, ge=32)
    """Longest side of a picture, in pixels; the short one is less where it would be exceeded."""
    anchor_sizes: tuple[Number, ...] = Field(default=(32, 64, 128, 256, 512), min_length=1)
    """Sides of square anchors, in pixels; each size also comes in the shapes 2:1 and 1:2."""
    proposals_before: tuple[Number, Number] = (12_000, 6000)
    """Proposals of a picture before overlapping ones are dropped, in training and in the test."""
    proposals: tuple[Number, Number] = (2000, 1000)
    """Proposals of a picture after that, in training and in the test."""
    regions: int = Field(default=512, ge=4)
    """Proposals of a picture that the head learns from."""
    train_difficult: bool = True
    """Whether difficult objects are learned (detectron2), or left out of the training (Detectron). In the test they
    count neither as found nor as missed."""
    interpolation: Literal["points11", "area"] = "points11"
    """points11: the 11-point rule of VOC2007; area: the area under the curve, the rule from 2010 on."""
    reference: float | None = Field(default=None, ge=0, le=1)
    """AP75 that the difference dAP75 is taken from, a share (PSL's supervised network: .574); None: no difference."""
    examples: int = Field(default=8, ge=0)
    """Test pictures that are drawn with their boxes."""

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        said = self.model_fields_set
        self.__dict__.update({key: value for key, value in _SETTINGS[self.setting].items() if key not in said})
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.iterations is not None and self.warmup_iterations >= self.iterations:
            raise ValueError(
                f"warmup_iterations: must be fewer than iterations, {self.iterations}, got {self.warmup_iterations}"
            )
        if list(self.milestones or ()) != sorted(set(self.milestones or ())):
            raise ValueError(f"milestones: must increase, got {list(self.milestones or ())}")
        if self.max_side < max(*self.sides, self.test_side):
            raise ValueError(f"max_side: must be at least the short sides, got {self.max_side}")
        return self

    def check(self, train: ImageList, test: ImageList, *, num_workers: int) -> None:
        """See `GroupEvaluation.check`; reads all annotations.

        Raises:
            DataError: If annotations are missing or damaged, or there is nothing to learn or to tell.
            ConfigError: If a batch can't be shared evenly by the workers.
        """
        if self.batch_size % num_workers:
            raise ConfigError(
                f"evaluation.batch_size: must be a multiple of cluster.workers, {num_workers}, got {self.batch_size}"
            )
        assert train.targets is not None
        learned, told = self._read(train, test)
        if not told_classes(learned, told, len(train.targets.classes)).any():
            raise DataError(
                "data: no class has objects both in the training and in the test pictures that are not difficult"
            )

    def evaluate_together(
        self,
        encoder: Backbone,
        train: ImageList,
        test: ImageList,
        *,
        data: DataConfig,
        seed: int,
        shuffled: bool,
        runtime: Runtime,
        folder: Path | None,
    ) -> Outcome:
        """Train a detector, test it, and draw some of what it found; see `GroupEvaluation`.

        Metrics are `detection/SETTING/ap` (the mean over overlaps .5 to .95), `ap50`, `ap75`, each also by class
        (`.../ap50/ap/cat`), and `delta_ap75` if there is a reference. A training that diverges gives none, and a note.

        Raises:
            DataError: If annotations are missing, or too many pictures can't be read.
        """
        assert train.targets is not None
        classes = train.targets.classes
        learned, told = self._read(train, test, shuffle_seed=seed if shuffled else None)
        is_told = told_classes(learned, told, len(classes))
        usable = learned.with_objects()
        num_threads = max(1, data.loader_workers)
        with unchanged(encoder):
            with seeded(seed, runtime.device):
                detector = build_detector(encoder, self.detector_settings(len(classes))).to(runtime.device)
            schedule = self.schedule(len(train))
            stopped = train_detector(detector, usable, schedule, runtime, seed=seed, num_threads=num_threads)
        facts = [describe_pictures(learned, told, is_told, classes)]
        if stopped is not None:
            facts.append(
                f"detection: diverged at iteration {stopped:,} of {schedule.iterations:,}, at learning rate "
                f"{schedule.rate(stopped - 1):.2g} (seed {seed}): there is no number."
            )
            return Outcome({}, facts)
        runtime.show(f"detection: telling {len(told):,} test pictures ...")
        set_short_sides(detector, [self.test_side])
        found = find_objects(detector, told, runtime, num_threads=num_threads)
        facts += _unreadable(usable, told, runtime, max_bad_fraction=data.max_bad_fraction)
        if runtime.rank == 0 and folder is not None:
            draw_examples(told, found, classes=classes, count=self.examples, folder=folder)
        eleven_point, area = self.interpolation == "points11", f"{self.name}/{self.setting}"
        metrics = summarize(
            found, told, is_told, classes, area=area, eleven_point=eleven_point, reference=self.reference
        )
        sanity = None
        if shuffled:
            sanity = chance(f"{area}/ap50", learned, told, is_told, eleven_point=eleven_point, seed=seed)
        return Outcome(dict(metrics), facts, sanity)

    def unfit(self, train: Pictures, test: Pictures) -> str | None:
        """Why these pictures can't be measured, as a clause; None if they can."""
        if train.targets is None or test.targets is None:
            return "it needs pictures with annotated boxes, such as data.name=voc2007 with its Annotations"
        return None

    def describe(self, train: Pictures, test: Pictures) -> str:
        """Say in a sentence or two what the numbers mean: the settings."""
        schedule = self.schedule(len(train))
        sides = f"{min(self.sides)}" if len(self.sides) == 1 else f"{min(self.sides)} to {max(self.sides)}"
        frozen = f"B1..B{self.frozen_blocks} and " if self.frozen_blocks else ""
        return (
            f"detection: Faster R-CNN on B1..B4, B5 in its head, by the setting {self.setting}: {frozen}every "
            f"BatchNorm frozen, {schedule.iterations:,} iterations of {self.batch_size} pictures at learning rate "
            f"{self.learning_rate:g}, short side {sides} px, {self.test_side} in the test; difficult objects are "
            f"{'learned' if self.train_difficult else 'not learned'}; AP is the mean over overlaps of .5 to .95, "
            f"{'by the 11-point rule' if self.interpolation == 'points11' else 'as the area under the curve'}."
        )

    def _read(
        self, train: ImageList, test: ImageList, *, shuffle_seed: int | None = None
    ) -> tuple[DetectionPictures, DetectionPictures]:
        learned, told = (DetectionPictures.read(images, shuffle_seed=shuffle_seed) for images in (train, test))
        return learned if self.train_difficult else learned.without_difficult(), told

    def detector_settings(self, num_classes: int) -> DetectorSettings:
        """What the detector is built by."""
        return DetectorSettings(
            num_classes=num_classes,
            frozen_blocks=self.frozen_blocks,
            sides=self.sides,
            max_side=self.max_side,
            anchor_sizes=self.anchor_sizes,
            proposals_before=self.proposals_before,
            proposals=self.proposals,
            regions=self.regions,
        )

    def schedule(self, num_pictures: int) -> Schedule:
        """How it learns from so many training pictures; their number decides MGTA's length."""
        iterations, milestones = _MGTA_LENGTHS[num_pictures > _LARGE_SET]
        return Schedule(
            batch_size=self.batch_size,
            iterations=self.iterations if self.iterations is not None else iterations,
            learning_rate=self.learning_rate,
            milestones=self.milestones if self.milestones is not None else milestones,
            warmup_iterations=self.warmup_iterations,
            warmup_factor=self.warmup_factor,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


def _unreadable(
    learned: DetectionPictures, told: DetectionPictures, runtime: Runtime, *, max_bad_fraction: float
) -> list[str]:
    """A sentence about pictures that some worker met and could not use.

    Raises:
        DataError: If they are too many.
    """
    notes = []
    for pictures, fate in ((learned, "others were learned from"), (told, "they and their objects don't count")):
        bad = {file.path: file for files in runtime.gather(list(pictures.bad.values())) for file in files}
        check_bad_share(list(bad.values()), len(pictures), max_bad_fraction=max_bad_fraction, spared=1)
        if bad:
            names = ", ".join(f"{file.path} ({file.reason})" for file in list(bad.values())[:_MOST_NAMED])
            notes.append(f"detection: {len(bad):,} pictures could not be used, {fate}: {names}.")
    return notes
