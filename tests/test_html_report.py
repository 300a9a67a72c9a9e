"""The page and tables of `rayssl report`: whole, true to the runs' files, safe, honest about what is missing."""

import base64
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from rayssl import cli
from rayssl.config import ExperimentConfig, load_config
from rayssl.data import ImageList, Pictures, open_pictures
from rayssl.errors import ConfigError
from rayssl.evaluate_config import load_evaluation
from rayssl.evaluation_report import EvaluationReport
from rayssl.experiment import build_encoder, run_experiment
from rayssl.html_report import find_run, read_run, to_html, to_markdown, write_report
from rayssl.html_report.examples import array_uri, task_examples
from rayssl.html_report.feature_space import choose_queries, neighbours, project, same_class_share
from rayssl.html_report.figures import COLOURS, Line, curve
from rayssl.runs import open_run
from tests.conftest import SmallRun

VOID = {"img", "br", "meta"}
ANGLES = "method.stages=[{blocks: [1, 2, 3, 4, 5], epochs: 1, level: {angles: 2}}]"


class Page(HTMLParser):
    """A parsed page: its tables as text, and what would make it less than one sound file."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.titles: list[str] = []
        self.tags: Counter[str] = Counter()
        self.mistakes: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self._ids: set[str] = set()
        self.feed(text)
        self.close()
        self.mistakes += [f"<{tag}> is never closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look_at(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2", "h3", "h4"):
            self.titles.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look_at(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.mistakes.append(f"</{tag}> closes nothing, line {self.getpos()[0]}")

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
        if self._open and self._open[-1] in ("h1", "h2", "h3", "h4"):
            self.titles[-1] += data

    def _look_at(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name in ("src", "href") and not str(value).startswith(("data:image/png;base64,", "#")):
                self.mistakes.append(f"<{tag} {name}={value}> is not in the page")
            if name.startswith("on"):
                self.mistakes.append(f"<{tag} {name}> is a script")
            if name == "id" and value in self._ids:
                self.mistakes.append(f"id {value} is there twice")
            if name == "id":
                self._ids.add(str(value))


def read_page(text: str) -> Page:
    page = Page(text)
    assert page.mistakes == []
    assert page.tags["script"] == 0
    assert page.tags["h1"] == 1
    return page


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was really trained; not to be written to."""
    return run_experiment(SmallRun(tmp_path_factory.mktemp("report") / "runs").config()).folder


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of few pictures: t-SNE takes seconds."""
    monkeypatch.setattr("rayssl.html_report.pictures._MOST_TOLD", 40)


@pytest.fixture
def run(trained: Path, tmp_path: Path, few_pictures: None) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / trained.name))


def write_run(config: ExperimentConfig, history: list[dict[str, float]], metrics: dict[str, float]) -> Path:
    """A run's folder as training leaves it, without the training."""
    folder = open_run(config).path
    torch.save(build_encoder(config).state_dict(), folder / "encoder.pt")
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    (folder / "report.json").write_text(json.dumps({"name": config.name, "metrics": metrics, "notes": []}))
    return folder


def write_pictures(folder: Path, classes: Sequence[str]) -> Path:
    rng = np.random.default_rng(0)
    for number in range(24):
        path = folder / classes[number % len(classes)] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(path)
    return folder


def pixels_of(uri: str) -> np.ndarray:
    """A picture of the page, (H, W, 4)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def open_arrays(images: np.ndarray, folder: Path) -> Pictures:
    return open_pictures(
        ImageList(images, np.zeros(len(images), dtype=np.int64), ("all",)),
        folder,
        resize=images.shape[1],
        cache_bytes=2**30,
        max_bad_fraction=0,
        num_workers=0,
        is_builder=True,
        barrier=lambda: None,
    )


def rayssl(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    try:
        cli.main(arguments)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_run_becomes_one_sound_page_with_the_numbers_of_its_report(trained: Path) -> None:
    page = read_page(to_html([read_run(trained)]))
    metrics = json.loads((trained / "report.json").read_text())["metrics"]
    (probes,) = [table for table in page.tables if table[0][0] == "block"]
    assert probes[0] == ["block", "trained", "random", "paper"]
    for block, row in enumerate(probes[1:], start=1):
        for cell, prefix in zip(row[1:3], ("", "random/"), strict=True):
            key = f"{prefix}linear_probe/b{block}/top1"
            expected = f"{100 * metrics[key]:.1f} ± {100 * metrics[f'{key}_std']:.1f}"
            assert cell.removesuffix(" *") == expected
    assert [row[3] for row in probes[1:]] == ["11.3", "30.8", "42.9", "53.3", "49.5"]  # PSL, Table 6
    facts = dict(row for row in page.tables[0])
    assert facts["status"] == "finished"
    assert facts["stages"].startswith("B1 to B3, angles 2: 1 epoch; B2 to B4, angles 4: 2 epochs")
    assert page.titles[1:] == [
        "Linear probes",
        "Training",
        "Pictures as the network sees them",
        "Stage 1",
        "Stage 2",
        "Stage 3",
        "Nearest neighbours",
        "Map of the features",
    ]
    assert page.tags["svg"] == 8  # blocks, loss, accuracy, probe, kNN, deviation, rank, map
    assert page.tags["figcaption"] == page.tags["figure"] == 11
    (near,) = [table for table in page.tables if table[0][0] == "picture"]
    assert [len(row) for row in near] == [6] * 9
    assert "t-SNE of the normalised features" in page.text


def test_the_markdown_has_the_same_tables(trained: Path) -> None:
    text = to_markdown([read_run(trained)])
    metrics = json.loads((trained / "report.json").read_text())["metrics"]
    assert f"| B5 | {100 * metrics['linear_probe/b5/top1']:.1f} ± " in text
    assert "| seed | 0 |" in text
    assert text.count("\n| 2 | ") == 2  # the epochs of stage 2


def test_several_runs_are_compared_on_one_page(trained: Path, run: Path, small_run: SmallRun) -> None:
    """Two equal runs share their untrained network and every drawing; ids stay apart all the same."""
    (run.parent / "again").mkdir()
    again = Path(shutil.move(run, run.parent / "again" / "another-run"))
    records = [read_run(trained), read_run(again)]
    page = read_page(to_html(records))
    assert page.titles[0] == "Comparison of 2 runs"
    best = page.tables[0]
    top = json.loads((trained / "report.json").read_text())["metrics"]["linear_probe/best/top1"]
    assert [row[0] for row in best[1:]] == [trained.name, "another-run"]
    assert [row[4] for row in best[1:]] == [f"{100 * top:.1f}"] * 2
    assert page.tables[1][0] == ["setting", trained.name, "another-run"]
    assert page.tags["svg"] == 2 + 2 * 7
    markdown = to_markdown(records)
    assert markdown.startswith("# Comparison of 2 runs\n")
    assert f"## {trained.name}\n" in markdown


def test_a_run_that_is_not_finished_gives_what_it_has(run: Path) -> None:
    for name in ("report.json", "history.jsonl", "encoder.pt"):
        (run / name).unlink()
    for name in ("stage-3", "checkpoints"):
        shutil.rmtree(run / name)
    record = read_run(run)
    assert record.epochs_done == 3
    page = read_page(to_html([record]))
    assert "not finished: 3 of 4 epochs are on record" in page.text
    assert "Linear probes" not in page.titles
    assert "B5, the last block, as stage-2 left it" in page.text


def test_a_run_that_has_just_begun_has_no_features_to_show(small_run: SmallRun) -> None:
    page = read_page(to_html([read_run(open_run(small_run.config()).path)]))
    assert "not finished: 0 of 4 epochs" in page.text
    assert "There is no encoder yet" in page.text


def test_pictures_that_are_gone_are_told_and_the_rest_is_there(small_run: SmallRun, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", ["a", "b"])
    config = small_run.config("data.name=folder", f"data.root={folder}", ANGLES)
    metrics = {"linear_probe/b1/top1": 0.625, "linear_probe/best/top1": 0.625}
    written = write_run(config, [{"stage": 1, "epoch": 1, "loss": 0.5}], metrics)
    shutil.rmtree(folder)
    page = read_page(to_html([read_run(written)]))
    assert "The run's pictures can't be shown" in page.text
    assert "data.root" in page.text
    assert page.tables[1][1][:2] == ["B1", "62.5 *"]
    assert page.tags["svg"] == 2  # blocks and loss


def test_nothing_is_downloaded_for_a_report(small_run: SmallRun, tmp_path: Path) -> None:
    config = small_run.config("data.name=cifar10", f"data.root={tmp_path / 'nowhere'}", ANGLES)
    page = read_page(to_html([read_run(write_run(config, [{"stage": 1, "epoch": 1, "loss": 0.5}], {}))]))
    assert "The run's pictures can't be shown" in page.text
    assert not (tmp_path / "nowhere").exists()


def test_a_class_named_like_markup_stays_text(small_run: SmallRun, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>\"'&"
    folder = write_pictures(tmp_path / "pictures", [evil, "$b_{", "c"])
    config = small_run.config("data.name=folder", f"data.root={folder}", ANGLES, "data.validation_fraction=0.4")
    page = read_page(to_html([read_run(write_run(config, [{"stage": 1, "epoch": 1, "loss": 0.5}], {}))]))
    assert evil in page.text
    assert "PCA of the normalised features" in page.text  # too few pictures for t-SNE


def test_evaluations_stand_beside_the_papers_with_their_examples(run: Path) -> None:
    config, source, _ = load_evaluation(
        str(run), "voc07_svm", [f"storage_path={run.parent}", "data.name=voc2007", "data.root=nowhere"]
    )
    metrics = {
        "voc07_svm/b4/map": 0.25,
        "voc07_svm/best/map": 0.25,
        "voc07_svm/b4/ap/dog": 0.5,
        "voc07_svm/b4/ap/cat": 0.125,
    }
    home = run / "evaluations"
    written = EvaluationReport(home, source.name, "stage-2", source.paper_row, 4, config, metrics, ["One & two."])
    written.write()
    (home / "old.json").write_text(json.dumps({"metrics": {}, "config": {}}))
    examples = home / written.stem / "examples"
    examples.mkdir(parents=True)
    Image.new("RGB", (20, 10), "red").save(examples / "1.png")
    (examples / "1.txt").write_text("A dog > a cat.\n")
    (home / ".detection-in-progress" / "examples").mkdir(parents=True)
    shutil.copy(examples / "1.png", home / ".detection-in-progress" / "examples" / "2.png")

    page = read_page(to_html([read_run(run)]))
    assert "voc07_svm of stage-2 on voc2007" in page.titles
    (measured,) = [table for table in page.tables if table[0][0] == "metric"]
    assert ["best map", "25.0", "65.9", "PSL Table 9, Rotation+PSL: ResNet-50, ImageNet, 180 epochs"] in measured
    (classes,) = [table for table in page.tables if table[0] == ["class", "B4"]]
    assert classes[1:] == [["dog", "50.0"], ["cat", "12.5"]]
    assert "One & two." in page.text
    assert page.text.count("A dog > a cat.") == 1
    assert "old.json is left out" in page.text
    assert "| best map | 25.0 | 65.9 |" in to_markdown([read_run(run)])


@pytest.mark.usefixtures("few_pictures")
def test_mgta_shows_its_networks_and_reconstructions_in_the_order_of_training(small_run: SmallRun) -> None:
    overrides = ["data.image_size=32", "data.limit=100", "backbone.width=4", "method.rounds.count=1"]
    overrides += ["method.baseline.epochs=1", "method.rounds.epochs=1", "method.final.epochs=1"]
    config = load_config("demo-mgta", [*overrides, f"storage_path={small_run.storage}", "cluster.workers=0"])
    triplets = [{"triplet": 0.5 + index, "active_triplets": 1.0} for index in range(3)]
    history = [
        {"stage": index + 1, "epoch": index + 1, "loss": 1.0, "reconstruction": 0.5, **more}
        for index, more in enumerate([{}, *triplets])
    ]
    networks = ("", "baseline/", "n1/", "random/")
    metrics = {f"{name}linear_probe/b1/top1": 0.25 + index / 8 for index, name in enumerate(networks)}
    folder = write_run(config, history, metrics)
    (folder / "reconstructions").mkdir()
    for name in ("final-n2", "round-1-n1", "baseline-n2", "round-1-n2"):
        Image.new("RGB", (80, 20)).save(folder / "reconstructions" / f"{name}.png")
    text = to_html([read_run(folder)])
    page = read_page(text)
    (probes,) = [table for table in page.tables if table[0][0] == "block"]
    assert probes == [["block", "trained", "baseline", "n1", "random"], ["B1", "25.0 *", "37.5 *", "50.0 *", "62.5 *"]]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert [each for each in captions if each.endswith((" N1.", " N2."))] == [
        "baseline of N2.",
        "round-1 of N2.",
        "round-1 of N1.",
        "final of N2.",
    ]
    assert "baseline: 1 epoch; 1 round: 1 epoch of N2 and of N1 each; final: 1 epoch" in page.text


def test_the_command_writes_the_page_beside_the_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = rayssl(capsys, "report", run.name, "--storage", str(run.parent))
    assert code == 0
    assert out.split() == ["page", str(run / "report.html"), "tables", str(run / "report.md")]
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo-psi"], "error: run 'demo-psi': unknown. Did you mean 'demo-psl-x'? There are 1 runs in "),
        (["empty"], "is no run, it holds no config.yaml"),
        (["demo-psl-x", "--out", "page.pdf"], "error: --out: must end in .html, got page.pdf"),
        ([], "Missing argument 'RUN...'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    small_run: SmallRun, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    open_run(small_run.config()).path.rename(small_run.storage / "demo-psl-x")
    (small_run.storage / "empty").mkdir()
    code, _, errors = rayssl(capsys, "report", *arguments, "--storage", str(small_run.storage))
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


def test_a_page_that_cannot_be_written_is_told(small_run: SmallRun) -> None:
    record = read_run(open_run(small_run.config()).path)
    with pytest.raises(ConfigError, match=r"--out: /proc/page\.html can't be written"):
        write_report([record], Path("/proc/page.html"))


def test_a_damaged_file_is_named(small_run: SmallRun) -> None:
    folder = open_run(small_run.config()).path
    (folder / "history.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"history\.jsonl: can't be read"):
        read_run(find_run(str(folder), storage_path=small_run.storage))


def test_jigsaw_tiles_put_back_give_the_picture(small_run: SmallRun, tmp_path: Path) -> None:
    """Tiles as large as their cells, of pictures as large as the crop, are the flipped picture cut with no rest."""
    config = small_run.config(
        "data.image_size=30",
        "method.task={name: jigsaw, crop: 30, tile_size: 10, normalize_tiles: false, gray_probability: 0.0}",
        "method.stages=[{blocks: [1, 2, 3, 4, 5], epochs: 1, level: {num_permutations: 50}}]",
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 30, 30, 3), dtype=np.uint8)
    (example,) = task_examples(config, open_arrays(images, tmp_path / "cache"))
    grid = pixels_of(example.picture)
    pixels = [row for row in range(32) if row not in (10, 21)]  # without the gaps between cells
    for number, image in enumerate(images):
        left = 4 + number * 36
        whole = grid[4:36, left : left + 32, :3][pixels][:, pixels]
        shuffled = grid[40:72, left : left + 32, :3][pixels][:, pixels]
        matches = [np.abs(whole.astype(int) - each).max() <= 1 for each in (image, image[:, ::-1])]
        assert any(matches)
        assert sorted(whole.flatten()) == sorted(shuffled.flatten())
        assert (whole != shuffled).any()


def test_rotation_shows_a_picture_in_all_its_angles(small_run: SmallRun, tmp_path: Path) -> None:
    """Though the recipe draws one angle for a picture, the row of 180 degrees is the first one upside down."""
    config = small_run.config("data.image_size=16", ANGLES)
    ramp = np.linspace(0, 255, 24, dtype=np.uint8)
    images = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(99)), axis=-1)[None].repeat(3, 0)
    (example,) = task_examples(config, open_arrays(images, tmp_path / "cache"))
    grid = pixels_of(example.picture).astype(int)
    assert grid.shape == (2 * 20 + 4, 3 * 20 + 4, 4)
    upright, turned = grid[4:20, 4:20, :3], grid[24:40, 4:20, :3]
    assert np.abs(upright - turned[::-1, ::-1]).max() <= 3
    assert np.abs(upright - turned).max() > 50


@pytest.mark.parametrize(
    ("task", "level", "rows"),
    [("{name: simclr}", "{}", 2), ("{name: moco, queue_size: 64}", "{}", 2), ("{name: supervised}", "{}", 1)],
)
def test_tasks_with_augmented_views_show_them(
    small_run: SmallRun, tmp_path: Path, task: str, level: str, rows: int
) -> None:
    stages = f"method.stages=[{{blocks: [1, 2, 3, 4, 5], epochs: 1, level: {level}}}]"
    config = small_run.config("data.image_size=16", f"method.task={task}", stages)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    (example,) = task_examples(config, open_arrays(images, tmp_path / "cache"))
    assert pixels_of(example.picture).shape == (rows * 20 + 4, 3 * 20 + 4, 4)


def test_neighbours_are_scikit_learns_and_the_share_is_counted() -> None:
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 6)))
    rows, cosines = neighbours(features, count=5)
    distances, expected = NearestNeighbors(n_neighbors=6, metric="cosine").fit(features).kneighbors(features)
    assert (rows.numpy() == expected[:, 1:]).all()
    np.testing.assert_allclose(cosines, 1 - distances[:, 1:], atol=1e-6)
    labels = torch.tensor([0, 0, 1, -1])
    assert same_class_share(torch.tensor([[1, 2], [0, 3], [3, 0], [0, 1]]), labels) == pytest.approx(2 / 4)


def test_few_features_are_projected_as_by_scikit_learns_pca() -> None:
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 6)))
    points, method = project(features, seed=0)
    expected = PCA(2).fit_transform(torch.nn.functional.normalize(features, dim=1).numpy())
    assert method == "PCA"
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-5)


def test_queries_are_a_picture_of_each_class_as_far_as_they_go() -> None:
    assert choose_queries(np.array([2, 2, 0, 1, 0]), 3).tolist() == [2, 3, 0]
    assert {0, 2} < set(choose_queries(np.array([1, 1, 0, 0]), 3).tolist())
    assert len(set(choose_queries(np.full(20, -1), 8).tolist())) == 8


def test_a_curve_leaves_out_what_is_not_finite_and_reaches_a_lonely_epoch() -> None:
    broken = curve("loss", "", [Line("a", COLOURS[0], {1: 0.5, 2: float("nan"), 3: 0.25})])
    assert broken.startswith("<svg ")
    assert "nan" not in broken.lower()
    lonely = curve("accuracy", "%", [Line("chance", COLOURS[1], {1: 0.5}, is_dashed=True)], stages=[1])
    assert re.search(rf'stroke-dasharray[^"]*; stroke: {COLOURS[1]}|stroke: {COLOURS[1]}; stroke-dash', lonely)


def test_pictures_come_back_from_their_uri() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (pixels_of(array_uri(pixels)) == pixels).all()
