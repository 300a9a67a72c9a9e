"""What SOURCE on the command line may be, and the config that an evaluation starts from."""

import json
from pathlib import Path

import pytest
import torch

from rayssl.config import load_config
from rayssl.errors import CheckpointError, ConfigError
from rayssl.evaluate_config import load_evaluation
from rayssl.experiment import build_encoder
from rayssl.recipe_file import to_yaml
from rayssl.runs import open_run
from rayssl.sources import find_source, load_encoder, paper_row
from rayssl.training.checkpoints import Checkpoint, Cursor, save_checkpoint
from tests.conftest import SmallRun


def finished_run(small_run: SmallRun, *overrides: str) -> Path:
    """A run's folder as training leaves it, without the training."""
    config = small_run.config(*overrides)
    folder = open_run(config).path
    encoder = build_encoder(config)
    torch.save(encoder.state_dict(), folder / "encoder.pt")
    checkpoint = Checkpoint(
        Cursor(2), backbone=encoder.state_dict(), history=[{"epoch": 1.0}], config=config.model_dump(mode="json")
    )
    save_checkpoint(checkpoint, folder / "stage-2")
    (folder / "history.jsonl").write_text('{"stage": 1, "epoch": 1}\n{"stage": 2, "epoch": 2}\n')
    (folder / "report.json").write_text(json.dumps({"metrics": {}}))
    return folder


def test_a_run_gives_its_data_backbone_seed_and_workers(small_run: SmallRun) -> None:
    folder = finished_run(small_run, "seed=5")
    recipe = small_run.config("seed=5")
    by_folder, source, notes = load_evaluation(str(folder), "knn", [f"storage_path={small_run.storage}"])
    by_id, _, _ = load_evaluation(folder.name, "knn", [f"storage_path={small_run.storage}"])
    assert by_folder == by_id
    assert notes == []
    assert (by_id.data, by_id.backbone, by_id.seed, by_id.cluster) == (recipe.data, recipe.backbone, 5, recipe.cluster)
    assert by_id.weights == folder / "encoder.pt"
    assert source.run_folder == folder


def test_a_stage_and_a_file_of_the_run_belong_to_the_run(small_run: SmallRun) -> None:
    folder = finished_run(small_run)
    stage = find_source(str(folder / "stage-2"), storage_path=small_run.storage)
    file = find_source(str(folder / "encoder.pt"), storage_path=small_run.storage)
    assert (stage.run_folder, stage.part, stage.weights) == (folder, "stage-2", folder / "stage-2")
    assert (file.run_folder, file.part) == (folder, "")
    backbone = small_run.config().backbone
    ours, theirs = (load_encoder(backbone, each.weights, seed=1).state_dict() for each in (stage, file))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_another_data_set_replaces_the_runs_whole_section(small_run: SmallRun) -> None:
    folder = finished_run(small_run)
    config, _, notes = load_evaluation(str(folder), "voc07_svm", ["data.name=voc2007", "data.root=DIR"])
    assert (config.data.image_size, config.data.limit, config.data.validation_fraction) == (224, None, 0.0)
    assert notes == [
        "data: voc2007 replaces the run's digits; views are the new set's, not 8 px (data.image_size=8 keeps them)"
    ]


def test_an_unknown_source_is_corrected(small_run: SmallRun) -> None:
    folder = finished_run(small_run)
    misspelt = folder.name.replace("demo-psl", "dmeo-psl")
    with pytest.raises(ConfigError, match=f"source '{misspelt}': unknown. Did you mean '{folder.name}'"):
        find_source(misspelt, storage_path=small_run.storage)
    with pytest.raises(ConfigError, match=r"source 'random:resnet52': unknown\. Did you mean 'resnet50'\?"):
        find_source("random:resnet52", storage_path=small_run.storage)
    with pytest.raises(
        ConfigError, match="There are: torchvision:resnet18, torchvision:resnet34, torchvision:resnet50"
    ):
        find_source("torchvision:revnet50", storage_path=small_run.storage)


def test_a_run_that_is_not_finished_names_its_checkpoints(small_run: SmallRun) -> None:
    folder = finished_run(small_run)
    (folder / "encoder.pt").unlink()
    with pytest.raises(ConfigError, match=r"the run is not finished, .* checkpoints: .*/stage-2"):
        find_source(str(folder), storage_path=small_run.storage)
    with pytest.raises(ConfigError, match="is neither a run, config.yaml is missing, nor a checkpoint"):
        find_source(str(folder.parent), storage_path=small_run.storage)


def test_what_a_file_of_weights_leaves_open_is_asked_for(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(ConfigError) as caught:
        load_evaluation(str(tmp_path / "weights.pt"), "nkn", [])
    message = str(caught.value)
    for part in (
        "3 mistakes",
        "data: is required",
        "backbone: is required",
        "Did you mean 'knn'?",
        "data.name=voc2007",
    ):
        assert part in message
    with pytest.raises(ConfigError, match=r"weights: is required: torchvision:resnet50 needs a file"):
        load_evaluation("torchvision:resnet50", "knn", ["data.name=digits"])


def test_a_random_network_is_decided_by_the_seed_and_weights_by_their_file(tmp_path: Path) -> None:
    backbone = load_config("demo-psl").backbone
    one, same, other = (load_encoder(backbone, None, seed=seed).state_dict()["conv1.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_encoder(backbone, tmp_path / "nothing.pt", seed=0)


@pytest.mark.parametrize(
    ("recipe", "row"),
    [
        ("psl-jigsaw-imagenet", "Jigsaw+PSL"),
        ("sl-rotation-imagenet", "Rotation+SL"),
        ("psl-f-jigsaw-imagenet", "Jigsaw+PSL_f"),
        ("end-to-end-moco-imagenet", "MoCov2"),
        ("greedy-jigsaw-imagenet", None),
        ("supervised-resnet50-imagenet", "Supervised"),
        ("supervised-revnet50-imagenet", "Supervised (RevNet-50)"),
    ],
)
def test_a_recipe_knows_its_row_of_the_papers_tables(recipe: str, row: str | None) -> None:
    assert paper_row(load_config(recipe)) == row


def test_an_evaluations_config_loads_back_from_what_is_shown(small_run: SmallRun) -> None:
    config, _, _ = load_evaluation("random:resnet18", "linear_probe", ["data.name=digits", "evaluation.dialect=moco"])
    assert "dialect: moco" in to_yaml(config)
    assert (
        config.fingerprint
        == load_evaluation(
            "random:resnet18", "linear_probe", ["data.name=digits", "evaluation.dialect=moco", "cluster.workers=3"]
        )[0].fingerprint
    )
