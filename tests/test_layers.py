"""The architecture's layers, read from the code: nothing imports from above, one place knows Ray, one MLflow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rayssl"
LAYERS = {
    "addresses": 0,
    "errors": 0,
    "storage": 1,
    "object_store": 1,
    "stopping": 0,
    "schema": 0,
    "files": 0,
    "processes": 0,
    "losses": 1,
    "collectives": 1,
    "clustering": 1,
    "recipe_file": 1,
    "backbones": 1,
    "data": 1,
    "runtime": 2,
    "tasks": 2,
    "evaluation": 2,
    "training": 2,
    "methods": 3,
    "config": 4,
    "sources": 4,
    "evaluate_config": 4,
    "evaluation_report": 4,
    "runs": 4,
    "report": 4,
    "search_space": 4,
    "search_folder": 4,
    "search_report": 4,
    "open_data": 4,
    "run_state": 5,
    "experiment": 5,
    "evaluate": 5,
    "plan": 5,
    "html_report": 5,
    "tracking": 6,
    "cluster": 6,
    "launch": 7,
    "launch_evaluation": 7,
    "progress": 7,
    "search": 7,
    "search_display": 7,
    "cli": 7,
    "commands": 7,
    "doctor": 7,
    "__init__": 7,
    "__main__": 7,
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The name in LAYERS that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_layer_or_below(path: Path) -> None:
    own = LAYERS[part_of(path)]
    for name in imports(path):
        if name.startswith("rayssl.") and name != "rayssl.__version__":
            assert LAYERS[name.split(".")[1]] <= own, f"{path.name} imports {name}"


@pytest.mark.parametrize(("library", "home"), [("ray", "cluster"), ("mlflow", "tracking")])
def test_one_part_alone_knows_the_library(library: str, home: str) -> None:
    users = {part_of(path) for path in MODULES if any(name.split(".")[0] == library for name in imports(path))}
    assert users == {home}


def test_the_science_runs_without_ray_and_mlflow() -> None:
    """In a process where neither can be imported, the whole experiment still can."""
    code = "import sys; sys.modules['ray'] = sys.modules['mlflow'] = None; import rayssl.experiment"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("arguments", [["-c", "import rayssl"], ["-m", "rayssl", "--help"]], ids=["import", "help"])
def test_a_light_start_imports_no_heavy_library(arguments: list[str]) -> None:
    heavy = {"torch", "ray", "mlflow", "numpy", "pydantic", "sklearn"}
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], check=True, cwd=ROOT, capture_output=True, text=True
    )
    imported = {line.split("|")[-1].strip().split(".")[0] for line in listing.stderr.splitlines()}
    assert not imported & heavy
