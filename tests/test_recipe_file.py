"""The loader on a toy recipe like the real one: nested sections, unions by name, a list of stages, an alias."""

import json
import math
import random
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from rayssl.errors import ConfigError
from rayssl.recipe_file import did_you_mean, flatten, load_recipe, load_recipe_text, to_yaml, write_json_schema
from rayssl.schema import Config


class Cifar10(Config):
    name: Literal["cifar10"] = "cifar10"
    root: Path = Path("data")
    limit: int | None = Field(default=None, ge=1)
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)


class Folder(Config):
    name: Literal["folder"] = "folder"
    root: Path
    extensions: tuple[str, ...] = (".jpg", ".png")


class RotationLevel(Config):
    angles: int = Field(ge=2)


class Rotation(Config):
    name: Literal["rotation"] = "rotation"
    corners: Literal["inside", "mask"] = "inside"


class Jigsaw(Config):
    name: Literal["jigsaw"] = "jigsaw"
    grid: int = 3


class Stage(Config):
    blocks: Annotated[tuple[int, ...], Field(min_length=1)]
    epochs: int = Field(ge=1)
    level: dict[str, Any] = {}

    @field_validator("blocks")
    @classmethod
    def _upwards(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if list(blocks) != sorted(blocks):
            raise ValueError("blocks must go upwards, such as [2, 3, 4]")
        return blocks


class Psl(Config):
    name: Literal["psl"] = "psl"
    task: Annotated[Rotation | Jigsaw, Field(discriminator="name")]
    stages: tuple[Stage, ...] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _levels(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        mistakes = []
        for index, stage in enumerate(stages):
            try:
                RotationLevel.model_validate(stage.level)
            except ValidationError as error:
                for detail in error.errors():
                    place = (index, "level", *detail["loc"])
                    context = detail.get("ctx", {})
                    mistakes.append(
                        InitErrorDetails(type=detail["type"], loc=place, input=detail["input"], ctx=context)
                    )
        if mistakes:
            raise ValidationError.from_exception_data("stages", mistakes)
        return stages


class Rounds(Config):
    count: int = 10
    weight: tuple[float, float] = Field(default=(0.1, 1.0), alias="lambda")


class Mgta(Config):
    name: Literal["mgta"] = "mgta"
    rounds: Rounds = Rounds(count=5)
    margin: Annotated[float, Field(gt=0)] | Literal["soft"] = "soft"


class Steps(Config):
    name: Literal["steps"] = "steps"
    fractions: tuple[float, ...] = (0.33, 0.67)


class Cosine(Config):
    name: Literal["cosine"] = "cosine"
    warmup: int = Field(default=0, ge=0)


class Sgd(Config):
    name: Literal["sgd"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0)
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Annotated[Steps | Cosine, Field(discriminator="name")] | None = Steps()


class Lars(Config):
    name: Literal["lars"] = "lars"
    learning_rate: float = Field(default=0.3, gt=0)
    trust_coefficient: float = 1e-3


class LinearProbe(Config):
    name: Literal["linear_probe"] = "linear_probe"
    epochs: int = 28
    flip: bool = True


class Knn(Config):
    name: Literal["knn"] = "knn"
    neighbours: int = 20


class Online(Config):
    probe: bool = True
    every: int = 1


class Recipe(Config):
    name: str
    seed: int = 0
    data: Annotated[Cifar10 | Folder, Field(discriminator="name")]
    method: Annotated[Psl | Mgta, Field(discriminator="name")]
    optimizer: Annotated[Sgd | Lars, Field(discriminator="name")] = Sgd(learning_rate=0.05)
    online: Online = Online(every=3)
    evaluations: tuple[Annotated[LinearProbe | Knn, Field(discriminator="name")], ...] = (LinearProbe(),)
    storage_path: Path = Path("runs")

    @model_validator(mode="after")
    def _enough_pictures(self) -> Self:
        if isinstance(self.data, Cifar10) and self.data.limit == 7:
            raise ValueError("data.limit: must not be seven for a fair split")
        return self


RECIPE = """\
name: rotation-small
seed: 0
data: {name: cifar10, root: data, limit: 20000}
method:
  name: psl
  task: {name: rotation, corners: inside}
  stages:
    - {blocks: [1, 2, 3], epochs: 4, level: {angles: 2}}
    - blocks: [2, 3, 4]
      epochs: 4
      level: {angles: 4}
optimizer:
  name: sgd
  weight_decay: 1e-4
  schedule: {name: steps, fractions: [0.5]}
evaluations: [{name: linear_probe, epochs: 5}, {name: knn}]
"""

MGTA = "name: mgta-small\ndata: {name: cifar10}\nmethod:\n  name: mgta\n"


def load(text: str = RECIPE, *overrides: str) -> Recipe:
    return load_recipe_text(Recipe, text, source="recipe.yaml", overrides=overrides)[0]


def notes_of(text: str, *overrides: str) -> list[str]:
    return load_recipe_text(Recipe, text, source="recipe.yaml", overrides=overrides)[1]


def mistakes_in(text: str, *overrides: str) -> list[str]:
    """The lines below the heading; every message has to be free of pydantic's and Python's own words."""
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    message = str(caught.value)
    for jargon in (
        "validation error",
        "type=",
        "https://",
        "Traceback",
        "Input should",
        "discriminator",
        "Value error",
    ):
        assert jargon not in message
    heading, *lines = message.splitlines()
    assert heading == f"recipe.yaml: {len(lines)} mistake{'s' if len(lines) != 1 else ''}"
    return lines


def spoil(old: str, new: str, text: str = RECIPE) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


def test_a_recipe_becomes_the_config_it_describes() -> None:
    config = load()
    assert config == Recipe(
        name="rotation-small",
        data=Cifar10(limit=20000),
        method=Psl(
            task=Rotation(),
            stages=(
                Stage(blocks=(1, 2, 3), epochs=4, level={"angles": 2}),
                Stage(blocks=(2, 3, 4), epochs=4, level={"angles": 4}),
            ),
        ),
        optimizer=Sgd(weight_decay=0.0001, schedule=Steps(fractions=(0.5,))),
        evaluations=(LinearProbe(epochs=5), Knn()),
    )


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "  weight_decay: 1e-4",
            "  weight_decai: 1e-4",
            ":14: optimizer.weight_decai: unknown key. Did you mean 'weight_decay'?"
            " It can be: name, learning_rate, momentum, weight_decay, schedule",
        ),
        (
            "{name: rotation, corners: inside}",
            "{name: jigsaww}",
            ":6: method.task.name: unknown 'jigsaww'. Did you mean 'jigsaw'? There are: rotation, jigsaw",
        ),
        ("task: {name: rotation, ", "task: {", ": method.task.name: is required. There are: rotation, jigsaw"),
        ("seed: 0", "seed: abc", ":2: seed: must be a whole number, got 'abc'"),
        ("seed: 0", "seed: '3'", ":2: seed: must be a whole number, got '3'. Remove the quotes"),
        ("seed: 0", "seed: 3.0", ":2: seed: must be a whole number, got 3.0. Write 3"),
        ("seed: 0", "seed: true", ":2: seed: must be a whole number, got true"),
        ("limit: 20000", "limit: -1", ":3: data.limit: must be at least 1, got -1"),
        ("limit: 20000", "limit: 7", ":3: data.limit: must not be seven for a fair split"),
        ("weight_decay: 1e-4", "learning_rate: 0", ":14: optimizer.learning_rate: must be greater than 0, got 0"),
        ("weight_decay: 1e-4", "momentum: false", ":14: optimizer.momentum: must be a number, got false"),
        ("weight_decay: 1e-4", "momentum: .nan", ":14: optimizer.momentum: must be finite, got nan"),
        ("      epochs: 4\n", "", ": method.stages.1.epochs: is required"),
        ("name: rotation-small\n", "", ": name: is required"),
        ("name: rotation-small", "name: 2026", ":1: name: must be text, got 2026. Put it in quotes"),
        ("seed: 0", "seed: 0\nseed: 1", ":3: seed: is given twice, first on line 2"),
        ("{angles: 4}", "{angles: 1}", ":11: method.stages.1.level.angles: must be at least 2, got 1"),
        ("{angles: 4}", "{angle: 4, angles: 4}", ":11: method.stages.1.level.angle: unknown key"),
        (
            "blocks: [2, 3, 4]",
            "blocks: [2, x, 4]",
            ":9: method.stages.1.blocks.1: must be a whole number, got 'x'",
        ),
        (
            "blocks: [2, 3, 4]",
            "blocks: []",
            ":9: method.stages.1.blocks: must have at least 1 item, got []",
        ),
        (
            "blocks: [2, 3, 4]",
            "blocks: [3, 2]",
            ":9: method.stages.1.blocks: blocks must go upwards, such as [2, 3, 4]",
        ),
        (
            "corners: inside",
            "corners: insid",
            ":6: method.task.corners: must be 'inside' or 'mask', got 'insid'. Did you mean 'inside'?",
        ),
        ("{name: knn}", "{name: linear_probe, flip: no}",
         ":16: evaluations.1.flip: must be true or false, got 'no'"),
        ("{name: knn}", "knn", ":16: evaluations.1: must be a section of 'key: value' lines, got 'knn'"),
        ("[{name: linear_probe, epochs: 5}, {name: knn}]", "knn", ":16: evaluations: must be a list, got 'knn'"),
        ("seed: 0", "online:", ":2: online: must be a section of 'key: value' lines, got null"),
        ("seed: 0", "optimizer.momentum: 1",
         ":2: optimizer.momentum: unknown key. Did you mean 'optimizer'? Nest it: dots don't open sections in a file"),
        ("seed: 0", "<<: {seed: 1}", ":2: <<: merge keys are not supported. Write the keys out"),
        ("seed: 0", "? [1]\n: 2", ":2: a key must be text"),
    ],
)  # fmt: skip
def test_a_spoiled_recipe_is_told_in_one_line(old: str, new: str, line: str) -> None:
    assert mistakes_in(spoil(old, new)) == [f"recipe.yaml{line}"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("  rounds: {lambda: [1]}", ":5: method.rounds.lambda: must have 2 items, got [1]"),
        ("  rounds: {lambda: [1, 2, 3]}", ":5: method.rounds.lambda: must have at most 2 items, got [1, 2, 3]"),
        ("  rounds: {lamda: [1, 2]}",
         ":5: method.rounds.lamda: unknown key. Did you mean 'lambda'? It can be: count, lambda"),
        ("  margin: hard", ":5: method.margin: must be a number or 'soft', got 'hard'"),
        ("  margin: -1", ":5: method.margin: must be greater than 0 or 'soft', got -1"),
    ],
)  # fmt: skip
def test_aliases_tuples_and_plain_unions_are_told_in_plain_words(lines: str, message: str) -> None:
    assert mistakes_in(MGTA + lines) == [f"recipe.yaml{message}"]


class Custom(Config):
    value: int

    @field_validator("value")
    @classmethod
    def _check(cls, value: int) -> int:
        raise PydanticCustomError("prime", "must be prime, but {value} is not", {"value": value})


def test_a_message_of_our_own_is_shown_as_it_stands() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe_text(Custom, "value: 4", source="recipe.yaml")
    assert str(caught.value) == "recipe.yaml: 1 mistake\nrecipe.yaml:1: value: must be prime, but 4 is not"


class Mixed(Config):
    value: Annotated[Sgd | Lars, Field(discriminator="name")] | float | tuple[float, float]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("x", ":1: value: must be a section of 'key: value' lines or a number or a list, got 'x'"),
        ("[1, x]", ":1: value.1: must be a number, got 'x'"),
        ("{name: lars, trust_coefficient: x}", ":1: value.trust_coefficient: must be a number, got 'x'"),
        ("{name: sgdd}", ":1: value.name: unknown 'sgdd'. Did you mean 'sgd'? There are: sgd, lars"),
    ],
)
def test_in_a_union_of_sections_numbers_and_lists_the_mistake_is_told_where_the_shape_fits(
    value: str, line: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe_text(Mixed, f"value: {value}", source="recipe.yaml")
    assert str(caught.value) == f"recipe.yaml: 1 mistake\nrecipe.yaml{line}"


def test_all_mistakes_are_told_at_once_by_line_with_overrides_last() -> None:
    """Bad tags, unknown keys and wrong values in different sections hide none of the others."""
    text = RECIPE
    edits = {
        "cifar10": "cifar",
        "seed: 0": "seed: x",
        "{angles: 4}": "{angles: 4}\n      x: 1",
        "epochs: 5": "epochs: x",
    }
    for old, new in edits.items():
        text = spoil(old, new, text)
    text = spoil("name: rotation-small\n", "# no name\n", text)
    assert mistakes_in(text, "online.every=often", "optimizer.momentum=x") == [
        "recipe.yaml: name: is required",
        "recipe.yaml:2: seed: must be a whole number, got 'x'",
        "recipe.yaml:3: data.name: unknown 'cifar'. Did you mean 'cifar10'? There are: cifar10, folder",
        "recipe.yaml:12: method.stages.1.x: unknown key. It can be: blocks, epochs, level",
        "recipe.yaml:17: evaluations.0.epochs: must be a whole number, got 'x'",
        "override online.every=often: must be a whole number, got 'often'",
        "override optimizer.momentum=x: must be a number, got 'x'",
    ]  # fmt: skip


def test_a_duplicate_key_does_not_hide_other_mistakes() -> None:
    assert mistakes_in(spoil("seed: 0", "seed: x\nseed: 1")) == [
        "recipe.yaml:2: seed: must be a whole number, got 'x'",
        "recipe.yaml:3: seed: is given twice, first on line 2",
    ]


def test_a_long_value_is_shortened() -> None:
    (line,) = mistakes_in(spoil("seed: 0", f"seed: {'x' * 500}"))
    assert line == f"recipe.yaml:2: seed: must be a whole number, got '{'x' * 56}..."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ndata:\n\tname: y", "recipe.yaml:3:1: a tab can't indent. Use spaces"),
        ("name: [1, 2", "recipe.yaml:1:12: expected ',' or ']'"),
        ("data: {name: x\nseed: 1", "recipe.yaml:2:5: expected ',' or '}' (it began on line 1)"),
        ("name: a: b", "recipe.yaml:1:8: a ':' can't stand here. Check the indentation, or put the text in quotes"),
        ("data:\n  name: x\n root: y", "recipe.yaml:3:2: expected the same indentation as the lines above"),
        ("name: 'a' b", "recipe.yaml:1:11: text can't stand here. Check the quotes and the indentation"),
        ("name: 'a\n", "recipe.yaml:2:1: expected a closing quote (it began on line 1)"),
        ("name: x\nseed\n", "recipe.yaml:3:1: expected ':' after the key (it began on line 2)"),
        ("name: @x", "recipe.yaml:1:7: text can't start with @. Put it in quotes"),
        ('name: "C:\\data"', "recipe.yaml:1:11: \\d means nothing in double quotes. Use single quotes"),
        ('name: "\\UFFFFFFFF"', "recipe.yaml:1:10: a \\U escape must be at most \\U0010FFFF"),
        ('name: "\\ud800"', "recipe.yaml:1:7: \\uD800 to \\uDFFF are halves of characters. Use \\U and eight digits"),
        ("name: x\n---\nname: y", "recipe.yaml:2:1: expected one document, but '---' starts another"),
        ("name: x\ndata: a\x07", "recipe.yaml:2:8: control characters can't stand here"),
        ("a: &a [1]\nb: *a", "recipe.yaml:1:4: anchors and aliases (& and *) are not supported."
         " Write the value out, or put the text in quotes"),
        ("a: !!python/object/apply:os.getcwd []", "recipe.yaml:1:4: tags (!) are not supported."
         " Write the plain value, or put the text in quotes"),
        ("a: " + "[" * 100_000, "recipe.yaml:1:35: sections and lists must be nested at most 32 deep"),
        ("seed: 1" + "0" * 100, "recipe.yaml:1:7: a number must have at most 100 digits"),
        ("", "recipe.yaml: must have 'key: value' lines, but is empty"),
        ("# nothing\n", "recipe.yaml: must have 'key: value' lines, but is empty"),
        ("- name: x", "recipe.yaml: must have 'key: value' lines at the top level, got [{name: 'x'}]"),
        ("just text", "recipe.yaml: must have 'key: value' lines at the top level, got 'just text'"),
    ],
)  # fmt: skip
def test_text_that_is_no_recipe_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: x\nroot: \xff\n", ":2: must be UTF-8 text, got the byte 0xff"),
        (b"# " + b"x" * 1_000_000, ": must be at most 1 MB. A recipe has a few kB: is this the right file?"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(Recipe, path)
    assert str(caught.value) == f"{path}{message}"


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: there is no such file$"):
        load_recipe(Recipe, tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="must be a YAML file, but is a folder$"):
        load_recipe(Recipe, tmp_path)


def test_a_file_is_named_by_its_path_and_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("\n", "\r\n"), encoding="utf-8-sig")
    assert load_recipe(Recipe, path, ["seed=4"]) == (load(RECIPE, "seed=4"), [])
    with pytest.raises(ConfigError, match="unknown 'cifar'") as caught:
        path.write_text(spoil("cifar10", "cifar"))
        load_recipe(Recipe, path)
    assert f"{path}:3: data.name" in str(caught.value)


class Anything(Config):
    value: Any


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("-1e3", -1e3), ("+1.", 1.0), ("1.5e+3", 1500.0), (".inf", math.inf),
        ("-.INF", -math.inf), ("010", 10), ("0o17", 15), ("0x1f", 31), ("-7", -7), ("+7", 7), ("true", True),
        ("TRUE", True), ("False", False), ("null", None), ("~", None), ("", None), ("NULL", None), ("yes", "yes"),
        ("on", "on"), ("no", "no"), ("Off", "Off"), ("y", "y"), ("tRUE", "tRUE"), ("2026-01-02", "2026-01-02"),
        ("12:30:45", "12:30:45"), ("1_000", "1_000"), ("0b11", "0b11"), ("1e", "1e"), (".", "."), ("-", [None]),
        ("'1'", "1"), ('"true"', "true"), ("=", "="), ("inf", "inf"), ("0o8", "0o8"), ("[1, 1e1]", [1, 10.0]),
        ("{a: 1}", {"a": 1}), ("{1: x, true: y}", {"1": "x", "true": "y"}),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    config, _ = load_recipe_text(Anything, f"value:\n  {text}", source="recipe.yaml")
    assert config.value == value
    assert type(config.value) is type(value)


def test_nan_is_a_number() -> None:
    config, _ = load_recipe_text(Anything, "value: .NaN", source="recipe.yaml")
    assert math.isnan(config.value)


def test_an_override_is_read_as_yaml() -> None:
    config = load(
        RECIPE,
        "optimizer.learning_rate=1e-3",
        "method.stages.0.blocks=[1,2]",
        "method.stages.1={blocks: [3], epochs: 1, level: {angles: 8}}",
        "data.limit=null",
        "storage_path=a=b",
        "name='1'",
        "optimizer.schedule=",
        "seed=1",
        "seed=2",
    )
    assert isinstance(config.method, Psl) and isinstance(config.optimizer, Sgd) and isinstance(config.data, Cifar10)
    assert config.optimizer.learning_rate == 1e-3
    assert config.method.stages[0].blocks == (1, 2)
    assert config.method.stages[1] == Stage(blocks=(3,), epochs=1, level={"angles": 8})
    assert (config.data.limit, config.storage_path, config.name) == (None, Path("a=b"), "1")
    assert config.optimizer.schedule is None
    assert config.seed == 2


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("seed", "must be key=value, but has no '='"),
        ("=3", "must have a key before the '=', such as data.limit, without empty parts"),
        ("data..limit=3", "must have a key before the '=', such as data.limit, without empty parts"),
        ("method.stages.2.epochs=3", "method.stages: has 2 items, so the index must be 0 to 1, got 2"),
        ("method.stages.x=3", "method.stages: has 2 items, so the index must be 0 to 1, got x"),
        ("method.stages.-1.epochs=3", "method.stages: has 2 items, so the index must be 0 to 1, got -1"),
        ("seed.x=3", "seed: must be a section or a list, got 0"),
        ("optimzer.name=sgd", "optimzer: unknown key. Did you mean 'optimizer'?"
         " It can be: name, seed, data, method, optimizer, online, evaluations, storage_path"),
        ("online.evry=2", "unknown key. Did you mean 'every'? It can be: probe, every"),
        ("data.name=foldr", "unknown 'foldr'. Did you mean 'folder'? There are: cifar10, folder"),
        ("data.limit=[1", "expected ',' or ']'"),
        ("data.limit=-1", "must be at least 1, got -1"),
        ("data.limit=7", "must not be seven for a fair split"),
        ("data={name: folder}", "data.root: is required"),
        ("data={name: cifar10, root: a, root: b}", "data.root: is given twice"),
    ],
)  # fmt: skip
def test_a_bad_override_is_told_in_one_line(override: str, rule: str) -> None:
    assert mistakes_in(RECIPE, override) == [f"override {override}: {rule}"]


def test_a_long_or_unprintable_override_is_shown_in_part() -> None:
    assert mistakes_in(RECIPE, "storage_path=\n") == ["override storage_path=\\n: must be text, got null"]
    (line,) = mistakes_in(RECIPE, ".".join("x" * 33) + "=1")
    assert line == f"override {'x.' * 28}x...: the key must have at most 32 parts, got 33"


def test_bad_overrides_are_told_together_and_in_their_order() -> None:
    assert mistakes_in(RECIPE, "seed=x", "nothing", "evaluations.9.name=knn", "evaluations.0.epochs=y") == [
        "override seed=x: must be a whole number, got 'x'",
        "override nothing: must be key=value, but has no '='",
        "override evaluations.9.name=knn: evaluations: has 2 items, so the index must be 0 to 1, got 9",
        "override evaluations.0.epochs=y: must be a whole number, got 'y'",
    ]


def test_an_override_keeps_the_rest_of_a_section_that_only_the_default_has() -> None:
    """`online` is missing in the file: its default has every=3, unlike its class."""
    assert load(RECIPE, "online.probe=false").online == Online(probe=False, every=3)
    config = load(MGTA, "optimizer.momentum=0.5", "evaluations.0.epochs=9", "optimizer.schedule.fractions=[0.9]")
    assert config.optimizer == Sgd(learning_rate=0.05, momentum=0.5, schedule=Steps(fractions=(0.9,)))
    assert config.evaluations == (LinearProbe(epochs=9),)


def test_a_new_tag_drops_what_only_the_old_class_has_with_a_note() -> None:
    config, notes = load_recipe_text(Recipe, RECIPE, source="recipe.yaml", overrides=["data.name=folder"])
    assert config.data == Folder(root=Path("data"))
    assert notes == ["data.name=folder: dropped data.limit (cifar10 only)"]


def test_a_new_tag_drops_whole_sections_inside_lists_and_inside_unions() -> None:
    config, notes = load_recipe_text(
        Recipe,
        RECIPE,
        source="recipe.yaml",
        overrides=["method.name=mgta", "evaluations.0.name=knn", "optimizer.schedule.name=cosine"],
    )
    assert config.method == Mgta()
    assert config.evaluations == (Knn(), Knn())
    assert config.optimizer == Sgd(weight_decay=1e-4, schedule=Cosine())
    assert notes == [
        "method.name=mgta: dropped method.task, method.stages (psl only)",
        "evaluations.0.name=knn: dropped evaluations.0.epochs (linear_probe only)",
        "optimizer.schedule.name=cosine: dropped optimizer.schedule.fractions (steps only)",
    ]


def test_a_tag_that_stays_drops_nothing() -> None:
    assert notes_of(RECIPE, "data.name=cifar10") == []
    assert load(RECIPE, "data.name=cifar10") == load()


@pytest.mark.parametrize("overrides", [["data.name=folder", "data.limit=5"], ["data.limit=5", "data.name=folder"]])
def test_a_key_set_by_an_override_is_never_dropped(overrides: list[str]) -> None:
    assert mistakes_in(RECIPE, *overrides) == [
        "override data.limit=5: unknown key. It can be: name, root, extensions",
    ]


def test_a_typo_in_the_file_outlives_a_new_tag() -> None:
    """It belongs to no class, so a note "cifar10 only" would be wrong, and silence would hide it."""
    text = spoil("limit: 20000", "limt: 20000")
    assert mistakes_in(text, "data.name=folder") == [
        "recipe.yaml:3: data.limt: unknown key. It can be: name, root, extensions"
    ]


def test_a_new_tag_may_stand_after_the_keys_of_its_class() -> None:
    overrides = ["optimizer.trust_coefficient=0.1", "optimizer.name=lars", "method.rounds.count=2", "method.name=mgta"]
    config = load(RECIPE, *overrides)
    assert config == load(RECIPE, *reversed(overrides))
    assert config.optimizer == Lars(trust_coefficient=0.1)
    assert config.method == Mgta(rounds=Rounds(count=2))


def test_a_new_tag_of_a_default_section_starts_from_the_new_class() -> None:
    config, notes = load_recipe_text(Recipe, MGTA, source="recipe.yaml", overrides=["optimizer.name=lars"])
    assert (config.optimizer, notes) == (Lars(), [])


def test_of_a_tag_and_a_whole_section_the_later_counts() -> None:
    assert load(RECIPE, "data={name: folder, root: x}", "data.name=cifar10").data == Cifar10(root=Path("x"))
    assert load(RECIPE, "data.name=cifar10", "data={name: folder, root: x}").data == Folder(root=Path("x"))


ROUND_TRIPS = [
    load(),
    load(RECIPE, "optimizer.name=lars", "data.name=folder", "name=yes", "seed=1", "storage_path='010'"),
    load(MGTA, "method.rounds.lambda=[1e-300, 123456789.125]", "method.margin=1e-5", "name='1e5'"),
]


@pytest.mark.parametrize("config", ROUND_TRIPS)
def test_yaml_loads_back_to_an_equal_config(config: Recipe) -> None:
    text = to_yaml(config)
    assert load(text) == config
    assert to_yaml(load(text)) == text


@pytest.mark.parametrize("config", ROUND_TRIPS)
def test_flattened_keys_are_overrides_that_rebuild_the_config(config: Recipe) -> None:
    overrides = [f"{key}={json.dumps(value)}" for key, value in flatten(config).items()]
    other = RECIPE if isinstance(config.method, Psl) else MGTA
    assert load(other, *overrides) == config


def test_flatten_names_every_value_by_its_dotted_key() -> None:
    flat = flatten(load())
    assert list(flat)[:5] == ["name", "seed", "data.name", "data.root", "data.limit"]
    assert flat["method.stages.1.blocks"] == [2, 3, 4]
    assert flat["method.stages.1.level.angles"] == 4
    assert flat["data.root"] == "data"
    assert flatten(load(MGTA))["method.rounds.lambda"] == [0.1, 1.0]


def test_yaml_shows_sections_in_the_declared_order_and_short_lists_in_one_line() -> None:
    assert to_yaml(load(MGTA, "optimizer.weight_decay=1e-4", "optimizer.schedule=null")) == (
        "name: mgta-small\nseed: 0\n"
        "data:\n  name: cifar10\n  root: data\n  limit: null\n  validation_fraction: 0.1\n"
        "method:\n  name: mgta\n  rounds:\n    count: 10\n    lambda: [0.1, 1.0]\n  margin: soft\n"
        "optimizer:\n  name: sgd\n  learning_rate: 0.05\n  momentum: 0.9\n  weight_decay: 1.0e-4\n  schedule: null\n"
        "online:\n  probe: true\n  every: 3\n"
        "evaluations:\n- name: linear_probe\n  epochs: 28\n  flip: true\n"
        "storage_path: runs\n"
    ).replace("count: 10", "count: 5")


def test_written_scalars_are_read_alike_by_yaml_1_1_and_1_2() -> None:
    """PyYAML's own loader reads 1.1, ours 1.2; text that either takes for a number or a date is the danger."""
    draw = random.Random(0)
    alphabet = "abeEyno019+-.:#[]{}\n\t 'é\"~=<_,&*!|>%@`\u2028\x85\ufeff😀\x00"
    texts = [
        "yes",
        "1e5",
        "1e-4",
        "010",
        "0o17",
        "2026-01-02",
        "12:30",
        "",
        "null",
        "<<",
        "=",
        ".inf",
        "- a",
        "x\u2028}",
    ]
    texts += ["".join(draw.choices(alphabet, k=draw.randrange(6))) for _ in range(500)]
    numbers = [0.0001, 1e-5, 1e16, 1e22, 5e-324, -1.7976931348623157e308, 0.1, 1.0, 123456.789, 0.0]
    numbers += [draw.uniform(-1, 1) * 10.0 ** draw.randrange(-300, 300) for _ in range(300)]
    for value in [*texts, *numbers]:
        text = to_yaml(Anything(value=[value]))
        assert load_recipe_text(Anything, text, source="recipe.yaml")[0].value == [value]
        assert yaml.safe_load(text) == {"value": [value]}


def test_small_and_large_floats_have_a_point_and_a_signed_exponent() -> None:
    assert to_yaml(Anything(value=[1e-4, -2.5e-7, 1e16, 0.05])) == "value: [1.0e-4, -2.5e-7, 1.0e+16, 0.05]\n"


def test_shared_values_are_written_twice() -> None:
    shared = [1, 2]
    assert to_yaml(Anything(value={"a": shared, "b": shared})) == "value:\n  a: [1, 2]\n  b: [1, 2]\n"


def test_the_json_schema_names_its_dialect_and_knows_aliases(tmp_path: Path) -> None:
    write_json_schema(Recipe, tmp_path / "recipe.json")
    schema = json.loads((tmp_path / "recipe.json").read_text())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "Recipe"
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert "lambda" in schema["$defs"]["Rounds"]["properties"]


def test_did_you_mean_ignores_case_and_stays_silent_without_a_likeness() -> None:
    assert did_you_mean("Learning_Rat", ["momentum", "learning_rate"]) == " Did you mean 'learning_rate'?"
    assert did_you_mean("zebra", ["momentum", "learning_rate"]) == ""
    assert did_you_mean("x", []) == ""


def test_a_spoiled_text_never_ends_in_anything_but_a_config_error() -> None:
    """Random edits: whatever happens is a config or one printable message."""
    draw = random.Random(0)
    alphabet = "ab019:-[]{}#,&*!|>'\"%@`\n\t .~?\\<=\x07\ud800é\u2028"
    overrides = ["optimizer.name=lars", "evaluations.0.name=knn", "data.limit=x", "method.stages.0=3", "a.b=1"]
    for _ in range(300):
        characters = list(RECIPE)
        for _ in range(draw.choice([1, 2, 5])):
            place = draw.randrange(len(characters) - 5)
            characters[place : place + draw.randrange(5)] = draw.choices(alphabet, k=draw.randrange(3))
        try:
            load("".join(characters), *draw.sample(overrides, draw.randrange(3)))
        except ConfigError as error:
            assert all(line.isprintable() for line in str(error).splitlines())
