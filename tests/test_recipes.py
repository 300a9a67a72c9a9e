"""Every recipe that comes with rayssl, and the schema beside them by which editors check recipes."""

from pathlib import Path

import pytest

from rayssl.config import ExperimentConfig, find_recipe, load_config_with_notes, recipe_names, recipe_summaries
from rayssl.recipe_file import write_json_schema

RECIPES = Path(find_recipe("demo-psl")).parent


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_loads_under_the_name_of_its_file(name: str) -> None:
    config, notes = load_config_with_notes(name)
    assert config.name == name
    assert notes == []


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_names_the_schema_first_and_then_says_what_it_is(name: str) -> None:
    first, second, *others = find_recipe(name).read_text().splitlines()
    assert first == "# yaml-language-server: $schema=schema.json"
    assert second.startswith("# ") and second.endswith(".")
    assert (name, second.removeprefix("# ")) in recipe_summaries()
    assert any(line.startswith(f"# Command  rayssl pretrain {name}") for line in others)


def test_the_schema_is_up_to_date(tmp_path: Path) -> None:
    """If not: rayssl schema rayssl/recipes/schema.json."""
    write_json_schema(ExperimentConfig, tmp_path / "schema.json")
    assert (RECIPES / "schema.json").read_text() == (tmp_path / "schema.json").read_text()
