"""From a recipe and a number of workers to a plan: calibrate each stage, add the communication, add up."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import ValidationError

from rayssl.config import ExperimentConfig
from rayssl.errors import ClusterError, ConfigError
from rayssl.experiment import initial_encoder, local_runtime
from rayssl.plan.assumptions import assumptions
from rayssl.plan.calibration import StepCost, SyntheticPictures, measure_step
from rayssl.plan.material import Material, look_at_pictures
from rayssl.plan.network import Network, measure_network, waiting_seconds
from rayssl.plan.passes import Passes
from rayssl.plan.result import Plan, StageCost
from rayssl.plan.rounds import invent_labels, join_halves, labelling_seconds
from rayssl.runtime import LocalRuntime

_FREE_SETTINGS = ("epochs", "learning_rate", "lambda")
"""Settings of a stage whose values don't change what a step costs."""
_LOCAL = Network(float("inf"), 0.0, source="none: one worker")


def plan_experiment(
    config: ExperimentConfig,
    *,
    num_workers: int,
    num_pictures: int | None = None,
    calibration_steps: int = 5,
    bandwidth: float | None = None,
    latency: float | None = None,
    overlap: float = 0.0,
    flops_per_second: float | None = None,
) -> Plan:
    """Plan for one number of workers; see `plan_experiments`."""
    return plan_experiments(
        config,
        [num_workers],
        num_pictures=num_pictures,
        calibration_steps=calibration_steps,
        bandwidth=bandwidth,
        latency=latency,
        overlap=overlap,
        flops_per_second=flops_per_second,
    )[0]


def plan_experiments(
    config: ExperimentConfig,
    workers: Sequence[int],
    *,
    num_pictures: int | None = None,
    calibration_steps: int = 5,
    bandwidth: float | None = None,
    latency: float | None = None,
    overlap: float = 0.0,
    flops_per_second: float | None = None,
) -> list[Plan]:
    """Say what a run of the recipe costs with each of several numbers of workers.

    Args:
        config: The resolved recipe; its `cluster.workers` counts only where it is a range.
        workers: Numbers of workers, each at least 1.
        num_pictures: Training pictures of the set, before the limit and the hold-out; None: they are listed.
        calibration_steps: Timed repetitions of a step of each stage, of which the median counts.
        bandwidth: Bytes a second that a worker sends; None: measured between two processes of this machine.
        latency: Seconds of a message; None: measured with the bandwidth, or 0 if that is given.
        overlap: Share of the gradients' communication, in [0, 1], that can hide behind the backward pass.
        flops_per_second: Sustained speed of a worker. If given, operations are counted and nothing is timed, so that
            the machine need not be like those that will train.

    Raises:
        ConfigError: If the recipe can't be run with a number of workers, or the bandwidth can't be measured.
        DataError: If the pictures are missing and their number is not given.
        ClusterError: If the recipe wants a GPU, there is none here, and no speed is given.
    """
    configs = {number: _with_workers(config, number) for number in workers}
    is_timed = flops_per_second is None
    if is_timed and config.cluster.gpus_per_worker > 0 and not torch.cuda.is_available():
        raise ClusterError(
            "cluster.gpus_per_worker: must be 0 to calibrate here, torch finds no GPU on this machine. Plan on one "
            "with such a GPU, or say what a worker sustains: --tflops NUMBER."
        )
    material = look_at_pictures(config, num_pictures)
    network = _find_network(config, max(workers), bandwidth=bandwidth, latency=latency, overlap=overlap)
    with TemporaryDirectory() as folder:
        runtime = local_runtime(config, Path(folder)) if is_timed else LocalRuntime(Path(folder))
        encoder = initial_encoder(config).to(runtime.device)
        passes = Passes(config, material, encoder, runtime, flops_per_second)
        return [_plan(each, number, passes, network, calibration_steps) for number, each in configs.items()]


def _with_workers(config: ExperimentConfig, num_workers: int) -> ExperimentConfig:
    """The recipe as the run would load it, with all its checks; workers that may come and go stay so."""
    if config.cluster.is_elastic and num_workers in config.cluster.group_sizes:
        return config
    plain = config.model_dump(mode="json", by_alias=True)
    plain["cluster"]["workers"] = num_workers
    try:
        return ExperimentConfig.model_validate(plain)
    except ValidationError as error:
        rules = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise ConfigError(f"with {num_workers} worker{'s' if num_workers > 1 else ''}: {rules}") from None


def _find_network(
    config: ExperimentConfig, most_workers: int, *, bandwidth: float | None, latency: float | None, overlap: float
) -> Network:
    on_gpus = config.cluster.gpus_per_worker > 0
    if most_workers == 1:
        return _LOCAL
    if bandwidth is not None:
        return Network(bandwidth, latency or 0.0, overlap, has_trees=on_gpus)
    if on_gpus and torch.cuda.device_count() < 2:
        raise ConfigError(
            f"--bandwidth-gbit: needed for {most_workers} workers on GPUs, since there are no two GPUs here to measure "
            "between."
        )
    measured = measure_network()
    return replace(measured, latency=measured.latency if latency is None else latency, overlap=overlap)


def _plan(config: ExperimentConfig, num_workers: int, passes: Passes, network: Network, rounds: int) -> Plan:
    material, runtime = passes.material, passes.runtime
    setting = config.task_setting(material.classes, workers=num_workers)
    method = config.method.build(passes.encoder, setting, seed=config.seed)
    pictures = SyntheticPictures(material.num_train, side=material.side, classes=material.classes)
    steps: dict[object, StepCost] = {}
    costs: list[StageCost] = []
    for index in range(method.num_stages):
        invent_labels(method, index, config, material.num_train)
        plan = method.prepare(index, pictures, runtime, optimizer=config.optimizer)
        settings = method.settings_of(index)
        kind = tuple((name, None if name in _FREE_SETTINGS else str(value)) for name, value in settings.items())
        if kind not in steps:
            steps[kind] = measure_step(
                plan,
                lambda: (*method.encoder.state_dict().values(), *method.state().values()),
                num_workers=num_workers,
                runtime=runtime,
                side=material.side,
                num_classes=len(material.classes) or 2,
                precision=config.training.precision,
                rounds=rounds,
                flops_per_second=passes.flops_per_second,
            )
        step = steps[kind]
        schedule = method.schedule(index)
        waiting = waiting_seconds(
            network,
            num_workers,
            step.synchronized_bytes,
            computation=step.seconds,
            bucket_mib=config.cluster.bucket_mib,
            num_batchnorms=step.num_batchnorms if config.training.sync_batchnorm else 0,
        )
        seconds = _with_decoding(step.seconds + waiting, step.num_images, config, material)
        measured = len({*range(config.online.every, schedule.epochs + 1, config.online.every), schedule.epochs})
        probes = measured * passes.measuring_seconds(plan.stage.last_block) if plan.measured else 0.0
        labelled, labelling = labelling_seconds(method, index, config, passes)
        costs.append(
            StageCost(
                name=method.name_of(index),
                pictures=labelled or material.num_train,
                images_per_step=plan.loader.images_per_step,
                steps_per_epoch=plan.loader.num_steps,
                epochs=schedule.epochs,
                step_seconds=seconds,
                communication_seconds=waiting,
                preparing_seconds=labelling / num_workers,
                measuring_seconds=probes / num_workers,
                synchronized_bytes=step.synchronized_bytes if num_workers > 1 else 0,
                memory_bytes=step.memory_bytes,
                examples_per_second=plan.loader.images_per_step * plan.stage.task.examples_per_image / seconds,
            )
        )
    return Plan(
        config.name,
        num_workers,
        "cuda" if config.cluster.gpus_per_worker > 0 else "cpu",
        join_halves(costs),
        material.start_seconds,
        (
            *assumptions(config, num_workers, network, flops_per_second=passes.flops_per_second),
            *material.notes,
        ),
    )


def _with_decoding(seconds: float, images: int, config: ExperimentConfig, material: Material) -> float:
    """A step that gets `images` pictures, when they are decoded beside it."""
    if not material.is_streamed or material.decode_seconds is None:
        return seconds
    if config.data.loader_workers == 0:
        return seconds + images * material.decode_seconds
    return max(seconds, images * material.decode_seconds / config.data.loader_workers)
