"""Detection as a whole, on rectangles whose classes are colours, written to files in VOC's layout."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from rayssl.backbones import Backbone, ResNetConfig, RevNetConfig
from rayssl.data import Voc2007Config
from rayssl.data.pictures import ImageList
from rayssl.data.voc import VOC_CLASSES
from rayssl.data.voc_objects import Objects
from rayssl.errors import ConfigError, DataError
from rayssl.evaluate import check_pictures
from rayssl.evaluate_config import load_evaluation
from rayssl.evaluation import DetectionConfig, GroupEvaluation, KnnConfig, Outcome
from rayssl.evaluation.detection_model import build_detector
from rayssl.evaluation.detection_pictures import DetectionPictures, training_batches
from rayssl.evaluation.papers import paper_numbers
from rayssl.experiment import build_encoder, evaluate_beside_random, fitting_evaluations
from rayssl.launch_evaluation import evaluate
from rayssl.open_data import open_data
from rayssl.runtime import LocalRuntime
from tests.conftest import SmallRun
from tests.two_workers import run_on_two_workers

COLOURS = {"bus": (220, 60, 50), "cat": (60, 200, 70), "boat": (60, 80, 230)}
HEIGHT, WIDTH = 64, 80
TINY = DetectionConfig(
    setting="small",
    iterations=2,
    warmup_iterations=1,
    frozen_blocks=0,
    learning_rate=0.02,
    sides=(HEIGHT,),
    test_side=HEIGHT,
    max_side=96,
    anchor_sizes=(16, 32),
    proposals_before=(200, 100),
    proposals=(60, 30),
    regions=32,
    examples=3,
)
"""Steps of a fraction of a second."""


class SmallEncoder(Backbone):
    """Five convolutions."""

    def __init__(self) -> None:
        super().__init__()
        channels = (16, 24, 32, 32, 64)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o, stride in zip((3, *channels[:-1]), channels, (2, 2, 2, 1, 2), strict=True)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.set_blocks(tuple(self.layers), channels)


@pytest.fixture
def encoder() -> Backbone:
    torch.manual_seed(0)
    return SmallEncoder().train()


def as_object(name: str, left: int, top: int, right: int, bottom: int, difficult: int = 0) -> str:
    """An annotation's object, counted as VOC does."""
    box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def annotate(root: Path, name: str, *found: str) -> None:
    folder = root / "VOCdevkit" / "VOC2007" / "Annotations"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.xml").write_text(f"<annotation>{''.join(found)}</annotation>")


def write_rectangles(root: Path, **counts: int) -> Voc2007Config:
    """One or two bright rectangles on noise; a set of so many pictures of each name."""
    folder = root / "VOCdevkit" / "VOC2007"
    for part in ("JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for seed, (listed, count) in enumerate(counts.items()):
        random = np.random.default_rng(seed)
        for number in range(count):
            pixels, found = random.integers(60, 160, (HEIGHT, WIDTH, 3)), []
            for start in (0, WIDTH // 2)[: random.integers(1, 3)]:
                name = list(COLOURS)[random.integers(3)]
                width, height = random.integers(18, 36, 2)
                left, top = start + random.integers(0, WIDTH // 2 - width + 1), random.integers(0, HEIGHT - height + 1)
                shades = random.integers(-20, 20, (height, width, 3))
                pixels[top : top + height, left : left + width] = np.array(COLOURS[name]) + shades
                found.append(as_object(name, left, top, left + width, top + height))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "JPEGImages" / f"{listed}{number}.jpg")
            annotate(root, f"{listed}{number}", *found)
        names = "".join(f"{listed}{number}\n" for number in range(count))
        (folder / "ImageSets" / "Main" / f"{listed}.txt").write_text(names)
    return Voc2007Config(root=root, validation_fraction=0.0, download=False, image_size=32)


def measure(
    config: DetectionConfig,
    encoder: Backbone,
    data: Voc2007Config,
    *,
    folder: Path | None = None,
    shuffled: bool = False,
) -> Outcome:
    splits = data.build(seed=0)
    assert splits.test is not None
    runtime = LocalRuntime(data.root)
    return config.evaluate_together(
        encoder, splits.train, splits.test, data=data, seed=0, shuffled=shuffled, runtime=runtime, folder=folder
    )


def test_a_short_training_finds_rectangles_that_an_untrained_detector_does_not(
    encoder: Backbone, tmp_path: Path
) -> None:
    data = write_rectangles(tmp_path, trainval=60, test=20)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    random_state = torch.get_rng_state()
    untrained = measure(TINY.model_copy(update={"learning_rate": 1e-9}), encoder, data)
    config = TINY.model_copy(update={"iterations": 120, "reference": 0.5})
    trained = measure(config, encoder, data, folder=tmp_path / "examples")
    assert untrained.metrics["detection/small/ap50"] < 0.15
    assert trained.metrics["detection/small/ap50"] > 0.4
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert encoder.training and all(parameter.requires_grad for parameter in encoder.parameters())
    by_class = [trained.metrics[f"detection/small/ap50/ap/{name}"] for name in COLOURS]
    assert trained.metrics["detection/small/ap50"] == pytest.approx(np.mean(by_class))
    assert trained.metrics["detection/small/delta_ap75"] == trained.metrics["detection/small/ap75"] - 0.5
    assert {path.name for path in (tmp_path / "examples").iterdir()} == {
        f"{name}.{suffix}" for name in ("well-1", "well-2", "badly-1") for suffix in ("png", "txt")
    }
    caption = (tmp_path / "examples" / "well-1.txt").read_text()
    assert caption.startswith("test") and "True (green): " in caption
    with Image.open(tmp_path / "examples" / "well-1.png") as drawn:
        assert drawn.size == (480, 384)


def test_shuffled_boxes_stay_below_the_bound(encoder: Backbone, tmp_path: Path) -> None:
    outcome = measure(TINY, encoder, write_rectangles(tmp_path, trainval=12, test=8), shuffled=True)
    assert outcome.sanity is not None
    assert outcome.sanity.metric == "detection/small/ap50"
    assert outcome.metrics[outcome.sanity.metric] <= outcome.sanity.bound
    assert 1 / 11 <= outcome.sanity.bound < 0.6


def test_a_training_that_diverges_says_so_and_gives_no_number(encoder: Backbone, tmp_path: Path) -> None:
    data = write_rectangles(tmp_path, trainval=8, test=4)
    outcome = measure(TINY.model_copy(update={"learning_rate": 1e6, "iterations": 9}), encoder, data)
    assert outcome.metrics == {}
    assert "detection: diverged at iteration " in outcome.notes[-1]
    assert outcome.notes[-1].endswith("(seed 0): there is no number.")


BACKBONES = [ResNetConfig(depth=18, width=8), ResNetConfig(depth=50, width=4), RevNetConfig(width=8)]


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda each: f"{each.name}{each.depth}")
def test_body_and_head_compute_what_the_encoders_blocks_compute(backbone: Any) -> None:
    """Statistics that are not those of a new BatchNorm, so that leaving them out would show."""
    torch.manual_seed(0)
    encoder = backbone.build()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
    detector = build_detector(encoder, TINY.detector_settings(3))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in detector.modules())
    images = torch.randn(2, 3, 96, 64)
    encoder.eval()
    with torch.no_grad():
        features = detector.backbone(images)
        torch.testing.assert_close(features, encoder(images, 4), rtol=1e-3, atol=1e-4)
        assert features.shape == (2, encoder.block_channels[3], 6, 4)
        regions = torch.randn(5, encoder.block_channels[3], 14, 14)
        torch.testing.assert_close(
            detector.roi_heads.box_head(regions), encoder.blocks[4](regions).mean((2, 3)), rtol=1e-3, atol=1e-4
        )
    pooled = detector.roi_heads.box_roi_pool({"0": features}, [torch.tensor([[0.0, 0, 32, 32]])] * 2, [(96, 64)] * 2)
    assert pooled.shape == (2, encoder.block_channels[3], 14, 14)
    assert detector.rpn.anchor_generator.num_anchors_per_location() == [2 * 3]
    assert detector.roi_heads.box_predictor.cls_score.out_features == 4


@pytest.mark.parametrize("frozen_blocks", [0, 2, 4])
@pytest.mark.parametrize("backbone", [BACKBONES[0], BACKBONES[2]], ids=lambda each: each.name)
def test_frozen_blocks_and_batchnorm_stay_bit_for_bit_and_the_rest_learns(backbone: Any, frozen_blocks: int) -> None:
    torch.manual_seed(0)
    config = TINY.model_copy(update={"frozen_blocks": frozen_blocks})
    detector = build_detector(backbone.build(), config.detector_settings(3))
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    trainable = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD([each for each in detector.parameters() if each.requires_grad], 0.001, weight_decay=0.1)
    target = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([1])}
    loss = sum(detector([torch.rand(3, 64, 64)], [target]).values(), start=torch.zeros(()))
    loss.backward()
    optimizer.step()
    changed = {name for name, tensor in detector.state_dict().items() if not torch.equal(tensor, before[name])}
    frozen = tuple(f"backbone.blocks.{number}." for number in range(frozen_blocks))
    assert changed == trainable
    assert not any(name.startswith(frozen) for name in changed if frozen)
    for number in range(frozen_blocks, 4):
        assert any(name.startswith(f"backbone.blocks.{number}.") for name in changed)
    assert any(name.startswith("roi_heads.box_head.block.") for name in changed)
    constants = [module for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert constants and not any(list(module.parameters()) for module in constants)


def test_settings_are_the_papers_and_explicit_keys_win() -> None:
    psl, mgta = DetectionConfig(), DetectionConfig(setting="mgta")
    assert (psl.frozen_blocks, psl.batch_size, psl.test_side, psl.sides[0], psl.sides[-1]) == (2, 16, 800, 480, 800)
    assert (mgta.frozen_blocks, mgta.batch_size, mgta.sides, mgta.max_side) == (4, 4, (600,), 1000)
    short, long = mgta.schedule(5011), mgta.schedule(16_551)
    assert (short.iterations, long.iterations) == (50_000, 100_000)
    assert [short.rate(step) for step in (37_999, 38_000)] == pytest.approx([2e-3, 2e-4])
    assert [long.rate(step) for step in (64_999, 65_000)] == pytest.approx([2e-3, 2e-4])
    rates = [psl.schedule(16_551).rate(step) for step in (0, 500, 1000, 16_999, 17_000, 24_999)]
    assert rates == pytest.approx([2e-6, 0.002 * (0.001 + 0.999 / 2), 0.002, 0.002, 0.0002, 0.0002])
    assert DetectionConfig(setting="mgta", batch_size=2).batch_size == 2
    assert DetectionConfig.model_validate(mgta.model_dump()) == mgta
    with pytest.raises(ValidationError, match="warmup_iterations: must be fewer than iterations, 500, got 1000"):
        DetectionConfig(iterations=500)
    with pytest.raises(ValidationError, match="max_side: must be at least the short sides"):
        DetectionConfig(max_side=600)


def test_the_papers_numbers_are_those_of_their_tables() -> None:
    found = paper_numbers("detection/psl/ap50", data="voc0712")
    assert {each.row: each.percent for each in found}["Rotation+PSL"] == 74.6
    assert [each.percent for each in paper_numbers("detection/psl/delta_ap75", data="voc0712")][:2] == [0, -4.5]
    frozen = [each.percent for each in paper_numbers("detection/mgta/ap50", data="voc2007")]
    assert frozen == [11.27, 15.88, 15.07, 33.67]


def pictures_of(*found: Objects, folder: Path = Path()) -> DetectionPictures:
    return DetectionPictures([folder / f"{number}.png" for number in range(len(found))], found)


def one_object(left: float, top: float, right: float, bottom: float) -> Objects:
    return Objects(np.array([[left, top, right, bottom]], np.float32), np.array([0]), np.array([False]))


def test_a_mirrored_picture_has_its_boxes_mirrored_and_cut_to_the_picture(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[5:10, 2:12] = 255
    Image.fromarray(pixels).save(tmp_path / "0.png")
    pictures = pictures_of(one_object(2, 5, 12, 10), folder=tmp_path)
    for is_flipped in (False, True):
        example = pictures.example(0, is_flipped=is_flipped)
        left, top, right, bottom = example.boxes[0].int().tolist()
        bright = torch.zeros(20, 30, dtype=torch.bool)
        bright[top:bottom, left:right] = True
        assert torch.equal(example.picture[0] > 0, bright)
    over = pictures_of(one_object(-3, 5, 40, 10), folder=tmp_path).example(0, is_flipped=False)
    assert over.boxes.tolist() == [[0, 5, 30, 10]]


def test_long_pictures_lose_their_ends_and_their_boxes_move_along(tmp_path: Path) -> None:
    pixels = np.zeros((10, 60, 3), dtype=np.uint8)
    pixels[:, 20:25] = 255
    Image.fromarray(pixels).save(tmp_path / "0.png")
    pictures = pictures_of(one_object(20, 0, 25, 10), folder=tmp_path)
    decoded = pictures.decode(0)
    assert decoded is not None
    assert (tuple(decoded[0].shape), decoded[1].tolist()) == ((3, 10, 40), [10, 0])
    example = pictures.example(0, is_flipped=False)
    assert example.boxes.tolist() == [[10, 0, 15, 10]]
    assert (example.picture[0, :, 10:15] == 255).all()


def test_an_unreadable_picture_is_replaced_by_the_next_and_noted(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 10)).save(tmp_path / "1.png")
    pictures = pictures_of(one_object(0, 0, 5, 5), one_object(1, 1, 9, 9), folder=tmp_path)
    assert pictures.example(0, is_flipped=False).boxes.tolist() == [[1, 1, 9, 9]]
    assert list(pictures.bad) == [0]
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match="none of 2 training pictures with objects can be used"):
        pictures_of(*pictures.objects, folder=tmp_path).example(1, is_flipped=False)


def test_batches_are_shared_out_and_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (20 + number, 10)).save(tmp_path / f"{number}.png")
    pictures = pictures_of(*[one_object(2, 2, 7, 7)] * 5, folder=tmp_path)
    options: dict[str, Any] = {"batch_size": 4, "iterations": 5, "seed": 3, "num_threads": 2}
    batches = [list(training_batches(pictures, rank=0, world_size=1, **options))]
    shares = [list(training_batches(pictures, rank=rank, world_size=2, **options)) for rank in range(2)]
    batches.append([[one for pair in zip(*both, strict=True) for one in pair] for both in zip(*shares, strict=True)])
    alone, together = ([(e.picture.shape[2], e.boxes.tolist()) for b in each for e in b] for each in batches)
    assert alone == together
    widths = [width for width, _ in alone]
    assert all(sorted(widths[start : start + 5]) == [20, 21, 22, 23, 24] for start in range(0, 20, 5))
    assert len({box[0][0] for _, box in alone}) > 1  # some are mirrored


def counts_of(data: Voc2007Config, config: DetectionConfig = TINY) -> str:
    """The sentence about pictures and objects."""
    return measure(config, SmallEncoder(), data).notes[0]


def test_empty_pictures_difficult_objects_and_empty_classes_are_counted(tmp_path: Path) -> None:
    """A cat to learn and a cat to tell; buses are only on one side; a difficult dog on each."""
    data = write_rectangles(tmp_path, trainval=4, test=3)
    annotate(tmp_path, "trainval0", as_object("cat", 5, 5, 30, 30), as_object("dog", 40, 5, 60, 30, difficult=1))
    annotate(tmp_path, "trainval1", as_object("bus", 5, 5, 30, 30))
    annotate(tmp_path, "trainval2")
    annotate(tmp_path, "trainval3", as_object("dog", 5, 5, 30, 30, difficult=1))
    annotate(tmp_path, "test0", as_object("cat", 5, 5, 30, 30))
    annotate(tmp_path, "test1", as_object("dog", 5, 5, 30, 30, difficult=1))
    annotate(tmp_path, "test2")
    text = counts_of(data)
    assert "learned from 3 pictures (1 more have no objects and are left out) with 4 objects, 2 of them diff" in text
    assert "told 3 pictures with 1 objects, and 1 difficult ones that don't count; means over 1 classes" in text
    text = counts_of(data, TINY.model_copy(update={"train_difficult": False}))
    assert "learned from 2 pictures (2 more have no objects and are left out) with 2 objects, 0 of them diff" in text
    outcome = measure(TINY, SmallEncoder(), data)
    assert {name.rsplit("/", 1)[1] for name in outcome.metrics if "/ap/" in name} == {"cat"}
    annotate(tmp_path, "test0")
    with pytest.raises(DataError, match="no class has objects both in the training and in the test pictures"):
        check(TINY, data)


def check(config: DetectionConfig, data: Voc2007Config, num_workers: int = 1) -> None:
    splits = data.build(seed=0)
    assert splits.test is not None
    config.check(splits.train, splits.test, num_workers=num_workers)


def test_an_unreadable_test_picture_does_not_count_and_too_many_stop_it(encoder: Backbone, tmp_path: Path) -> None:
    data = write_rectangles(tmp_path, trainval=4, test=4)
    folder = tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages"
    (folder / "test1.jpg").write_bytes(b"no picture")
    outcome = measure(TINY, encoder, data)
    assert "1 pictures could not be used, they and their objects don't count: " in outcome.notes[-1]
    assert "test1.jpg" in outcome.notes[-1]
    (folder / "test2.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"data\.max_bad_fraction: .* found 2 of 4"):
        measure(TINY, encoder, data)


def test_what_is_missing_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    data = write_rectangles(tmp_path, trainval=4, test=4)
    check(TINY, data, num_workers=2)
    with pytest.raises(ConfigError, match="batch_size: must be a multiple of cluster.workers, 3, got 4"):
        check(TINY, data, num_workers=3)
    options = ["data.name=voc2007", f"data.root={tmp_path}", "data.download=false", "data.image_size=32"]
    config, _, _ = load_evaluation("random:resnet18", "detection", options)
    assert check_pictures(config) == []
    for listed in ("trainval", "test"):  # with lists of all classes, nothing else reads the annotations
        for name in VOC_CLASSES:
            file = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / f"{name}_{listed}.txt"
            file.write_text("".join(f"{listed}{number} 1\n" for number in range(4)))
    (tmp_path / "VOCdevkit" / "VOC2007" / "Annotations" / "trainval1.xml").unlink()
    with pytest.raises(DataError, match="1 of 4 pictures .*trainval1.xml"):
        check_pictures(config)


def test_pictures_without_boxes_are_refused_with_the_reason() -> None:
    none = ImageList([Path("a.jpg")], np.array([0]), ("cat",))
    with pytest.raises(DataError, match="must be a set of files with annotated boxes"):
        DetectionPictures.read(none)
    assert isinstance(TINY, GroupEvaluation)
    assert not isinstance(KnnConfig(), GroupEvaluation)


def _two_workers(rank: int, *, root: str) -> Any:
    torch.manual_seed(0)
    data = Voc2007Config(root=Path(root), validation_fraction=0.0, download=False, image_size=32)
    outcome = measure(TINY.model_copy(update={"iterations": 4}), SmallEncoder(), data)
    return outcome.metrics, outcome.notes


def test_two_workers_train_one_detector_and_tell_all_test_pictures(tmp_path: Path) -> None:
    write_rectangles(tmp_path, trainval=8, test=5)
    first, second = run_on_two_workers(partial(_two_workers, root=str(tmp_path)), tmp_path)
    assert first == second
    assert "told 5 pictures" in first[1][0]
    assert "detection/small/ap50" in first[0]


SMALL_EVALUATION = [f"{key}={json.dumps(value)}" for key, value in TINY.model_dump().items() if key != "name"]


@pytest.mark.filterwarnings("ignore")  # MLflow's and SQLAlchemy's own
def test_the_command_files_numbers_classes_and_examples(tmp_path: Path) -> None:
    write_rectangles(tmp_path / "data", trainval=8, test=4)
    overrides = [
        *("data.name=voc2007", f"data.root={tmp_path / 'data'}", "data.download=false", "data.image_size=32"),
        *("backbone.width=16", f"storage_path={tmp_path / 'runs'}", "seeds=2", "sanity=true"),
        *(f"evaluation.{each}" for each in SMALL_EVALUATION if not each.endswith("null")),
    ]
    config, source, _ = load_evaluation("random:resnet18", "detection", overrides)
    report = evaluate(config, source, show=lambda event: None)
    text = (report.folder / f"{report.stem}.md").read_text()
    for part in ("small ap50", "| class | AP | AP50 | AP75 |", "| bus |", "small: every BatchNorm frozen", "sanity: "):
        assert part in text
    assert "detection/small/ap50_std" in report.metrics
    drawn = sorted(path.name for path in (report.folder / report.stem / "examples").iterdir())
    assert drawn == [f"badly-{number}.{suffix}" for number in (1, 2, 3) for suffix in ("png", "txt")]  # none is found


def test_a_recipe_measures_the_trained_and_a_random_network(small_run: SmallRun, tmp_path: Path) -> None:
    write_rectangles(tmp_path / "data", trainval=8, test=4)
    entry = ", ".join(["name: detection", *(each.replace("=", ": ") for each in SMALL_EVALUATION)])
    recipe = small_run.config(
        *("data.name=voc2007", f"data.root={tmp_path / 'data'}", "data.download=false", "data.validation_fraction=0"),
        # The demo's 4 channels at this size would crash torch: 1x1 convolutions of stride 2, channels last, on a CPU.
        *("backbone.width=16", "backbone.stem=imagenet"),
        *("online.probe=false", "online.knn=false", f"evaluations=[{{{entry}}}]"),
    )
    runtime = LocalRuntime(tmp_path / "run", num_threads=1)
    pictures = open_data(recipe, tmp_path)
    assert fitting_evaluations(recipe, pictures)[1] == []
    method = recipe.method.build(build_encoder(recipe), recipe.task_setting(pictures.train.classes), seed=recipe.seed)
    metrics, notes = evaluate_beside_random(recipe, method, pictures, runtime)
    assert metrics["detection/small/ap50"] == metrics["random/detection/small/ap50"]  # nothing was trained yet
    assert any("detection/small/ap50: " in note and "(random " in note for note in notes)
    assert (tmp_path / "run" / "evaluations" / "detection" / "examples" / "badly-1.png").is_file()
