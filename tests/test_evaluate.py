"""`rayssl evaluate` from the command to its files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayssl import cli
from rayssl.errors import ConfigError, DataError
from rayssl.evaluate_config import load_evaluation
from rayssl.evaluation_report import EvaluationReport
from rayssl.experiment import build_encoder, evaluate_beside_random, fitting_evaluations
from rayssl.launch_evaluation import evaluate
from rayssl.open_data import open_data
from rayssl.runtime import LocalRuntime
from rayssl.tracking import MLflowTracker, tracking_uri
from tests.conftest import SmallRun
from tests.test_sources import finished_run

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and SQLAlchemy's own
PROBE = ["evaluation.epochs=5", "evaluation.blocks=[1,5]"]


def run(small_run: SmallRun, source: str, protocol: str, *overrides: str) -> tuple[EvaluationReport, list[str]]:
    config, found, _ = load_evaluation(source, protocol, [f"storage_path={small_run.storage}", *overrides])
    shown: list[str] = []
    return evaluate(config, found, show=lambda event: shown.append(str(event))), shown


def write_folder(folder: Path, count: int, *, seed: int, classes: tuple[str, ...] = ("dark", "light")) -> Path:
    random = np.random.default_rng(seed)
    for number in range(count):
        path = folder / classes[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 120, (12, 16, 3)) + 130 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def test_a_runs_result_is_filed_with_it_recorded_in_mlflow_and_set_beside_the_papers(small_run: SmallRun) -> None:
    folder = finished_run(small_run)
    MLflowTracker.open(folder, uri=tracking_uri(small_run.storage)).finish()
    report, _ = run(small_run, str(folder), "linear_probe", *PROBE, "seeds=2", "sanity=true")
    content = json.loads((folder / "evaluations" / f"{report.stem}.json").read_text())
    assert content["epochs"] == 2
    assert content["metrics"]["linear_probe/b5/top1_std"] >= 0
    assert any(note.startswith("sanity: ") and "at chance" in note for note in content["notes"])
    text = (folder / "evaluations" / f"{report.stem}.md").read_text()
    for part in (
        "resnet-18, width 4",
        "pre-trained 2 epochs",
        "digits at 8 px",
        "dialect goyal",
        "B5 (res5) top1",
        "±",
    ):
        assert part in text
    tracker = MLflowTracker.attach(folder, uri=tracking_uri(small_run.storage))
    assert tracker is not None
    from mlflow import MlflowClient

    recorded = MlflowClient(tracker.uri).get_run(tracker.run_id).data
    assert recorded.metrics["linear_probe/b5/top1"] == pytest.approx(report.metrics["linear_probe/b5/top1"])
    assert recorded.params[f"{report.stem}.evaluation.epochs"] == "5"
    assert sorted(path.name for path in (folder / "evaluations").iterdir()) == [
        ".features",
        f"{report.stem}.json",
        f"{report.stem}.md",
    ]


def test_the_same_evaluation_is_made_by_one_process_at_a_time(small_run: SmallRun) -> None:
    """The second one would begin by deleting what the first one works with."""
    source = str(finished_run(small_run))
    seconds: list[str] = []

    def show(event: object) -> None:
        if str(event).startswith("knn: ") and not seconds:
            seconds.append("tried")
            with pytest.raises(ConfigError, match="the same evaluation is being made by another process"):
                run(small_run, source, "knn")

    config, found, _ = load_evaluation(source, "knn", [f"storage_path={small_run.storage}"])
    report = evaluate(config, found, show=show)
    assert seconds
    assert run(small_run, source, "knn")[0].metrics == report.metrics


def test_the_command_gives_what_the_run_itself_would_have_measured(small_run: SmallRun, tmp_path: Path) -> None:
    """Same settings, same seed: the numbers of a random network in a run's report, and of random:resnet18."""
    recipe = small_run.config("evaluations=[{name: knn, blocks: [2, 4], k: [5]}]")
    runtime = LocalRuntime(tmp_path, num_threads=1)
    pictures = open_data(recipe, tmp_path)
    method = recipe.method.build(build_encoder(recipe), recipe.task_setting(pictures.train.classes), seed=recipe.seed)
    metrics, notes = evaluate_beside_random(recipe, method, pictures, runtime)
    assert any("knn/best/k5/top1" in note and "random" in note for note in notes)
    folder = finished_run(small_run)
    report, _ = run(small_run, str(folder), "knn", "evaluation.blocks=[2,4]", "evaluation.k=[5]")
    ours = {name: value for name, value in metrics.items() if not name.startswith("random/")}
    assert report.metrics == ours


def test_labelled_lists_are_written_by_name(small_run: SmallRun, tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", 40, seed=0)
    test = write_folder(tmp_path / "test", 20, seed=1)
    (train / "dark" / "broken.png").write_bytes(b"no picture")
    report, _ = run(
        small_run,
        "random:resnet18",
        "semi_supervised",
        "data.name=folder",
        f"data.root={train}",
        f"data.test_root={test}",
        "data.image_size=8",
        "data.max_bad_fraction=0.1",
        "backbone.width=4",
        "backbone.stem=small",
        "evaluation.fraction=0.1",
        "evaluation.epochs=1",
    )
    lines = (report.folder / f"{report.stem}-labelled-10-percent.txt").read_text().splitlines()
    assert len(lines) == 4
    assert all(Path(name).is_file() and Path(name).parent.name == label for name, label in map(str.split, lines))
    assert not any("broken" in line for line in lines)
    assert any("1 pictures can't be read" in note and "broken.png" in note for note in report.notes)


def test_the_next_protocol_finds_the_features_and_0_keeps_none(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with seeds and shuffled labels. The second result is that of a call of its own, and in the same files."""
    folder = finished_run(small_run)
    knn = ["evaluation.k=[5]", "seeds=2", "sanity=true"]
    alone, _ = run(small_run, str(folder), "knn", *knn, "keep_features_gib=0")
    assert not (folder / "evaluations" / ".features").exists()
    run(small_run, str(folder), "linear_probe", "evaluation.epochs=1")
    with monkeypatch.context() as without_passes:
        without_passes.setattr("rayssl.evaluation.feature_store.pool_batches", None)
        without_passes.setattr("rayssl.evaluation.feature_store.extract_features", None)
        after, _ = run(small_run, str(folder), "knn", *knn)
    assert (after.metrics, after.stem) == (alone.metrics, alone.stem)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random:resnet81", "--protocol", "knn"], "source 'random:resnet81': unknown. Did you mean 'resnet18'?"),
        (["random:resnet18", "--protocol", "knn"], "data: is required"),
        (
            ["random:resnet18", "--protocol", "voc07_svm", "data.name=digits"],
            "can't be measured here: it needs",
        ),
        (["random:resnet18", "--protocol", "knn", "data.name=digits", "seeds=0"], "must be at least 1, got 0"),
        (["random:resnet18"], "Missing option '--protocol'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", *arguments, f"storage_path={tmp_path}"])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_test_pictures_that_are_training_pictures_stop_it_and_copies_are_warned_about(
    small_run: SmallRun, tmp_path: Path
) -> None:
    train = write_folder(tmp_path / "train", 12, seed=0)
    for number in range(2):
        linked = train / ("dark", "light")[number] / f"{number}.png"
        (tmp_path / "links" / linked.parent.name).mkdir(parents=True)
        (tmp_path / "links" / linked.parent.name / linked.name).symlink_to(linked)
    copies = write_folder(tmp_path / "copies", 4, seed=0)
    options = ["data.name=folder", f"data.root={train}", "data.image_size=8", "backbone.width=4", "backbone.stem=small"]
    with pytest.raises(DataError, match=r"2 of 2 test pictures are files of the training pictures: .*0\.png"):
        run(small_run, "random:resnet18", "knn", *options, f"data.test_root={tmp_path / 'links'}")
    report, shown = run(small_run, "random:resnet18", "knn", *options, f"data.test_root={copies}")
    assert any("the same bytes are on both sides, 4 times" in line for line in shown)
    assert any("the same bytes" in note for note in report.notes)


def test_a_recipe_says_before_training_which_evaluation_its_pictures_do_not_allow(small_run: SmallRun) -> None:
    recipe = small_run.config("evaluations=[{name: knn}, {name: voc07_svm}]")
    fitting, skipped = fitting_evaluations(recipe, open_data(recipe, small_run.storage))
    assert [each.name for each in fitting] == ["knn"]
    assert len(skipped) == 1
    assert skipped[0].startswith("The evaluation voc07_svm is skipped: it needs pictures with several classes")
