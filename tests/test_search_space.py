"""Studies: distributions at their ends, every mistake with its line, the samples, and which stages trials share."""

import importlib.util
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.config import load_config
from rayssl.errors import ConfigError
from rayssl.search_space import Interval, StageStore, Study, load_study, total_epochs
from rayssl.search_space.distributions import parse_distribution
from rayssl.search_space.prefixes import stage_fingerprints

ROOT = Path(__file__).parent.parent
HEAD = "recipe: demo-psl\nset:\n  cluster.workers: 1\nsearch:\n"
"""Four lines: the first searched key is on line 5."""


def study_of(folder: Path, text: str, *overrides: str) -> Study:
    path = folder / "study.yaml"
    path.write_text(text)
    return load_study(path, overrides)


def mistakes_of(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the message, each without the folder."""
    with pytest.raises(ConfigError) as raised:
        study_of(folder, text, *overrides)
    heading, *lines = str(raised.value).replace(f"{folder}/", "").splitlines()
    assert heading == f"study.yaml: {len(lines)} mistake{'s' if len(lines) > 1 else ''}"
    return lines


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_study_that_ships_loads_and_says_what_it_is(path: Path) -> None:
    assert load_study(path).samples()
    text = path.read_text()
    assert f"# Command  rayssl search search_spaces/{path.name}" in text
    assert "# Cost" in text and "# Answers" in text


def test_the_study_that_the_documentation_shows_loads(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "search.md").read_text()
    study = study_of(tmp_path, text.split("```yaml\n")[1].split("```")[0], "cluster.workers=1")
    assert len(study.samples()) == 20


@pytest.mark.parametrize(
    ("kind", "argument", "ends"),
    [
        ("uniform", [0.1, 0.5], [0.1, 0.5]),
        ("quniform", [1, 2, 0.25], [1, 2]),
        ("loguniform", [1e-4, 1e-1], [1e-4, 1e-1]),
        ("randint", [2, 6], [2, 5]),
        ("lograndint", [2, 65], [2, 64]),
        ("choice", ["a", [1, 2]], ["a", [1, 2]]),
        ("grid_search", [1, None], [1, None]),
    ],
)
def test_a_distribution_has_the_ends_of_ray_tune(kind: str, argument: Any, ends: list[Any]) -> None:
    """The high end of randint and lograndint is excluded there, so the largest value is one less."""
    distribution = parse_distribution(kind, argument)
    assert list(distribution.ends().values()) == ends  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "argument"), [("randint", [2, 6]), ("lograndint", [1, 5]), ("quniform", [0, 1, 0.25])]
)
def test_every_value_between_the_ends_is_drawn(kind: str, argument: list[float]) -> None:
    distribution = parse_distribution(kind, argument)
    assert isinstance(distribution, Interval)
    generator = np.random.default_rng(0)
    drawn = Counter(distribution.sample(generator) for _ in range(500))
    step = distribution.step or 1
    assert sorted(drawn) == list(np.arange(distribution.low, distribution.high + step / 2, step))
    assert all(type(value) is (float if distribution.step else int) for value in drawn)


def test_a_loguniform_draw_has_equally_many_values_in_each_decade() -> None:
    distribution = parse_distribution("loguniform", [1e-4, 1e-1])
    assert isinstance(distribution, Interval)
    generator = np.random.default_rng(0)
    decades = Counter(int(np.floor(np.log10(distribution.sample(generator)))) for _ in range(3000))
    assert all(900 < decades[decade] < 1100 for decade in (-4, -3, -2))


SPOILED = {
    "optimizer.lerning_rate: {uniform: [0.1, 0.2]}": (
        "study.yaml:5: search.optimizer.lerning_rate: unknown key. Did you mean 'learning_rate'?"
    ),
    "optimizer.learning_rate: {uniform: [0, 0.2]}": (
        "study.yaml:5: search.optimizer.learning_rate: at its low end: must be greater than 0, got 0.0"
    ),
    "optimizer.momentum: {uniform: [0.5, 1]}": (
        "study.yaml:5: search.optimizer.momentum: at its high end: must be less than 1, got 1.0"
    ),
    "optimizer.learning_rate: {uniform: [0.2, 0.1]}": (
        "study.yaml:5: search.optimizer.learning_rate: uniform: the low end must be below the high end, got [0.2, 0.1]"
    ),
    "optimizer.learning_rate: {loguinform: [0.1, 0.2]}": (
        "study.yaml:5: search.optimizer.learning_rate: unknown distribution 'loguinform'. Did you mean 'loguniform'?"
    ),
    "optimizer.learning_rate: {loguniform: [0, 0.2]}": (
        "study.yaml:5: search.optimizer.learning_rate: loguniform: the low end must be greater than 0, got 0"
    ),
    "optimizer.learning_rate: 0.1": (
        "study.yaml:5: search.optimizer.learning_rate: must name a distribution, such as {uniform: [0.1, 0.2]}."
    ),
    "method.gradient: {choice: [stage, fall]}": (
        "study.yaml:5: search.method.gradient: at 'fall': must be 'stage' or 'full', got 'fall'. Did you mean 'full'?"
    ),
    "method.stages: {choice: [[{blocks: [2, 3], epochs: 1, level: {angles: 2}}]]}": (
        "study.yaml:5: search.method.stages: at [{blocks: [2, 3], epochs: 1, level: {angles: 2}}]: "
    ),
    "cluster.max_failures: {choice: [1, 2]}": (
        "study.yaml:5: search.cluster.max_failures: does not decide what is learned"
    ),
    "seed: {choice: [0, 1], when: {method.name: mgta}}": (
        "study.yaml:5: search.seed.when.method.name: never applies: it is not searched, and the recipe's is 'psl', not "
        "'mgta'"
    ),
    "seed: {choice: [0, 1], when: {method.nam: psl}}": (
        "study.yaml:5: search.seed.when.method.nam: unknown key 'method.nam'. Did you mean 'method.name'?"
    ),
    "seed: {choice: [0, 1], when: {method.gradient: full}}\n  method.gradient: {choice: [stage]}": (
        "study.yaml:5: search.seed.when.method.gradient: never applies: it is searched among ['stage'], not 'full'"
    ),
    "seed: {choice: [0, 1], when: {optimizer.momentum: 0.9}}\n  optimizer.momentum: {uniform: [0.8, 0.9]}": (
        "study.yaml:5: search.seed.when.optimizer.momentum: must be a key with a choice or a grid_search"
    ),
    "seed: {choice: [0], when: {method.gradient: full, optimizer.nesterov: true}}\n"
    "  method.gradient: {choice: [stage, full]}\n"
    "  optimizer.nesterov: {choice: [true], when: {method.gradient: stage}}": (
        "study.yaml:5: search.seed.when: never applies: the conditions exclude each other"
    ),
    "seed: {same_as: training.batch_size}\n  training.batch_size: {same_as: seed}": (
        "study.yaml:5: search.seed: depends on itself"
    ),
    "seed: {minus: [3, method.stages.0.epoch]}": (
        "study.yaml:5: search.seed: unknown key 'method.stages.0.epoch'. Did you mean 'method.stages.0.epochs'?"
    ),
    "method.stages.0.epochs: {choice: [1]}\n"
    "  method.stages: {choice: [[{blocks: [1], epochs: 1, level: {angles: 2}}]]}": (
        "study.yaml:6: search.method.stages: must stand above method.stages.0.epochs, which lies inside it"
    ),
}


@pytest.mark.parametrize(("line", "message"), SPOILED.items(), ids=[line.split("\n")[0] for line in SPOILED])
def test_a_spoiled_key_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    (found,) = mistakes_of(tmp_path, f"{HEAD}  {line}\n")
    assert found.startswith(message)


FINE = f"{HEAD}  optimizer.learning_rate: {{uniform: [0.1, 0.2]}}\n"
SPOILED_TUNE = {
    "metric: probe/bst/top1": (
        "study.yaml:7: tune.metric: unknown 'probe/bst/top1'. Did you mean 'probe/best/top1'? There are: "
    ),
    "mode: min": "study.yaml:7: tune.mode: must be max for probe/best/top1, got min",
    "schedular: asha": "study.yaml:7: tune.schedular: unknown key. Did you mean 'scheduler'?",
    "num_samples: 0": "study.yaml:7: tune.num_samples: must be at least 1, got 0",
    "stop: {probe/bst/top1: 0.9}": "study.yaml:7: tune.stop.probe/bst/top1: unknown 'probe/bst/top1'. Did you mean",
    "algorithm: grid": "study.yaml:7: tune.algorithm: grid needs a choice or grid_search for every key",
    "workers: 64": "study.yaml:7: tune.workers: no trial can ever run: 64 workers with 1 CPUs each need 64",
}


@pytest.mark.parametrize(("line", "message"), SPOILED_TUNE.items(), ids=list(SPOILED_TUNE))
def test_a_spoiled_setting_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    found = mistakes_of(tmp_path, f"{FINE}tune:\n  {line}\n")
    assert any(each.startswith(message) for each in found)


def test_more_cpus_than_there_are_are_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    text = FINE.replace("cluster.workers: 1", "cluster.cpus_per_worker: 500")
    (found,) = mistakes_of(tmp_path, text)
    assert found.startswith("study.yaml:3: set.cluster.cpus_per_worker: no trial can ever run: 2 workers with 500 CPUs")


def test_a_metric_needs_pictures_held_out(tmp_path: Path) -> None:
    (found,) = mistakes_of(tmp_path, FINE.replace("cluster.workers: 1", "data.validation_fraction: 0"))
    assert found == (
        "study.yaml: tune.metric: 'probe/best/top1' won't be reported: it is measured on pictures held out: "
        "data.validation_fraction must be greater than 0, got 0"
    )


def test_schedulers_that_copy_trials_say_what_they_can_not_do(tmp_path: Path) -> None:
    text = f"{HEAD}  seed: {{choice: [0, 1]}}\ntune:\n  scheduler: pbt\n  workers: 2\n"
    found = mistakes_of(tmp_path, text, "training.checkpoint_every=2")
    assert [each.split(": ")[1] for each in found] == ["tune.scheduler"] * 3


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("scheduler: hyperband, concurrency: 2", "tune.concurrency: can't be limited with hyperband"),
        ("scheduler: pbt, algorithm: optuna", "tune.scheduler: pbt chooses settings itself"),
        ("scheduler: pbt", "tune.scheduler: pbt changes each key by itself, so that optimizer.schedule.factor can't"),
    ],
)
def test_what_a_scheduler_can_not_do_with_a_study_is_refused(tmp_path: Path, tune: str, message: str) -> None:
    text = (
        f"{HEAD}  optimizer.schedule.name: {{choice: [steps, cosine]}}\n"
        "  optimizer.schedule.factor: {uniform: [0.1, 0.5], when: {optimizer.schedule.name: steps}}\n"
        f"tune: {{{tune}}}\n"
    )
    assert any(found.startswith(f"study.yaml:7: {message}") for found in mistakes_of(tmp_path, text))


def test_optuna_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (found,) = mistakes_of(tmp_path, f"{FINE}tune:\n  algorithm: optuna\n")
    assert found.startswith(
        "study.yaml:7: tune.algorithm: optuna is not installed. Install it (pip install 'rayssl[opt"
    )


def test_values_that_are_right_alone_must_be_right_together(tmp_path: Path) -> None:
    text = f"{HEAD}  method.stages.0.level.angles: {{choice: [2, 3]}}\n  training.batch_size: {{choice: [128, 120]}}\n"
    (found,) = mistakes_of(tmp_path, text)
    assert "training.batch_size" in found and "must be a multiple of" in found


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    keys = "set:\n  sead: 1\nsearch:\n  seed: {choise: [1]}\n  optimizer.momentum: 1\n"
    text = f"recipe: demo-psl\n{keys}tune:\n  num_samples: x\n"
    lines = [found.split(": ")[0] for found in mistakes_of(tmp_path, text)]
    assert lines == ["study.yaml:3", "study.yaml:5", "study.yaml:6", "study.yaml:8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "recipe: dmeo-psl\nsearch: {seed: {choice: [1]}}\n",
            "study.yaml:1: recipe: unknown. Did you mean 'demo-psl'?",
        ),
        ("search: {seed: {choice: [1]}}\n", "study.yaml: recipe: must be given, or `experiment`"),
        ("recipe: demo-psl\nsearch: {}\n", "study.yaml:2: search: must name at least one key"),
        ("experiment: {name: a, seed: x}\nsearch: {seed: {choice: [1]}}\n", "study.yaml:1: experiment.seed: must be"),
    ],
)
def test_the_sections_are_checked(tmp_path: Path, text: str, message: str) -> None:
    assert any(found.startswith(message) for found in mistakes_of(tmp_path, text))


def test_conditions_hold_in_every_sample_and_sources_are_followed(tmp_path: Path) -> None:
    text = (
        f"{HEAD}  method.stages.1.epochs: {{minus: [9, method.stages.0.epochs]}}\n"
        "  method.stages.0.epochs: {randint: [1, 5]}\n"
        "  method.stages.2.epochs: {times: [method.stages.0.epochs, 2]}\n"
        "  optimizer.name: {choice: [sgd, adam]}\n"
        "  optimizer.nesterov: {choice: [true, false], when: {optimizer.name: sgd}}\n"
        "tune: {num_samples: 30}\n"
    )
    samples = study_of(tmp_path, text).samples()
    assert len(samples) > 10
    assert {values["optimizer.name"] for values in samples} == {"sgd", "adam"}
    for values in samples:
        assert ("optimizer.nesterov" in values) == (values["optimizer.name"] == "sgd")
        assert values["method.stages.1.epochs"] == 9 - values["method.stages.0.epochs"]
        assert values["method.stages.2.epochs"] == 2 * values["method.stages.0.epochs"]


def test_samples_are_a_function_of_the_study_and_no_two_are_alike(tmp_path: Path) -> None:
    text = (
        f"{HEAD}  seed: {{choice: [1, 2]}}\n  optimizer.nesterov: {{choice: [true, false]}}\ntune: {{num_samples: 9}}\n"
    )
    one, other = study_of(tmp_path, text).samples(), study_of(tmp_path, text).samples()
    assert one == other
    assert len(one) == 4  # of nine, since there are no more


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    """Combinations that differ only in a key whose condition does not hold are one."""
    text = (
        f"{HEAD}  optimizer.name: {{choice: [sgd, adam]}}\n"
        "  optimizer.nesterov: {choice: [true, false], when: {optimizer.name: sgd}}\ntune: {algorithm: grid}\n"
    )
    assert study_of(tmp_path, text).samples() == [
        {"optimizer.name": "sgd", "optimizer.nesterov": True},
        {"optimizer.name": "sgd", "optimizer.nesterov": False},
        {"optimizer.name": "adam"},
    ]


def test_a_sample_becomes_the_recipe_with_these_values(tmp_path: Path) -> None:
    study = study_of(tmp_path, FINE, "seed=7", "tune.num_samples=2")
    (values, _) = study.samples()
    expected = load_config(
        "demo-psl", ["cluster.workers=1", "seed=7", f"optimizer.learning_rate={values.popitem()[1]}"]
    )
    assert study.config(study.samples()[0]) == expected


def test_a_study_written_out_loads_back(tmp_path: Path) -> None:
    import json

    study = study_of(tmp_path, FINE)
    (tmp_path / "again.yaml").write_text(json.dumps(study.as_data()))
    again = load_study(tmp_path / "again.yaml")
    assert (again.samples(), again.base, again.tune) == (study.samples(), study.base, study.tune)


def test_stages_are_shared_up_to_the_first_difference() -> None:
    one = stage_fingerprints(load_config("demo-psl"))
    longer = stage_fingerprints(load_config("demo-psl", ["method.stages.1.epochs=9"]))
    assert [a == b for a, b in zip(one, longer, strict=True)] == [True, False, False]
    assert not set(one) & set(stage_fingerprints(load_config("demo-psl", ["seed=1"])))
    # One schedule over the whole run depends on the epochs of stages to come.
    whole = [stage_fingerprints(load_config("demo-psl", ["method.schedule_scope=run", more])) for more in ("seed=0",)]
    changed = stage_fingerprints(load_config("demo-psl", ["method.schedule_scope=run", "method.stages.2.epochs=9"]))
    assert not set(whole[0]) & set(changed)


def test_mgta_trials_share_the_baseline_whatever_their_clusters() -> None:
    one = stage_fingerprints(load_config("mgta-small"))
    other = stage_fingerprints(load_config("mgta-small", ["method.clusters=50", "method.final.epochs=5"]))
    final = stage_fingerprints(load_config("mgta-small", ["method.final.epochs=5"]))
    assert one[0] == other[0] and not set(one[1:]) & set(other[1:])
    assert one[:-1] == final[:-1] and one[-1] != final[-1]


def test_a_store_gives_the_longest_beginning_that_was_left(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "stages", load_config("demo-psl"))
    assert store.find() is None
    for number in (1, 2):
        (tmp_path / "run" / f"stage-{number}").mkdir(parents=True)
        (tmp_path / "run" / f"stage-{number}" / "checkpoint.json").write_text(str(number))
    store.offer(tmp_path / "run")
    store.offer(tmp_path / "run")
    found = [StageStore(tmp_path / "stages", load_config("demo-psl", more)).find() for more in ([], ["seed=1"])]
    assert found[0] is not None and (found[0] / "checkpoint.json").read_text() == "2"
    assert found[1] is None
    later = StageStore(tmp_path / "stages", load_config("demo-psl", ["method.stages.1.epochs=9"])).find()
    assert later is not None and (later / "checkpoint.json").read_text() == "1"


def test_what_a_store_was_left_stays_when_the_trial_trains_its_stage_again(tmp_path: Path) -> None:
    """A trial that is started again writes its stage anew, and others may be reading what it left."""
    stage = tmp_path / "run" / "stage-1"
    store = StageStore(tmp_path / "stages", load_config("demo-psl"))
    for text in ("first", "second"):
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        (stage / "checkpoint.json").write_text(text)
        store.offer(tmp_path / "run")
    shutil.rmtree(stage)
    found = store.find()
    assert found is not None and (found / "checkpoint.json").read_text() == "first"
    assert [path.name for path in (tmp_path / "stages").iterdir()] == [found.name]


def test_the_end_of_a_run_is_its_own_last_stage_or_the_one_it_took_over(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "stages", load_config("demo-psl"))
    for number in (1, 2, 3):
        (tmp_path / "run" / f"stage-{number}").mkdir(parents=True)
    assert store.end(tmp_path / "another") is None
    store.offer(tmp_path / "run")
    assert store.end(tmp_path / "run") == tmp_path / "run" / "stage-3"
    assert store.end(tmp_path / "another") == store.find()


def test_the_epochs_of_all_stages_are_counted() -> None:
    assert total_epochs(load_config("demo-psl", [f"method.stages.{i}.epochs={i + 1}" for i in range(3)])) == 6
    mgta = ["method.baseline.epochs=6", "method.rounds.count=3", "method.rounds.epochs=2", "method.final.epochs=2"]
    assert total_epochs(load_config("mgta-small", mgta)) == 6 + 3 * 2 * 2 + 2
