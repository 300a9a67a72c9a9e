"""Run all benchmarks, or those that are named, and write what they gave into docs/benchmarks.md.

    python benchmarks/run.py [NAME...]

A benchmark that is named replaces its own rows; the others keep what an earlier call found, and so does one that fails.
Each row keeps the machine and the versions that it was measured with. What is to be said about a benchmark's results
stands in notes.yaml. The last lines printed are the JSON rows of this call; with --page the page is only written anew.

Without a name all run, one after another, on 2 cores for about 50 minutes:

    kmeans 8            augment 4           online_cost 4       revnet_memory 1.5
    ray_overhead 7      choose_k 4          pretrain_loop 3     search_overhead 1
    scaling 7           svm 5               growth 3            startup 0.2
                                            stage_step 1.5

gpu_step and gpu_pieces take some minutes each where there is a GPU, and are skipped elsewhere. Nothing else should run
on the machine.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
RESULTS = HERE / "results.json"
NOTES = HERE / "notes.yaml"
_NO_PROGRAMS = ("common", "run", "faults")  # faults.py measures no speed

_HEAD = """# Benchmarks

Written by `python benchmarks/run.py`. Each program under `benchmarks/` says what it compares, and how; peers come from
`benchmarks/requirements.txt`. Contestants take turns on the same data. A ratio says how many times better ours is, of
the medians; its spread is from the least to the greatest that one round gave. Rows that mean something else say so.
Times belong to the machine, ratios travel better.
"""


def main() -> None:
    """Run, merge, write."""
    names = programs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*names, []], metavar="NAME", help=", ".join(names))
    parser.add_argument("--page", action="store_true", help="measure nothing")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.page:
        PAGE.write_text(page(results))
        return
    chosen = options.names or names
    measured, failed = [], []
    for name in chosen:
        lines = run(name)
        rows = [json.loads(line) for line in lines or () if line.startswith('{"benchmark"')]
        if lines is None or not rows:
            failed.append(name)
            continue
        measured += rows
        results[name] = {"setting": [line for line in lines if line.startswith(("machine:", "device:", "versions:"))]}
        results[name]["rows"] = rows
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))
    for row in measured:
        print(json.dumps(row))
    if failed:
        sys.exit(f"no result from: {', '.join(failed)}")


def programs() -> list[str]:
    """Names of all benchmarks."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in _NO_PROGRAMS)


def run(name: str) -> list[str] | None:
    """Run one program, show its output as it comes, and give its lines; None if it failed."""
    lines = []
    with subprocess.Popen([sys.executable, "-u", HERE / f"{name}.py"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    return lines if process.returncode == 0 else None


def page(results: dict[str, dict[str, list]]) -> str:
    """The page as Markdown: a section a program, those last that have no results."""
    parts = [_HEAD]
    notes = yaml.safe_load(NOTES.read_text())
    for name, result in sorted(results.items()):
        parts += [f"## {name}.py", "", " ".join(f"{line}." for line in result["setting"]), ""]
        parts += ["| what | ours | peer | ratio | spread | target | met |", "|---|---|---|---|---|---|---|"]
        parts += [_line(row) for row in result["rows"]]
        parts.append("")
        if name in notes:
            parts += [notes[name].strip(), ""]
        if (PAGE.parent / f"{name}.svg").exists():
            parts += [f"![{name}]({name}.svg)", ""]
    for name in programs():
        if name not in results:
            parts += [f"## {name}.py", "", notes.get(name, "Not measured.").strip(), ""]
    return "\n".join(parts)


def _line(row: dict[str, Any]) -> str:
    """One row as a line of the table; rows of earlier days lack a spread."""
    if "skipped" in row:
        return f"| {row['benchmark']} | | | | | | skipped: {row['skipped']} |"
    ours, peer = (f"{row[side]:g} {row['unit']}" for side in ("ours", "peer"))
    spread = " to ".join(f"{value:g}" for value in row.get("spread", ()))
    target, met = "", ""
    if "target" in row:
        target = f"at most {row['target']:g}" if row.get("at_most") else f"{row['target']:g}"
        met = "yes" if row["met"] else "**no**"
    return f"| {row['benchmark']} | {ours} | {peer} | {row['ratio']:g} | {spread} | {target} | {met} |"


if __name__ == "__main__":
    main()
