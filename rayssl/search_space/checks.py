"""Everything that can be known to be wrong with a study before its first trial."""

import importlib.util
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rayssl.config import ExperimentConfig
from rayssl.errors import ConfigError
from rayssl.recipe_file import did_you_mean, flatten
from rayssl.recipe_file.wording import show
from rayssl.search_space.distributions import Choice, Drawn, Follows, Interval
from rayssl.search_space.metrics import LOWER_IS_BETTER, reported_metrics, why_not_reported
from rayssl.search_space.reading import Draft, known_values, locate, unknown_key
from rayssl.search_space.study import SearchKey, SearchSpace, Study, as_override, in_order, sources_of
from rayssl.search_space.tune_settings import TuneSettings

_NOT_SEARCHED = ("cluster", "storage_path", "name", "evaluations")
_CHANGED_IN_MIDDLE = ("optimizer.learning_rate", "optimizer.schedule")
"""What takes effect within a stage: all else is fixed when the stage begins, or decides what is trained."""
_MOST_SAMPLES = 200
_MOST_REFUSED = 3
_MOST_COMBINATIONS = 10_000


def check_keys(draft: Draft, keys: Sequence[SearchKey], base: ExperimentConfig | None) -> None:
    """Keys that can't be searched, conditions that name nothing or never hold, values that follow in a circle."""
    known = known_values(base, keys)
    values = flatten(base) if base else {}
    names = [each.key for each in keys]
    for position, each in enumerate(keys):
        place = ("search", each.key)
        if each.key.split(".")[0] in _NOT_SEARCHED:
            draft.add(place, "does not decide what is learned, so it can't be searched")
        if any(text.partition("=")[0] == each.key for text in draft.overrides):
            draft.add(place, "is given on the command line as well. Leave it out there")
        inside = [other for other in names[:position] if other.startswith(f"{each.key}.")]
        if inside:
            draft.add(place, f"must stand above {inside[0]}, which lies inside it")
        for other in sources_of(each) if base else ():
            if other not in known:
                draft.add(place, unknown_key(other, known))
            elif other not in names and type(values[other]) not in (int, float) and _kind_of(each) != "same_as":
                draft.add(place, f"{other} must be a number, got {show(values[other])}")
        for other, allowed in each.when.items() if base else ():
            rule = _condition_rule(other, allowed, keys, values)
            if rule:
                draft.add((*place, "when", other), rule)
    _check_order(draft, keys)


def check_values(draft: Draft, keys: Sequence[SearchKey], space: SearchSpace, base: ExperimentConfig) -> None:
    """Both ends of each interval and every choice must build a config, alone or beside the other keys' values."""
    values = flatten(base)
    for each in keys:
        if isinstance(each.distribution, Follows):
            continue
        for name, value in each.distribution.ends().items():
            rule = _why_refused(space, each, value, values)
            if rule:
                unknown = rule.startswith("unknown key")
                draft.add(("search", each.key), rule if unknown else f"at {name}: {rule}")
                if unknown:
                    break


def check_samples(draft: Draft, study: Study) -> list[ExperimentConfig]:
    """Every trial must build a config; gives those of the first 200 that do."""
    configs = []
    refused = 0
    for values in study.samples()[:_MOST_SAMPLES]:
        try:
            configs.append(study.config(values))
        except ConfigError as error:
            line = (str(error).splitlines()[1:] or [str(error)])[0]
            mine = {as_override(key, value): ("search", key) for key, value in values.items()}
            mine[as_override("cluster.workers", study.tune.workers)] = ("tune", "workers")
            place, rule = locate(line, mine)
            draft.add(place or ("search",), f"beside {show(values)}: {rule}")
            refused += 1
            if refused == _MOST_REFUSED:
                break
    return configs


def check_tune(
    draft: Draft, tune: TuneSettings, keys: Sequence[SearchKey], configs: Sequence[ExperimentConfig]
) -> None:
    """The metric will be reported, the algorithm and the scheduler can do with the keys, a trial fits somewhere."""
    for config in configs:
        if _check_metric(draft, ("metric",), tune.metric, config):
            break
    if configs and tune.metric in reported_metrics(configs[0]):
        wanted = "min" if tune.metric in LOWER_IS_BETTER else "max"
        if tune.mode != wanted and not tune.metric.startswith("feature/"):
            draft.add(("tune", "mode"), f"must be {wanted} for {tune.metric}, got {tune.mode}")
    for metric in tune.stop:
        if metric != "epoch" and configs:
            _check_metric(draft, ("stop", metric), metric, configs[0])
    _check_algorithm(draft, tune, keys)
    if configs:
        if configs[0].cluster.is_elastic:
            draft.add(
                ("tune",),
                f"a trial has one number of workers all along, not {configs[0].cluster.describe_workers()}. "
                "Set tune.workers",
            )
        _check_scheduler(draft, tune, keys, configs[0])
        _check_size(draft, tune, configs[0])


def _kind_of(key: SearchKey) -> str:
    return key.distribution.kind if isinstance(key.distribution, Follows) else ""


def _condition_rule(
    other: str, allowed: tuple[Any, ...], keys: Sequence[SearchKey], base: Mapping[str, Any]
) -> str | None:
    """What is wrong with `when: {other: allowed}` by itself."""
    wanted = " or ".join(show(value) for value in allowed)
    searched = next((each.distribution for each in keys if each.key == other), None)
    if searched is None and other not in base:
        return unknown_key(other, known_values(None, keys) | dict(base))
    if searched is None and base[other] not in allowed:
        return f"never applies: it is not searched, and the recipe's is {show(base[other])}, not {wanted}"
    if isinstance(searched, Choice) and not any(value in allowed for value in searched.values):
        return f"never applies: it is searched among {show(list(searched.values))}, not {wanted}"
    if isinstance(searched, Interval | Follows):
        return "must be a key with a choice or a grid_search, whose values can be listed"
    return None


def _check_order(draft: Draft, keys: Sequence[SearchKey]) -> None:
    """Keys that wait for each other, and conditions that exclude each other."""
    try:
        in_order(keys)
    except ValueError as error:
        draft.add(("search", str(error)), "depends on itself, by way of `when` or of the keys that it follows")
        return
    by_name = {each.key: each for each in keys}
    for each in keys:
        ancestors = _ancestors(each, by_name)
        choices = [a.distribution.values if isinstance(a.distribution, Choice) else () for a in ancestors]
        if not ancestors or np.prod([len(values) for values in choices], dtype=float) > _MOST_COMBINATIONS:
            continue
        names = [a.key for a in ancestors]
        worlds = (dict(zip(names, values, strict=True)) for values in itertools.product(*choices))
        possible = all(any(value in allowed for value in values) for allowed, values in _own(each, by_name))
        if possible and not any(_applies(each, world, by_name) for world in worlds):
            draft.add(("search", each.key, "when"), "never applies: the conditions exclude each other")


def _ancestors(key: SearchKey, by_name: Mapping[str, SearchKey]) -> list[SearchKey]:
    found: dict[str, SearchKey] = {}
    waiting = [by_name[other] for other in key.when if other in by_name]
    while waiting:
        each = waiting.pop()
        found[each.key] = each
        waiting += [by_name[other] for other in each.when if other in by_name]
    return list(found.values())


def _own(key: SearchKey, by_name: Mapping[str, SearchKey]) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """The key's own conditions on choices: what they allow, and the choices."""
    conditions = [(allowed, by_name[other].distribution) for other, allowed in key.when.items() if other in by_name]
    return [(allowed, given.values if isinstance(given, Choice) else ()) for allowed, given in conditions]


def _applies(key: SearchKey, world: Mapping[str, Any], by_name: Mapping[str, SearchKey]) -> bool:
    """Whether the key, and all that its conditions need, are searched where the choices are these."""
    return all(
        other not in by_name or (world[other] in allowed and _applies(by_name[other], world, by_name))
        for other, allowed in key.when.items()
    )


def _why_refused(space: SearchSpace, target: SearchKey, value: Any, base: Mapping[str, Any]) -> str | None:
    """The rule that a value breaks by itself, if it breaks one beside the other keys' first values, too."""
    by_name = {each.key: each for each in space.keys}
    needed = {each.key for each in [target, *_ancestors(target, by_name)]}

    def choose(key: SearchKey, distribution: Drawn) -> Any:
        if key.key == target.key:
            return value
        ends = list(distribution.ends().values())
        for each in (target, *_ancestors(target, by_name)):
            ends = [end for end in ends if end in each.when.get(key.key, ends)] or ends
        return ends[0]

    proposal = space.propose(choose, base)
    alone = {key: given for key, given in proposal.items() if key in needed or _follows_only(by_name[key], needed)}
    rules = []
    for values in (alone, proposal):
        try:
            space.config(values)
        except ConfigError as error:
            lines = str(error).splitlines()[1:] or [str(error)]
            mine = {as_override(key, given): ("search", key) for key, given in values.items()}
            found = [locate(line, mine) for line in lines]
            own = [rule for place, rule in found if place == ("search", target.key)]
            rules.append((own or [rule for _, rule in found])[0])
        else:
            return None
    return rules[0]


def _follows_only(key: SearchKey, needed: set[str]) -> bool:
    return isinstance(key.distribution, Follows) and bool(needed & set(key.distribution.sources))


def _check_metric(draft: Draft, place: tuple[str, ...], metric: str, config: ExperimentConfig) -> bool:
    """Note if a config won't report a metric; whether that is so."""
    known = reported_metrics(config)
    if metric in known:
        return False
    why = why_not_reported(metric, config)
    rule = (
        f"{show(metric)} won't be reported: {why}" if why else f"unknown {show(metric)}.{did_you_mean(metric, known)}"
    )
    draft.add(("tune", *place), rule if why else f"{rule} There are: {', '.join(known)}")
    return True


def _check_algorithm(draft: Draft, tune: TuneSettings, keys: Sequence[SearchKey]) -> None:
    place = ("tune", "algorithm")
    endless = [each.key for each in keys if isinstance(each.distribution, Interval)]
    grids = [each.key for each in keys if isinstance(each.distribution, Choice) and each.distribution.grid]
    if tune.algorithm == "grid" and endless:
        draft.add(
            place, f"grid needs a choice or grid_search for every key, but {endless[0]} is drawn from an interval"
        )
    if tune.algorithm == "optuna" and importlib.util.find_spec("optuna") is None:
        draft.add(place, "optuna is not installed. Install it (pip install 'rayssl[optuna]'), or take random")
    if tune.algorithm == "optuna" and grids:
        draft.add(place, f"optuna can't take a grid_search, which {grids[0]} has. Write choice")


def _check_scheduler(draft: Draft, tune: TuneSettings, keys: Sequence[SearchKey], config: ExperimentConfig) -> None:
    place = ("tune", "scheduler")
    if not tune.pauses:
        return
    if tune.concurrency is not None:
        draft.add(
            ("tune", "concurrency"),
            f"can't be limited with {tune.scheduler}, whose trials wait for each other. Leave it out, or take asha",
        )
    if config.cluster.most_workers > 1:
        draft.add(
            place,
            f"{tune.scheduler} pauses and copies trials, which only trials of one worker allow, and these have "
            f"{config.cluster.workers}. Set tune.workers to 1, or take asha",
        )
    if config.training.checkpoint_every > 1:
        draft.add(place, f"{tune.scheduler} needs a checkpoint an epoch: set training.checkpoint_every to 1")
    if tune.scheduler != "pbt":
        return
    if tune.algorithm == "optuna":
        draft.add(place, "pbt chooses settings itself, which optuna can't know of. Set tune.algorithm to random")
    bound = [each.key for each in keys if each.when or isinstance(each.distribution, Follows)]
    if bound:
        draft.add(
            place,
            f"pbt changes each key by itself, so that {bound[0]} can't depend on others. Give it a distribution alone",
        )
    fixed = [each.key for each in keys if not each.key.startswith(_CHANGED_IN_MIDDLE)]
    if fixed:
        draft.add(
            place,
            f"pbt changes settings while a run goes on, which {fixed[0]} does not allow. It can search "
            f"{' and '.join(_CHANGED_IN_MIDDLE)}",
        )


def _check_size(draft: Draft, tune: TuneSettings, config: ExperimentConfig) -> None:
    """A trial that this machine can't hold, where it is this machine that runs them."""
    settings = config.cluster
    if settings.address is not None or "RAY_ADDRESS" in os.environ:
        return  # known only once the cluster is joined
    workers = max(1, settings.most_workers)
    has = {"CPU": os.cpu_count() or 1, "GPU": _gpus() if settings.gpus_per_worker else 0}
    for resource, each in (("CPU", float(settings.cpus_per_worker)), ("GPU", settings.gpus_per_worker)):
        if workers * each > has[resource]:
            key = f"cluster.{resource.lower()}s_per_worker"
            candidates = [("tune", "workers"), ("set", key), ("set", "cluster.workers")]
            place = next((keys for keys in candidates if keys in draft.recipe.origins), ("recipe",))
            draft.add(
                place,
                f"no trial can ever run: {workers} workers with {each:g} {resource}s each need {workers * each:g}, "
                f"this machine has {has[resource]}. Lower tune.workers or {key}, or join a cluster (cluster.address)",
            )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
