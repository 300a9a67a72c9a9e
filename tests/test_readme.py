"""The README against the code: its commands run, its links lead somewhere, its table is complete."""

import re
from pathlib import Path

import pytest

from rayssl import cli
from rayssl.config import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.removeprefix(".venv/bin/") for block in BLOCKS for line in block.splitlines()]
PRETRAIN = [line.split()[2:] for line in COMMANDS if line.startswith("rayssl pretrain")]


@pytest.mark.parametrize("arguments", PRETRAIN, ids=" ".join)
def test_its_recipes_and_overrides_are_accepted(arguments: list[str]) -> None:
    load_config(arguments[0], arguments[1:])


def test_its_example_of_mistakes_is_what_the_command_says(capsys: pytest.CaptureFixture[str]) -> None:
    block = next(block for block in BLOCKS if block.startswith("$ rayssl pretrain"))
    command, *expected = block.splitlines()
    with pytest.raises(SystemExit) as end:
        cli.main(command.removeprefix("$ rayssl ").split())
    assert end.value.code == 2
    said = capsys.readouterr().err.replace(f"{ROOT}/", "")
    assert said.splitlines() == expected


def test_make_targets_that_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`make ([a-z-]+)`", README)) | set(re.findall(r"^make ([a-z-]+)$", README, re.M))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_files_that_it_shows_and_names_exist() -> None:
    for path in re.findall(r"\]\((docs/[^)]+)\)", README):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"`([a-z_/]+\.py)`", README):
        assert (ROOT / path).is_file() or (ROOT / "rayssl" / path).is_file(), path


def test_every_dependency_has_its_reason() -> None:
    table = README[README.index("| dependency |") :]
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        assert re.split(r"[>=\[]", line)[0] in table, line
