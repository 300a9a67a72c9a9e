"""Run folders as a report reads them: the settings, numbers and evaluations of a run, finished or not."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayssl.backbones import NUM_BLOCKS
from rayssl.config import ExperimentConfig, load_config
from rayssl.errors import ConfigError
from rayssl.evaluate_config import EvaluateConfig
from rayssl.evaluation_report import EvaluationReport
from rayssl.methods import MGTAConfig
from rayssl.methods.mgta_schedule import list_stages
from rayssl.recipe_file import did_you_mean, flatten
from rayssl.report import Report
from rayssl.runs import RunFolder, newest_run
from rayssl.sources import paper_row

_KEPT = ("source", "part", "paper_row", "epochs", "metrics", "notes")
"""What an evaluation's file holds of its report, beside the settings."""


@dataclass(frozen=True)
class StageFacts:
    """What a report says of a stage."""

    name: str
    """What it trains, and how hard its task is."""
    epochs: int
    """Its length."""
    last_block: int
    """The last block that it runs."""
    network: int | None = None
    """Which of MGTA's two networks it trains."""


@dataclass(frozen=True)
class RunRecord:
    """A run as far as it has come."""

    config: ExperimentConfig
    """The resolved recipe."""
    report: Report
    """Its numbers; without metrics as long as it is not finished."""
    is_finished: bool
    """Whether it has come to its end."""
    evaluations: tuple[EvaluationReport, ...] = ()
    """What `rayssl evaluate` measured on it, by name of the file."""
    unread: tuple[str, ...] = ()
    """Evaluations that can't be shown, each with the reason."""

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.report.folder.name

    @property
    def epochs_done(self) -> int:
        """Epochs on record."""
        return len(self.report.history)

    @property
    def stages(self) -> list[StageFacts]:
        """All stages of the recipe."""
        method = self.config.method
        if isinstance(method, MGTAConfig):
            return [
                StageFacts(f"{each.name} of N{each.trained}", each.epochs, NUM_BLOCKS, each.trained)
                for each in list_stages(method)
            ]
        return [
            StageFacts(
                f"B{stage.blocks[0]} to B{stage.blocks[-1]}{_level(stage.level)}", stage.epochs, stage.blocks[-1]
            )
            for stage in method.stages
        ]

    @property
    def epochs_planned(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def status(self) -> str:
        """Finished, or how far it has come."""
        if self.is_finished:
            return "finished"
        return (
            f"not finished: {self.epochs_done} of {self.epochs_planned} epochs are on record (it still trains, or was "
            "interrupted)"
        )

    @property
    def weights(self) -> Path | None:
        """Where the newest encoder lies: a file, or the folder of a stage's checkpoint; None: there is none yet."""
        if (self.report.folder / "encoder.pt").is_file():
            return self.report.folder / "encoder.pt"
        stages = (self.report.folder / f"stage-{number}" for number in range(len(self.stages), 0, -1))
        return next((stage for stage in stages if (stage / "checkpoint.json").is_file()), None)

    @property
    def paper_row(self) -> str | None:
        """The row of the papers' tables that the recipe reproduces in kind."""
        return paper_row(self.config)


def find_run(text: str, *, storage_path: Path) -> Path:
    """The folder of the run that a RUN on the command line names: a folder, an id, or the newest of a recipe's name.

    Raises:
        ConfigError: If there is no such run.
    """
    candidates = (Path(text).expanduser(), storage_path.expanduser() / text)
    for path in candidates:
        if (path / "config.yaml").is_file():
            return path.resolve()
    if newest := newest_run(text, storage_path=storage_path):
        return newest.path.resolve()
    for path in candidates:
        if path.exists():
            raise ConfigError(f"run '{text}': {path} is no run, it holds no config.yaml. Name a run's folder or its id")
    names = sorted(path.parent.name for path in storage_path.expanduser().glob("*/config.yaml"))
    there = f"There are {len(names)} runs in {storage_path}" if names else f"There are no runs in {storage_path}"
    raise ConfigError(
        f"run '{text}': unknown.{did_you_mean(text, names)} {there}; --storage=DIR names another folder of runs"
    )


def read_run(folder: Path) -> RunRecord:
    """Read a run's files; of one that is not finished, the epochs that its newest checkpoint knows.

    Raises:
        ConfigError: If its recipe or one of its files is damaged.
    """
    config = load_config(folder / "config.yaml")
    is_finished = RunFolder(folder).finished
    content = _read_json(folder / "report.json") if is_finished else {}
    report = Report(
        folder, config.name, _read_history(folder), dict(content.get("metrics", {})), list(content.get("notes", []))
    )
    evaluations, unread = _read_evaluations(folder / "evaluations")
    return RunRecord(config, report, is_finished, evaluations, unread)


def _read_evaluations(folder: Path) -> tuple[tuple[EvaluationReport, ...], tuple[str, ...]]:
    """The results in a folder, and a sentence for each that was written by another version of rayssl."""
    found, unread = [], []
    for path in sorted(folder.glob("*.json")):
        content = _read_json(path)
        try:
            found.append(
                EvaluationReport(
                    folder=folder,
                    config=EvaluateConfig.model_validate(content["config"]),
                    **{key: content[key] for key in _KEPT},
                )
            )
        except KeyError as error:
            unread.append(f"{path.name} is left out: it holds no {error}.")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            unread.append(f"{path.name} is left out: its settings are another version's ({where}: {first['msg']}).")
    return tuple(found), tuple(unread)


def _read_history(folder: Path) -> list[dict[str, float]]:
    """A row an epoch. The file is written at the run's end; until then only checkpoints hold the rows."""
    path = folder / "history.jsonl"
    if path.is_file():
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: can't be read ({error})") from None
    patterns = ("stage-*", "checkpoints/*", "ray/*")
    kept = [path for pattern in patterns for path in folder.glob(f"{pattern}/checkpoint.json")]
    histories = [_read_json(path).get("history", []) for path in kept]
    return max(histories, key=len, default=[])


def _level(level: Any) -> str:
    """A task's level where it says more than its defaults, such as ", angles 4"."""
    settings = flatten(level)
    fields = type(level).model_fields
    said = {key: value for key, value in settings.items() if key not in fields or fields[key].default != value}
    return "".join(f", {key} {value}" for key, value in said.items())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:  # an older checkpoint, deleted by the run that goes on meanwhile
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold an object, got {type(content).__name__}")
    return content
