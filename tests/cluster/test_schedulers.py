"""Schedulers without Ray: every trial comes to an end, whatever the others do."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from rayssl.cluster.schedulers import make_scheduler
from rayssl.search_space import Study, load_study

EPOCHS = 8


@dataclass(eq=False)
class Trial:
    """What a scheduler sees of a trial, and what will happen to it."""

    trial_id: str
    loss: float
    epochs: int = EPOCHS
    """Its own length."""
    fails_at: int | None = None
    """The epoch, from 0, before which it crashes for good."""
    crashes_at: int | None = None
    """The epoch, from 0, before which it crashes once, and is started again from its last checkpoint."""
    measures_every: int = 1
    epoch: int = 0
    status: str = "PENDING"
    is_saving: bool = False

    def __str__(self) -> str:
        return self.trial_id


class Controller:
    """Runs trials one after another, as Tune's controller does on a cluster with room for one."""

    def __init__(self, scheduler: Any, trials: list[Trial]) -> None:
        self.scheduler = scheduler
        scheduler.set_search_properties("loss", "min")
        for trial in trials:
            scheduler.on_trial_add(self, trial)

    def run(self) -> None:
        """Until the scheduler knows of no trial to go on with."""
        while (trial := self.scheduler.choose_trial_to_run(self)) is not None:
            trial.status = "RUNNING"
            self._run(trial)

    def stop_trial(self, trial: Trial) -> None:
        if trial.status in ("TERMINATED", "ERROR"):
            return
        self.scheduler.on_trial_remove(self, trial)
        trial.status = "TERMINATED"

    def _run(self, trial: Trial) -> None:
        while trial.epoch < trial.epochs:
            if trial.epoch == trial.fails_at:
                self.scheduler.on_trial_error(self, trial)
                trial.status = "ERROR"
                return
            if trial.epoch == trial.crashes_at:
                trial.crashes_at = None
                trial.epoch -= trial.epoch % trial.measures_every
                trial.status = "ERROR"  # as Tune has it for a moment
                self.scheduler.on_trial_error(self, trial)
                trial.status = "PENDING"
                self.scheduler.on_trial_add(self, trial)
                return
            trial.epoch += 1
            if trial.epoch % trial.measures_every and trial.epoch < trial.epochs:
                continue
            action = self.scheduler.on_trial_result(self, trial, {"epoch": trial.epoch, "loss": trial.loss})
            if action == "PAUSE":
                trial.status = "PAUSED"
                return
            if action == "STOP":
                break
        self.scheduler.on_trial_complete(self, trial, {})
        trial.status = "TERMINATED"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(
        "recipe: demo-psl\nset: {training.checkpoint_every: 1}\n"
        "search:\n  optimizer.learning_rate: {uniform: [0.1, 0.8]}\n"
        "tune: {metric: loss, mode: min, workers: 1, reduction_factor: 2, scheduler: hyperband}\n"
    )
    return load_study(path)


def run(study: Study, trials: list[Trial]) -> dict[str, tuple[str, int]]:
    Controller(make_scheduler(study, longest=EPOCHS), trials).run()
    return {str(trial): (trial.status, trial.epoch) for trial in trials}


# With 8 epochs and a factor of 2, the first four trials are never halved, the next four at 4 epochs, the next six at 2
# and at 4. The lower the number, the better the trial.
def some(letter: str, count: int, measures_every: int = 1) -> list[Trial]:
    return [Trial(f"{letter}{number}", 0.1 * number, measures_every=measures_every) for number in range(count)]


def test_the_worse_half_of_a_bracket_is_stopped(study: Study) -> None:
    ends = run(study, some("a", 4) + some("b", 4))
    assert all(ends[f"a{number}"] == ("TERMINATED", 8) for number in range(4))
    assert [ends[f"b{number}"][1] for number in range(4)] == [8, 8, 4, 4]


def test_trials_that_have_waited_go_on_if_the_last_one_crashes(study: Study) -> None:
    """Before a bracket's first halving, and after it."""
    first, second, third = some("a", 4), some("b", 4), some("c", 6)
    second[3].fails_at = 2
    third[2].fails_at = 3
    ends = run(study, first + second + third)
    assert [ends[f"b{number}"] for number in range(4)] == [
        ("TERMINATED", 8), ("TERMINATED", 8), ("TERMINATED", 4), ("ERROR", 2),
    ]  # fmt: skip
    assert {status for status, _ in ends.values()} == {"TERMINATED", "ERROR"}
    assert [ends[f"c{number}"][1] for number in range(6)] == [8, 8, 3, 2, 2, 2]


def test_trials_that_are_past_the_next_halving_already_are_halved_at_once(study: Study) -> None:
    ends = run(study, some("a", 4) + some("b", 4) + some("c", 6, measures_every=5))
    assert [ends[f"c{number}"][1] for number in range(6)] == [8, 8, 5, 5, 5, 5]


def test_a_trial_that_is_started_again_keeps_its_place(study: Study) -> None:
    last = some("c", 6)
    last[0].crashes_at = 3
    ends = run(study, some("a", 4) + some("b", 4) + last)
    assert [ends[f"c{number}"][1] for number in range(6)] == [8, 8, 4, 2, 2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_no_trial_waits_for_ever(seed: int, study: Study) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(100):
        trials = [
            Trial(
                f"t{number:03d}",
                float(generator.random()),
                epochs=int(generator.integers(1, EPOCHS + 1)),
                fails_at=int(generator.integers(0, EPOCHS)) if generator.random() < 0.3 else None,
                crashes_at=int(generator.integers(0, EPOCHS)) if generator.random() < 0.3 else None,
                measures_every=int(generator.integers(1, 6)),
            )
            for number in range(generator.integers(1, 30))
        ]
        run(study, trials)
        assert {trial.status for trial in trials} <= {"TERMINATED", "ERROR"}, trials
