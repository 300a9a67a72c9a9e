"""The real recipes and `ExperimentConfig`: what a user reads after a mistake, and configs written and read again."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from rayssl.cli import main
from rayssl.config import ExperimentConfig, find_recipe, load_config, load_config_with_notes, recipe_names
from rayssl.errors import ConfigError
from rayssl.methods.psl import PSLConfig, PSLStageConfig
from rayssl.recipe_file import flatten, load_recipe_text, to_yaml
from rayssl.tasks import RotationConfig, RotationLevel

DEMO = find_recipe("demo-psl").read_text()
SMALL = find_recipe("psl-rotation-small").read_text()
SETS = "digits, folder, npz, cifar10, stl10, imagenet, places365, inaturalist, voc2007, voc2012, voc0712"


def load(text: str, *overrides: str) -> ExperimentConfig:
    return load_recipe_text(ExperimentConfig, text, source="recipe.yaml", overrides=overrides)[0]


def mistakes_in(text: str, *overrides: str) -> list[str]:
    """The lines below the heading."""
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value).splitlines()[1:]


def spoil(text: str, old: str, new: str) -> tuple[str, int]:
    """The text with one edit, and the edit's line."""
    assert text.count(old) == 1
    return text.replace(old, new), text[: text.index(old)].count("\n") + 1


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (DEMO, "[2, 3, 4]", "[5]",
         "method.stages.1.blocks: must start at 4 or below, because stage 2 stands on block 4"
         " and nothing has trained it, got [5]"),
        (DEMO, "[3, 4, 5]", "[1, 2]",
         "method.stages.2.blocks: must end at 4 or above, because the stages before have trained blocks 1 to 4,"
         " got [1, 2]"),
        (DEMO, "[2, 3, 4]", "[4, 3, 2]",
         "method.stages.1.blocks: must follow one another upwards, such as [2, 3, 4], got [4, 3, 2]"),
        (DEMO, "[3, 4, 5]", "[3, 4, 6]", "method.stages.2.blocks.2: must be at most 5, got 6"),
        (DEMO, "{angles: 4}", "{angle: 4, angles: 4}",
         "method.stages.1.level.angle: unknown key. Did you mean 'angles'? It can be: angles"),
        (DEMO, "{angles: 4}", "{angles: '4'}",
         "method.stages.1.level.angles: must be a whole number, got '4'. Remove the quotes"),
        (DEMO, "{angles: 4}", "{angles: true}", "method.stages.1.level.angles: must be a whole number, got true"),
        (DEMO, "{angles: 4}", "{angles: 4.0}",
         "method.stages.1.level.angles: must be a whole number, got 4.0. Write 4"),
        (DEMO, "{angles: 4}", "4", "method.stages.1.level: must be a section of 'key: value' lines, got 4"),
        (DEMO, "name: digits", "name: digit",
         "data.name: unknown 'digit'. Did you mean 'digits'?"
         " There are: " + SETS),
        (SMALL, "name: cosine", "name: cosin",
         "optimizer.schedule.name: unknown 'cosin'. Did you mean 'cosine'? There are: steps, cosine, constant"),
        (SMALL, "name: rotation,", "name: rotaton,",
         "method.task.name: unknown 'rotaton'. Did you mean 'rotation'? "
         "There are: jigsaw, rotation, simclr, moco, supervised"),
        (SMALL, "batch_size: 128", "batch_size: 127",
         "training.batch_size: must be a multiple of 4 (2 workers x 2 views a picture in method.stages.0), got 127"),
        (SMALL, "learning_rate: 0.1", "learning_rate: abc", "optimizer.learning_rate: must be a number, got 'abc'"),
        (SMALL, "{name: cosine}", "{name: steps, fractions: [0.3, 83]}",
         "optimizer.schedule.fractions.1: must be less than 1, got 83"),
        (SMALL, "limit: 12000", "limit: 12000, resize: 16", "data.resize: must be at least image_size, 32, got 16"),
        (SMALL, "name: psl-rotation-small", "name: my recipe",
         "name: must match the pattern ^[A-Za-z0-9][A-Za-z0-9._-]*$, got 'my recipe'"),
        (SMALL, "copies: all", "copies: On", "method.task.copies: must be 'all' or 'one', got 'On'."
         " Did you mean 'one'?"),
    ],
)  # fmt: skip
def test_a_spoiled_recipe_is_told_with_its_line(text: str, old: str, new: str, message: str) -> None:
    spoiled, line = spoil(text, old, new)
    assert mistakes_in(spoiled) == [f"recipe.yaml:{line}: {message}"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", level: {angles: 4}", "", "method.stages.1.level: is required"),
        ("{angles: 4}", "{}", "method.stages.1.level.angles: is required"),
        ("{name: digits, ", "{",
         "data.name: is required. There are: " + SETS),
    ],
)  # fmt: skip
def test_what_is_missing_has_no_line(old: str, new: str, message: str) -> None:
    assert mistakes_in(spoil(DEMO, old, new)[0]) == [f"recipe.yaml: {message}"]


def test_mistakes_in_different_sections_and_levels_are_told_together() -> None:
    text, first = spoil(DEMO, "{angles: 2}", "{angles: 1}")
    text, second = spoil(text, "{angles: 8}", "{angels: 8}")
    text, third = spoil(text, "precision: fp32", "precision: fp8")
    assert mistakes_in(text, "data.image_size=4") == [
        "recipe.yaml: method.stages.2.level.angles: is required",
        f"recipe.yaml:{first}: method.stages.0.level.angles: must be at least 2, got 1",
        f"recipe.yaml:{second}: method.stages.2.level.angels: unknown key. Did you mean 'angles'? It can be: angles",
        f"recipe.yaml:{third}: training.precision: must be 'fp32' or 'bf16', got 'fp8'",
        "override data.image_size=4: must be at least 8, got 4",
    ]


def test_the_batch_counts_every_view_of_a_picture() -> None:
    assert mistakes_in(DEMO, "method.task.copies=all", "cluster.workers=3") == [
        f"recipe.yaml:{spoil(DEMO, 'batch_size: 128', '')[1]}: training.batch_size: must be a multiple of 6"
        " (3 workers x 2 views a picture in method.stages.0), got 128"
    ]


def test_an_item_of_an_empty_list_cannot_be_overridden() -> None:
    override = "evaluations.0.epochs=3"
    assert mistakes_in(DEMO, "evaluations=[]", override) == [
        f"override {override}: evaluations: is an empty list. Set the whole list"
    ]


def test_an_unknown_recipe_is_told_with_the_likeliest() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("psl-rotation-smal")
    assert str(caught.value) == (
        "recipe 'psl-rotation-smal': unknown. Did you mean 'psl-rotation-small'?"
        f" There are: {', '.join(recipe_names())}; or give a path that ends in .yaml"
    )


def test_the_command_line_lists_all_mistakes_and_ends_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayssl.cli.signal.signal", lambda *_: None)
    overrides = [
        "method.stages.1.level.angles=3",
        "method.stages.0.level.angles=1",
        "data.nam=x",
        "optimizer.learning_rate=abc",
    ]
    with pytest.raises(SystemExit) as caught:
        main(["pretrain", "demo-psl", "--show", *overrides])
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f"error: {find_recipe('demo-psl')}: 3 mistakes",
        "override method.stages.0.level.angles=1: must be at least 2, got 1",
        "override data.nam=x: unknown key. Did you mean 'name'? It can be: image_size, resize, limit,"
        " validation_fraction, max_bad_fraction, allow_upscaling, cache_gib, cache_path, loader_workers, name",
        "override optimizer.learning_rate=abc: must be a number, got 'abc'",
    ]


def test_what_show_prints_loads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayssl.cli.signal.signal", lambda *_: None)
    overrides = ["optimizer.learning_rate=1e-5", "method.stages.2.level.angles=16"]
    main(["pretrain", "demo-psl", "--show", *overrides])
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path) == load_config("demo-psl", overrides)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_being_written_and_read(name: str) -> None:
    config = load_config(name)
    assert load(to_yaml(config)) == config


@pytest.mark.parametrize("name", recipe_names())
def test_flattened_keys_are_overrides(name: str) -> None:
    """Given back, all of them change nothing, and each alone is accepted."""
    config = load_config(name)
    overrides = [f"{key}={json.dumps(value)}" for key, value in flatten(config).items()]
    assert any(key.startswith(("method.stages.0.level.", "method.rounds.")) for key in flatten(config))
    assert load_config(name, overrides) == config
    for override in overrides:
        assert load_config(name, [override]) == config


def test_a_config_cannot_be_changed() -> None:
    config = load_config("demo-psl")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    assert isinstance(config.method, PSLConfig)
    with pytest.raises(ValidationError, match="frozen"):
        config.method.stages[0].level.angles = 3


def test_another_data_set_drops_the_old_ones_keys_with_a_note() -> None:
    text, _ = spoil(SMALL, "limit: 12000", "limit: 12000, download: false")
    config, notes = load_recipe_text(
        ExperimentConfig, text, source="recipe.yaml", overrides=["data.name=folder", "data.root=pictures"]
    )
    assert config == load_config("psl-rotation-small", ["data.name=folder", "data.root=pictures"])
    assert (config.data.name, flatten(config)["data.root"], config.data.limit) == ("folder", "pictures", 12000)
    assert notes == ["data.name=folder: dropped data.download (not in folder)"]


def test_a_dropped_key_is_called_the_old_sets_own_only_if_no_other_set_has_it() -> None:
    text, _ = spoil(DEMO, "name: digits", "name: folder, root: pictures, test_root: tests")
    notes = load_recipe_text(ExperimentConfig, text, source="recipe.yaml", overrides=["data.name=cifar10"])[1]
    assert notes == ["data.name=cifar10: dropped data.test_root (folder only)"]
    notes = load_config_with_notes("psl-rotation-small", ["data.name=digits"])[1]
    assert notes == ["data.name=digits: dropped data.root (not in digits)"]


def test_a_method_built_in_python_takes_levels_as_data_or_as_configs() -> None:
    stages = [
        PSLStageConfig(blocks=(1, 2), epochs=1, level=level) for level in ({"angles": 4}, RotationLevel(angles=4))
    ]
    method = PSLConfig(task=RotationConfig(), stages=tuple(stages))
    assert [stage.level for stage in method.stages] == [RotationLevel(angles=4)] * 2
    with pytest.raises(ValidationError, match="must be at least 2, got 1") as caught:
        PSLConfig(task=RotationConfig(), stages=(PSLStageConfig(blocks=(1,), epochs=1, level={"angles": 1}),))
    assert caught.value.errors()[0]["loc"] == ("stages", 0, "level", "angles")


def test_an_elastic_number_of_workers_names_the_least_and_the_most() -> None:
    cluster = load_config("demo-psl", ["cluster.workers=[2,4]"]).cluster
    assert (cluster.least_workers, cluster.most_workers, list(cluster.group_sizes)) == (2, 4, [2, 3, 4])
    assert cluster.is_elastic and cluster.describe_workers() == "2 to 4 workers"
    fixed = load_config("demo-psl", ["cluster.workers=1"]).cluster
    assert (fixed.least_workers, fixed.most_workers, list(fixed.group_sizes)) == (1, 1, [1])
    assert not fixed.is_elastic and fixed.describe_workers() == "1 worker"
    assert list(load_config("demo-psl", ["cluster.workers=0"]).cluster.group_sizes) == [1]


@pytest.mark.parametrize(
    ("recipe", "workers", "message"),
    [
        ("demo-psl", "[4,2]", "must be a number, or the least and the most, such as [1, 8], got [4, 2]"),
        ("demo-psl", "[0,4]", "must be greater than 0, got 0"),
        ("demo-psl", "[1,5]", "must be a multiple of 10 (5 workers x 2 views a picture in method.stages.0), got 128"),
        ("psl-simclr-small", "[2,4]", "Of 2 to 4 workers there may be 3, and they need equal shares of a step whose"),
        ("psl-moco-small", "[2,4]", "Of 2 to 4 workers there may be 3"),
        ("demo-mgta", "[1,4]", "training.batch_size: must be a multiple of 3, cluster.workers"),
    ],
)
def test_elastic_workers_that_cannot_share_a_step_are_refused(recipe: str, workers: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(recipe, [f"cluster.workers={workers}"])


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("demo-psl", ["training.accumulate=0"], "training.accumulate=0: must be at least 1, got 0"),
        ("demo-psl", ["training.accumulate=3"],
         "must be a multiple of 12 (2 workers x 3 pieces (training.accumulate) x 2 views a picture in method."),
        ("psl-simclr-small", ["training.accumulate=2"],
         "training.accumulate=2: must be 1 where the loss of simclr looks across the whole batch, got 2"),
        ("psl-moco-small", ["training.accumulate=2"], "must be 1 where the loss of moco looks across the whole batch"),
        ("demo-psl", ["training.accumulate=2", "training.sync_batchnorm=true"],
         "training.accumulate=2: must be 1 where BatchNorm is synchronised across the whole batch, got 2"),
        ("demo-mgta", ["training.accumulate=2"], "training.accumulate=2: must be 1 with mgta, whose triplets"),
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_cut_into_pieces_is_refused(recipe: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(recipe, overrides)


def test_each_worker_takes_its_pieces_in_turn() -> None:
    assert load_config("demo-psl", ["training.accumulate=4"]).task_setting().parts == 2 * 4
    assert load_config("demo-psl", ["training.accumulate=4", "cluster.workers=0"]).task_setting().parts == 4
    assert load_config("demo-psl", ["training.accumulate=2", "cluster.workers=[1,4]"]).task_setting().parts == 4 * 2
    assert load_config("demo-psl").task_setting().parts is None


def test_batchnorm_over_all_workers_needs_equal_shares_too() -> None:
    """Rotation alone is a mean over pictures, and may be cut into as many parts as there are workers at most."""
    load_config("demo-psl", ["cluster.workers=[2,4]"])
    with pytest.raises(ConfigError, match="there may be 3"):
        load_config("demo-psl", ["cluster.workers=[2,4]", "training.sync_batchnorm=true"])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("abfs://box/runs", "must be a folder, or begin with s3://, gs://, file://, got abfs://box/runs. Mount other"),
        ("s3://", "must be such as s3://bucket/runs"),
        ("file://runs", "must be such as s3://bucket/runs, or file:///folder/runs, got file://runs"),
        ("s3://bucket/a/../b", "must be such as"),
    ],
)
def test_an_address_of_no_object_store_is_refused(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"storage_path={address}: {message}")):
        load_config("demo-psl", [f"storage_path={address}"])


@pytest.mark.parametrize(
    "address",
    [
        "s3://KEY:XYZZY@bucket/runs",
        "s3://KEY%3AXYZZY%40bucket/runs",
        "postgresql://me:XYZZY@host/runs",
        "file://XYZZY@runs",
        "s3://bucket/../runs?secret_key=XYZZY",
        *(f"s3://bucket/runs?{name}=XYZZY" for name in ("password", "key", "sas", "signature", "token", "pass%77ord")),
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(address: str) -> None:
    """Whatever else is wrong with it, on the command line and in a file."""
    with pytest.raises(ConfigError, match="must name no key or password, since it is written into every run") as caught:
        load_config("demo-psl", [f"storage_path={address}"])
    assert "XYZZY" not in str(caught.value)


def test_the_address_of_an_object_store_stays_as_it_was_written(tmp_path: Path) -> None:
    config = load_config("demo-psl", ["storage_path=s3://bucket/runs?region=eu-west-1"])
    assert config.storage_path == "s3://bucket/runs?region=eu-west-1"
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config
    assert load_config("demo-psl", ["storage_path=~/runs"]).storage_path == Path("~/runs")
