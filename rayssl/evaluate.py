"""One evaluation on one page: pictures, encoder, repetitions spread over the workers, sanity check, lists on record."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

from rayssl.clustering.rows import Group
from rayssl.data import Pictures, Splits, find_overlap
from rayssl.data.pictures import BadFile, ImageList, Plan, Targets
from rayssl.errors import DataError
from rayssl.evaluate_config import EvaluateConfig
from rayssl.evaluation import AnyEvaluation, Evaluation, GroupEvaluation, Outcome, listed_pictures
from rayssl.evaluation.base import BlockEvaluation, derive_seed
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation.lists import write_chosen_pictures
from rayssl.evaluation.spread import measure_all, measure_frozen
from rayssl.open_data import OpenPictures, drop_node_cache, open_data
from rayssl.runtime import Runtime, Tracker
from rayssl.sources import load_encoder

EXAMPLES = "examples"
"""Folder of drawn pictures, within the run's or result's own."""
FEATURES = ".features"
"""Folder of kept features, beside the one that an evaluation works in."""
_MOST_NAMED = 5
_SHUFFLED = 7
"""Keeps the draws of the sanity check apart from the others of a seed."""


@dataclass(frozen=True)
class Measurement:
    """What an evaluation gives."""

    metrics: dict[str, float]
    """Means over the repetitions; with several, each has a "_std" beside it. Those of the sanity check begin with
    "sanity/"."""
    notes: list[str]
    """What a reader of the numbers has to know."""


def run_evaluation(config: EvaluateConfig, runtime: Runtime, tracker: Tracker | None = None) -> Measurement:
    """Measure an encoder by a protocol, on all workers of a group.

    Args:
        config: The resolved settings.
        runtime: Where it runs; decoded pictures and lists go to its folder, features to one beside it.
        tracker: Not used: the caller records the result.

    Returns:
        The metrics, the same on every worker.

    Raises:
        DataError: If the pictures are missing or don't fit the protocol.
        CheckpointError: If the weights can't be read.
        RaysslError: If a training diverges.
    """
    pictures = open_data(
        config, runtime.folder, rank=runtime.rank, leads_node=runtime.leads_node, barrier=runtime.barrier
    )
    told = check_fit(config.evaluation, pictures)
    seeds = [config.seed, *(derive_seed(config.seed, number) % 2**31 for number in range(1, config.seeds))]
    evaluation = config.evaluation
    if isinstance(evaluation, GroupEvaluation):
        outcomes, shuffled = _measure_together(evaluation, config, pictures.train, told, seeds, runtime)
    else:
        outcomes, shuffled = _measure_apart(evaluation, config, pictures.train, told, seeds, runtime)
    if runtime.leads_node:
        drop_node_cache(config, runtime.folder)
    metrics = _over_seeds([outcome.metrics for outcome in outcomes])
    notes = [_describe(config, pictures, told), *dict.fromkeys(note for outcome in outcomes for note in outcome.notes)]
    if (num_without := sum(not outcome.metrics for outcome in outcomes)) and metrics:
        notes.append(f"{num_without} of {len(seeds)} seeds gave no number: the means are over the others.")
    if shuffled is not None:
        verdict, numbers = _judge(shuffled)
        notes.append(verdict)
        metrics |= numbers
    notes += _bad_files(pictures, runtime)
    if runtime.rank == 0 and not isinstance(evaluation, GroupEvaluation):
        write_chosen_pictures(
            evaluation,
            config.data,
            pictures.train,
            data_seed=config.seed,
            seeds=seeds,
            folder=runtime.folder,
        )
    runtime.barrier()
    return Measurement(metrics, notes)


def _measure_apart(
    evaluation: Evaluation,
    config: EvaluateConfig,
    train: Pictures,
    told: Pictures,
    seeds: Sequence[int],
    runtime: Runtime,
) -> tuple[list[Outcome], Outcome | None]:
    """Spread seeds and parts over the workers; what each seed gives, and shuffled labels if they are asked for."""
    subjects = [(seed, False) for seed in seeds] + ([(config.seed, True)] if config.sanity else [])
    features = FeatureStore(
        runtime.folder.parent / FEATURES,
        expected_blocks=evaluation.blocks if isinstance(evaluation, BlockEvaluation) else (),
        show=runtime.show,
    )
    runtime.show(f"{evaluation.name}: {_count(len(subjects), 'measurement')} on {_count(runtime.world_size, 'worker')}")

    def measure(subject: tuple[int, bool], part: Evaluation, group: Group) -> dict[str, float]:
        seed, is_shuffled = subject
        encoder = load_encoder(config.backbone, config.weights, seed=seed).to(runtime.device)
        sides: list[Pictures] = [train, told]
        if is_shuffled:
            sides = [ShuffledLabels(side, seed=seed, part=number) for number, side in enumerate(sides)]
        return measure_frozen(
            part, encoder, *sides, data=config.data, seed=seed, device=runtime.device, features=features, group=group
        )

    results = measure_all(measure, [(subject, evaluation) for subject in subjects], runtime)
    outcomes = [Outcome(metrics, []) for metrics in results[: len(seeds)]]
    if not config.sanity:
        return outcomes, None
    return outcomes, Outcome(results[-1], [], evaluation.sanity(train, told))


def _measure_together(
    evaluation: GroupEvaluation,
    config: EvaluateConfig,
    train: Pictures,
    told: Pictures,
    seeds: Sequence[int],
    runtime: Runtime,
) -> tuple[list[Outcome], Outcome | None]:
    """The same with all workers at one measurement at a time; the first seed's examples are drawn."""
    listed_train, listed_told = listed_pictures(config.data, train, told, data_seed=config.seed)
    runtime.show(f"{evaluation.name}: on {_count(runtime.world_size, 'worker')} together")

    def measure(seed: int, *, shuffled: bool, folder: Path | None) -> Outcome:
        return evaluation.evaluate_together(
            load_encoder(config.backbone, config.weights, seed=seed).to(runtime.device),
            listed_train,
            listed_told,
            data=config.data,
            seed=seed,
            shuffled=shuffled,
            runtime=runtime,
            folder=folder,
        )

    folders = [runtime.folder / EXAMPLES, *[None] * (len(seeds) - 1)]
    outcomes = [measure(seed, shuffled=False, folder=folder) for seed, folder in zip(seeds, folders, strict=True)]
    return outcomes, measure(config.seed, shuffled=True, folder=None) if config.sanity else None


def check_pictures(config: EvaluateConfig) -> list[str]:
    """List the pictures and look for test pictures among those that are learned from, before any worker is paid for.

    Returns:
        Warnings.

    Raises:
        DataError: If the pictures are missing, there is nothing to test on, or the same files are on both sides.
        ConfigError: If the workers can't share the work.
    """
    splits = config.data.build(seed=config.seed)
    told = _told(splits)
    overlap = find_overlap(splits.train, told)
    if overlap.same_files:
        raise DataError(
            f"data: {len(overlap.same_files):,} of {len(told):,} test pictures are files of the training pictures: "
            f"{_naming(overlap.same_files)}. A measurement would tell what it has learned by heart: take other folders."
        )
    if isinstance(config.evaluation, GroupEvaluation) and splits.train.targets is not None:
        for num_workers in config.cluster.group_sizes:
            config.evaluation.check(splits.train, told, num_workers=num_workers)
    if not overlap.same_content:
        return []
    return [
        f"warning: the same bytes are on both sides, {len(overlap.same_content):,} times in a sample of the test "
        f"pictures: {_naming(overlap.same_content)}"
    ]


def _told(splits: Splits) -> ImageList:
    """The pictures that are tested on: the set's own, or held-out ones."""
    told = splits.test if splits.test is not None else splits.validation
    if told is None or len(told) == 0:
        raise DataError(
            "data: there are no pictures to test on. Name the set's own (data.test_root=DIR), or hold some out: "
            "data.validation_fraction=0.2"
        )
    return told


def check_fit(evaluation: AnyEvaluation, pictures: OpenPictures) -> Pictures:
    """The pictures to test on, once it is clear that the protocol can run on them.

    Raises:
        DataError: If it can't.
    """
    told = pictures.told
    if told is None:
        raise DataError("data: there are no pictures to test on. Raise data.validation_fraction.")
    if reason := evaluation.unfit(pictures.train, told):
        raise DataError(f"evaluation.name: {evaluation.name} can't be measured here: {reason}.")
    return told


class ShuffledLabels:
    """Pictures whose labels or targets are those of other ones of the set, in random order; see `Pictures`.

    Args:
        pictures: The pictures; they stay as they are.
        seed: Decides the order.
        part: Keeps the sides of a measurement apart.
    """

    def __init__(self, pictures: Pictures, *, seed: int, part: int) -> None:
        order = np.random.default_rng([seed, _SHUFFLED, part]).permutation(len(pictures))
        self._pictures = pictures
        self.side = pictures.side
        self.classes = pictures.classes
        self.numbers = pictures.numbers
        self.bad_files: list[BadFile] = pictures.bad_files
        self.fingerprint = pictures.fingerprint
        self.labels = pictures.labels[order]
        self.targets: Targets | None = None if pictures.targets is None else pictures.targets.select(order)

    def __len__(self) -> int:
        return len(self._pictures)

    def batches(self, plan: Plan) -> Iterator[torch.Tensor]:
        """See `Pictures.batches`."""
        return self._pictures.batches(plan)


def _over_seeds(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means; with several results the sample deviation of each beside it, in place of those inside a result.

    Results without numbers, of trainings that diverged, are left out.
    """
    results = [result for result in results if result]
    if len(results) <= 1:
        return dict(results[0]) if results else {}
    metrics: dict[str, float] = {}
    for name in results[0]:
        if not name.endswith("_std"):
            values = [result[name] for result in results if name in result]
            metrics[name] = mean(values)
            metrics[f"{name}_std"] = stdev(values) if len(values) > 1 else 0.0
    return metrics


def _judge(shuffled: Outcome) -> tuple[str, dict[str, float]]:
    """A sentence about a measurement with shuffled labels, and its number."""
    expected = shuffled.sanity
    if expected is None:
        return f"sanity: with shuffled labels there is no number. {' '.join(shuffled.notes)}", {}
    value = shuffled.metrics[expected.metric]
    is_chance = value <= expected.bound
    verdict = "at chance, as it must be" if is_chance else "ABOVE CHANCE: do not trust these numbers"
    text = (
        f"sanity: with shuffled labels {expected.metric} is {value:.1%}; chance is {expected.chance:.1%}, and up to "
        f"{expected.bound:.1%} is noise: {verdict}."
    )
    return text, {f"sanity/{expected.metric}": value, "sanity/chance": expected.chance, "sanity/bound": expected.bound}


def _describe(config: EvaluateConfig, pictures: OpenPictures, told: Pictures) -> str:
    where = "the set's test split" if pictures.test is not None else "training pictures held out"
    seeds = f" Mean and deviation of {config.seeds} seeds." if config.seeds > 1 else ""
    return f"{config.evaluation.describe(pictures.train, told)} Tested on {len(told):,} pictures ({where}).{seeds}"


def _bad_files(pictures: OpenPictures, runtime: Runtime) -> list[str]:
    """A sentence about the pictures that any worker could not read."""
    splits = [split for split in (pictures.train, pictures.told) if split is not None]
    lists = runtime.gather([f"{file.path} ({file.reason})" for split in splits for file in split.bad_files])
    found = sorted({line for lines in lists for line in lines})
    return [f"{len(found):,} pictures can't be read and are left out: {_naming(found)}."] if found else []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _naming(things: Sequence[str]) -> str:
    more = f" and {len(things) - _MOST_NAMED:,} more" if len(things) > _MOST_NAMED else ""
    return f"{', '.join(things[:_MOST_NAMED])}{more}"
