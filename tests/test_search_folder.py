"""Which search a command goes on with, as `rayssl pretrain` does with runs: the newest that is not finished."""

from pathlib import Path

import pytest

from rayssl.errors import ConfigError
from rayssl.search_folder import open_search
from rayssl.search_space import Study, load_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "small.yaml"
    path.write_text(
        f"recipe: demo-psl\nset: {{storage_path: {tmp_path / 'runs'}}}\n"
        "search: {optimizer.learning_rate: {uniform: [0.1, 0.8]}}\ntune: {metric: loss, mode: min}\n"
    )
    return load_study(path)


def open_quietly(study: Study, *, resume: bool = False, fresh: bool = False) -> tuple[Path, bool]:
    return open_search(study, resume=resume, fresh=fresh, show=lambda text: None)


def test_the_same_study_goes_on_until_it_is_finished_and_then_begins_anew(study: Study) -> None:
    first, goes_on = open_quietly(study)
    assert not goes_on
    assert open_quietly(study) == (first, True)
    assert open_quietly(study, resume=True) == (first, True)
    (first / "results.md").touch()
    assert open_quietly(study) == (first.with_name(f"{first.name}-2"), False)


def test_a_fresh_search_leaves_an_unfinished_one_and_says_so(study: Study) -> None:
    first, _ = open_quietly(study)
    told: list[object] = []
    second, goes_on = open_search(study, resume=False, fresh=True, show=told.append)
    assert (second.name, goes_on) == (f"{first.name}-2", False)
    assert told == [f"{first.name} is not finished and is left as it is; this is a new search"]
    assert open_quietly(study) == (second, True)


def test_resume_refuses_to_begin(study: Study) -> None:
    with pytest.raises(ConfigError, match=r"^--resume: there is no search of this study in "):
        open_quietly(study, resume=True)
    first, _ = open_quietly(study)
    (first / "results.md").touch()
    with pytest.raises(ConfigError, match=r"is finished\. Leave --resume out to search anew$"):
        open_quietly(study, resume=True)


def test_another_override_is_another_search(study: Study, tmp_path: Path) -> None:
    first, _ = open_quietly(study)
    other, goes_on = open_quietly(load_study(tmp_path / "small.yaml", ["seed=1"]))
    assert (other != first, goes_on) == (True, False)
