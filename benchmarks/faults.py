"""Kill everything that a run depends on, once or many times, and see whether it ends as if nothing had happened.

    python benchmarks/faults.py [--moments 1] [--faults worker node ...] [--methods psl mgta]
    python benchmarks/faults.py --moments 20 --results faults.jsonl

Two Ray nodes on this machine, an MLflow server over HTTP (its records in SQLite, or in the PostgreSQL that
MLFLOW_BACKEND_STORE_URI names), and the `rayssl pretrain` command in small, each fault at a random moment of the
training. Afterwards the weights are compared with those of an undisturbed run, bit for bit, and so is every number in
MLflow; nothing may be left running, reserved or half written. With --moments 20 each fault strikes twenty times, a run
up to five times if it can meet the fault again. That takes some hours: --results keeps a line for each run, and the
same command goes on with the moments that are missing there.

The exit code is 0 only if every try recovered, with nothing lost, doubled, changed or left over.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fault_parts.judgement import COUNTED, judge
from fault_parts.kinds import FAULTS, ONCE, OTHER_SIZE, RECIPES, Attempt, let_be, run
from fault_parts.place import Place, open_place
from rich.console import Console
from rich.table import Table

MOST_STRIKES = 5
"""Moments of one run, which has 9 epochs or more."""


def main() -> None:
    """Undisturbed runs first, then each fault at its first moments, then at the next ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=1, metavar="N", help="times that each fault strikes each method")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--folder", type=Path, help="keep runs and logs there; else they are deleted")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="a line for each run; its moments are not repeated"
    )
    chosen = parser.parse_args()
    known = read_results(chosen.results, seed=chosen.seed)
    tries = sorted(
        (numbers, method, fault)
        for method in chosen.methods
        for fault in chosen.faults
        for numbers in missing_moments(known, fault, method, chosen.moments)
    )
    with _folder(chosen.folder) as folder, suppress(KeyboardInterrupt):  # which leaves what there is to be told
        place = open_place(folder)
        try:
            wholes = {method: _undisturbed(place, method) for method in chosen.methods}
            for numbers, method, fault in tries:
                outcome = _try(place, fault, method, wholes[method], numbers=numbers, seed=chosen.seed)
                known.append(outcome)
                if chosen.results is not None and "skipped" not in outcome:
                    with chosen.results.open("a") as file:
                        file.write(json.dumps(outcome) + "\n")
        finally:
            place.close()
    rows = [summary(fault, method, known) for method in chosen.methods for fault in chosen.faults]
    _print_table(rows)
    for row in rows:
        print(json.dumps(row))
    sys.exit(not all(_is_clean(row) for row in rows))


def read_results(file: Path | None, *, seed: int) -> list[dict[str, Any]]:
    """The runs of earlier calls."""
    if file is None or not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if line["seed"] == seed]


def missing_moments(known: list[dict[str, Any]], fault: str, method: str, num_moments: int) -> list[list[int]]:
    """Numbers of the moments that no run has had yet, those of a run together."""
    tried = {
        number for line in known if (line["fault"], line["method"]) == (fault, method) for number in line["moments"]
    }
    missing = iter([number for number in range(num_moments) if number not in tried])
    most = 1 if fault in ONCE else MOST_STRIKES
    return [[first, *itertools.islice(missing, most - 1)] for first in missing]


def summary(fault: str, method: str, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the result: what became of all runs of a method that met a fault."""
    row: dict[str, Any] = {"fault": fault, "method": method}
    mine = [outcome for outcome in outcomes if (outcome["fault"], outcome["method"]) == (fault, method)]
    for outcome in mine:
        if "skipped" in outcome:
            return row | {"skipped": outcome["skipped"]}
    equal = [len(outcome["moments"]) * outcome["equal"] for outcome in mine if outcome["equal"] is not None]
    shrunk = [outcome["shrunk_after"] for outcome in mine if "shrunk_after" in outcome]
    return {
        **row,
        "times": sum(len(outcome["moments"]) for outcome in mine),
        "recovered": sum(len(outcome["moments"]) for outcome in mine if outcome["recovered"]),
        "equal": sum(equal) if equal else None,
        **{key: sum(outcome[key] for outcome in mine) for key in COUNTED},
        "seconds_lost": round(statistics.median(outcome["seconds_lost"] for outcome in mine), 1) if mine else None,
        **({"shrunk_after": max(shrunk)} if shrunk else {}),
    }


def _is_clean(row: dict[str, Any]) -> bool:
    if "skipped" in row or not row["times"] or row["recovered"] != row["times"]:
        return False
    return row["equal"] in (None, row["times"]) and not any(row[name] for name in COUNTED)


def _undisturbed(place: Place, method: str) -> Attempt:
    whole = run(place, method, "whole", let_be, random.Random(0))
    if whole.code != 0:
        sys.exit("\n".join([*whole.output[-20:], f"the undisturbed run of {method} failed"]))
    return whole


def _try(place: Place, fault: str, method: str, whole: Attempt, *, numbers: list[int], seed: int) -> dict[str, Any]:
    """One run that meets a fault at the moments of these numbers."""
    outcome: dict[str, Any] = {"fault": fault, "method": method, "seed": seed}
    draws = random.Random(f"{seed} {fault} {method} {numbers}")
    name = f"{fault.replace(' ', '-')}-{numbers[0]}"
    try:
        attempt = run(place, method, name, FAULTS[fault], draws, num_moments=len(numbers))
    except PermissionError as error:
        return outcome | {"skipped": str(error)}
    finally:
        place.mend()
    # A run may be over before the last moments; one that is lost has failed at all of them.
    outcome["moments"] = numbers[: attempt.strikes] if attempt.code == 0 else numbers
    outcome |= judge(place, attempt, whole, may_differ=fault in OTHER_SIZE)
    print(outcome, flush=True)
    if not outcome["recovered"]:
        print("\n".join(f"    {line}" for line in attempt.output[-12:]), flush=True)
    return outcome


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="rayssl-faults-") as folder:
        yield Path(folder)


def _print_table(rows: list[dict[str, Any]]) -> None:
    columns = ("times", "recovered", "equal", *COUNTED, "seconds_lost")
    table = Table("fault", "method", *(name.replace("_", " ") for name in columns), title="Faults")
    for row in rows:
        values = [row["skipped"]] if "skipped" in row else [str(row[name]) for name in columns]
        table.add_row(row["fault"], row["method"], *values)
    Console().print(table)


if __name__ == "__main__":
    main()
