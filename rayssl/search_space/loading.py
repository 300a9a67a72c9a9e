"""Load a study: every mistake at once, each with its line and key, before anything is started."""

from collections.abc import Sequence
from pathlib import Path

from rayssl.config import ExperimentConfig
from rayssl.errors import ConfigError
from rayssl.search_space.checks import check_keys, check_samples, check_tune, check_values
from rayssl.search_space.reading import read_base, read_draft, read_search, read_tune
from rayssl.search_space.study import SearchSpace, Study


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Load a study and check it.

    Args:
        path: A YAML file.
        overrides: `key=value` texts: keys that begin with `tune.` are the study's, all others the recipe's.

    Raises:
        ConfigError: With every mistake of the study, its recipe and the overrides, a line each.
    """
    draft = read_draft(Path(path), overrides)
    tune, keys, base = read_tune(draft), read_search(draft), read_base(draft)
    check_keys(draft, keys, base[3] if base else None)
    study = None
    if base is not None and not _is_wrong(draft.recipe.mistakes, "depends on itself", "must be a number"):
        text, source, fixed, config = base
        space = SearchSpace(text, source, fixed, tuple(keys))
        check_values(draft, keys, space, config)
        if tune is not None:
            name = str(draft.recipe.data.get("name") or Path(path).stem)
            reuse = draft.recipe.data.get("reuse", True)
            study = Study(name, space, tune, reuse, config, draft.section("search"))
            # Combinations are looked at only once every value is right by itself.
            configs = [] if draft.recipe.mistakes else check_samples(draft, study)
            check_tune(draft, tune, keys, configs or [_with_workers(config, tune.workers)])
    mistakes = sorted(draft.recipe.mistakes, key=lambda mistake: mistake.rank)
    if mistakes or study is None:
        lines = list(dict.fromkeys(mistake.text for mistake in mistakes))
        heading = f"{path}: {len(lines)} mistake{'s' if len(lines) > 1 else ''}"
        raise ConfigError("\n".join([heading, *lines]))
    return study


def _with_workers(config: ExperimentConfig, workers: int | None) -> ExperimentConfig:
    """Without asking whether the rest of the recipe agrees with so many."""
    if workers is None:
        return config
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"workers": workers})})


def _is_wrong(mistakes: Sequence[tuple[object, str]], *rules: str) -> bool:
    return any(rule in text for _, text in mistakes for rule in rules)
