"""MGTA: who labels what for whom, what a run leaves behind, and that it goes on where it stopped."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from rayssl.backbones import Backbone
from rayssl.backbones.autoencoder import AutoEncoder
from rayssl.data import Pictures
from rayssl.errors import CheckpointError, ConfigError, TrainingError
from rayssl.experiment import run_experiment
from rayssl.methods import MGTA, MGTAConfig, StagePlan, pseudo_labels
from rayssl.methods.mgta_config import RoundsConfig
from rayssl.methods.mgta_schedule import list_stages, split_pictures
from rayssl.methods.mgta_stage import AutoEncoderStage
from rayssl.report import Report
from rayssl.runs import open_run
from rayssl.runtime import LocalRuntime, NullTracker
from rayssl.training.checkpoints import load_checkpoint
from rayssl.training.optimizers import AdamConfig
from tests.dying import DyingRuntime, Interrupted
from tests.methods.mgta_parts import MemoryPictures, mgta_config, small_config, small_encoder, small_method

N1_GROUPS, N2_GROUPS = 5, 6


class KnownFeatures:
    """Stands for `extract_embeddings`: N2 sees a picture's number modulo 6, N1 modulo 5; writes down who looked."""

    def __init__(self, method: MGTA) -> None:
        self._second = method.encoder
        self.looked: list[tuple[int, np.ndarray]] = []

    def __call__(
        self, encoder: Backbone, pictures: Pictures, indices: np.ndarray, *, runtime: LocalRuntime, **_: int
    ) -> Tensor:
        number = 2 if encoder is self._second else 1
        self.looked.append((number, indices))
        groups = torch.from_numpy(indices) % (N2_GROUPS if number == 2 else N1_GROUPS)
        noise = torch.randn(len(pictures), N2_GROUPS, generator=torch.Generator().manual_seed(0))
        return 10 * torch.eye(N2_GROUPS)[groups] + 0.3 * noise[indices]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[MGTA], KnownFeatures]:
    def install(method: MGTA) -> KnownFeatures:
        features = KnownFeatures(method)
        monkeypatch.setattr(pseudo_labels, "extract_embeddings", features)
        return features

    return install


def prepare(method: MGTA, index: int, pictures: Pictures, folder: Path) -> StagePlan:
    return method.prepare(index, pictures, LocalRuntime(folder, num_threads=1), optimizer=AdamConfig())


def trained_network(plan: StagePlan) -> AutoEncoder:
    assert isinstance(plan.stage, AutoEncoderStage)
    return plan.stage.network


def seen(plan: StagePlan, epoch: int = 0) -> tuple[Tensor, Tensor]:
    """Numbers and labels of all pictures of an epoch."""
    batches = list(plan.loader.epoch(epoch))
    return torch.cat([each.indices for each in batches]), torch.cat([each.labels for each in batches])


def same_partition(labels: Tensor, others: Tensor) -> bool:
    pairs = {(int(a), int(b)) for a, b in zip(labels, others, strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@pytest.mark.parametrize("resplit", [False, True], ids=["one split", "resplit"])
@pytest.mark.parametrize("guidance", ["alternating", "simultaneous"])
def test_each_network_is_trained_by_the_labels_of_the_other_alone(
    known: Callable[[MGTA], KnownFeatures], tmp_path: Path, guidance: str, resplit: bool
) -> None:
    """N1 groups by the number modulo 5 and N2 modulo 6, so the labels say whose they are."""
    rounds = {"count": 2, "epochs": 1, "guidance": guidance, "resplit": resplit}
    config = mgta_config(rounds=rounds, clusters={"grid": [3, N1_GROUPS, N2_GROUPS, 8]})
    method, pictures = small_method(config), MemoryPictures(81)
    features = known(method)
    prepare(method, 0, pictures, tmp_path)
    assert features.looked == []
    trained_on: list[set[int]] = []
    for index in range(1, method.num_stages):
        plan = prepare(method, index, pictures, tmp_path)
        is_second = trained_network(plan).encoder is method.encoder
        assert is_second == (index % 2 == 1)
        assert plan.measured == is_second
        indices, labels = seen(plan)
        groups = N1_GROUPS if is_second else N2_GROUPS  # those of the network that is not trained
        assert same_partition(labels, indices % groups)
        trained_on.append(set(indices.tolist()))
    of_second, of_first, everything = trained_on[:-1:2], trained_on[1:-1:2], trained_on[-1]
    # A picture that a network was trained on in a round was labelled by the other, so it labelled none of these.
    for second, first in zip(of_second, of_first, strict=True):
        assert not second & first
        assert min(len(second), len(first)) > 25
    assert any(second & first for second in of_second for first in of_first) == resplit
    assert len(everything) > 65


def test_a_network_that_alternates_labels_with_what_it_has_just_learned(
    known: Callable[[MGTA], KnownFeatures], tmp_path: Path
) -> None:
    """Alternating: N2 looks at D1 after it was trained on D2; simultaneous: both look before either is trained."""
    order = {}
    for guidance in ("alternating", "simultaneous"):
        method, pictures = small_method(mgta_config(rounds={"count": 1, "guidance": guidance})), MemoryPictures()
        features = known(method)
        lookers = []
        for index in range(3):
            prepare(method, index, pictures, tmp_path)
            lookers.append([number for number, _ in features.looked])
            features.looked.clear()
        order[guidance] = lookers
    # In the second half-round of "alternating" N1 looks as well, to be compared with.
    assert order == {"alternating": [[], [1], [2, 1]], "simultaneous": [[], [1, 2], []]}


def test_halves_are_disjoint_complete_equal_within_one_and_seeded() -> None:
    stages = list_stages(mgta_config(rounds={"count": 2}))
    for count in (60, 61):
        second, first = (split_pictures(stage, count, seed=1, resplit=False) for stage in stages[1:3])
        assert sorted([*first, *second]) == list(range(count))
        assert abs(len(first) - len(second)) <= 1
        assert np.array_equal(split_pictures(stages[3], count, seed=1, resplit=False), second)
        assert not np.array_equal(split_pictures(stages[3], count, seed=1, resplit=True), second)
        assert not np.array_equal(split_pictures(stages[1], count, seed=2, resplit=False), second)
    assert np.array_equal(split_pictures(stages[-1], 60, seed=1, resplit=False), np.arange(60))


def test_the_papers_run_is_a_list_of_twenty_two_stages() -> None:
    """Section 4.2: 100 epochs, ten rounds of 10 each, a last one of 10; lambda from .1 to 1."""
    stages = list_stages(mgta_config(rounds={}, clusters=300))
    assert [stage.name for stage in stages[:4]] == ["baseline", "round-1", "round-1", "round-2"]
    assert (len(stages), stages[-1].name) == (22, "final")
    assert [stage.epochs for stage in stages] == [100, *[10] * 21]
    assert [stage.triplet_weight for stage in stages[1:-1:2]] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert [stage.triplet_weight for stage in stages[2:-1:2]] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert stages[-1].triplet_weight == 1.0
    assert {(stage.trained, stage.labeller, stage.half) for stage in stages[1:-1]} == {(2, 1, "D2"), (1, 2, "D1")}
    assert list_stages(mgta_config(rounds={"count": 1}))[1].triplet_weight == 0.1


@pytest.mark.parametrize(
    ("shape", "weights"),
    [("linear", [0.1, 5.05, 10.0]), ("cosine", [0.1, 5.05, 10.0]), ("geometric", [0.1, 1.0, 10.0])],
)
def test_lambda_goes_from_the_first_rounds_to_the_last_by_its_shape(shape: str, weights: list[float]) -> None:
    """Half way, half a cosine is at the mean, and equal factors are at the geometric mean."""
    rounds = {"count": 3, "lambda": [0.1, 10.0], "lambda_shape": shape}
    config = MGTAConfig.model_validate({"rounds": rounds})
    assert config.rounds.triplet_weights == pytest.approx(weights)
    assert [stage.triplet_weight for stage in list_stages(config) if stage.round] == pytest.approx(
        [weight for weight in weights for _ in range(2)]
    )


def test_half_a_cosine_is_flat_at_both_ends() -> None:
    rounds = RoundsConfig.model_validate({"count": 5, "lambda": [0, 1], "lambda_shape": "cosine"})
    assert rounds.triplet_weights == pytest.approx([0, (1 - 2**-0.5) / 2, 0.5, (1 + 2**-0.5) / 2, 1])


def test_equal_factors_from_zero_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be above 0 for lambda_shape: geometric"):
        RoundsConfig.model_validate({"lambda": [0, 1], "lambda_shape": "geometric"})


def test_no_two_stages_see_the_same_epoch_and_each_has_its_own_schedule() -> None:
    config = mgta_config(baseline={"epochs": 4}, rounds={"count": 2, "epochs": 3}, final={"epochs": 5})
    method = small_method(config)
    schedules = [method.schedule(index) for index in range(method.num_stages)]
    assert [each.epochs_before for each in schedules] == [0, 4, 7, 10, 13, 16]
    assert {each.epochs_run for each in schedules} == {21}
    assert schedules[2].progress(0, 0.0) == 0
    assert method.settings_of(1) == method.settings_of(2) == {"epochs": 3, "learning_rate": 3e-4, "lambda": 0.1}
    assert method.settings_of(0) == {"epochs": 4}


def test_stages_have_their_own_learning_rates(known: Callable[[MGTA], KnownFeatures], tmp_path: Path) -> None:
    rounds = {"count": 1, "learning_rate": 0.5}
    method, pictures = small_method(mgta_config(rounds=rounds)), MemoryPictures()
    known(method)
    rates = [prepare(method, index, pictures, tmp_path).optimizer.learning_rate for index in range(4)]
    assert rates == [AdamConfig().learning_rate, 0.5, 0.5, 0.5]
    assert prepare(small_method(mgta_config(baseline={"learning_rate": 0.2})), 0, pictures, tmp_path).optimizer == (
        AdamConfig(learning_rate=0.2)
    )


def test_both_networks_start_from_the_baseline(known: Callable[[MGTA], KnownFeatures], tmp_path: Path) -> None:
    method, pictures = small_method(mgta_config()), MemoryPictures()
    known(method)
    baseline = trained_network(prepare(method, 0, pictures, tmp_path))
    with torch.no_grad():
        for parameter in baseline.parameters():
            parameter.add_(1.0)
    before = {name: tensor.clone() for name, tensor in baseline.state_dict().items()}
    first = trained_network(prepare(method, 1, pictures, tmp_path))
    second = trained_network(prepare(method, 2, pictures, tmp_path))
    assert first is baseline
    assert second is not first
    torch.testing.assert_close(second.state_dict(), before, rtol=0, atol=0)
    assert not {p.data_ptr() for p in first.parameters()} & {p.data_ptr() for p in second.parameters()}
    assert method.compared_encoders().keys() == {"baseline/", "n1/"}
    assert method.compared_encoders()["n1/"] is second.encoder


def test_the_decoder_is_the_seeds_and_leaves_torchs_generator_alone() -> None:
    encoder = small_encoder()
    expected = torch.rand(2)
    small_encoder()
    method = mgta_config().build(encoder, small_method(mgta_config())._setting, seed=3)
    weight = method.state()["n2.decoder.layer4.0.branch.0.weight"]
    small_encoder()
    same = small_method(mgta_config(), seed=3).state()["n2.decoder.layer4.0.branch.0.weight"]
    other = small_method(mgta_config(), seed=4).state()["n2.decoder.layer4.0.branch.0.weight"]
    assert torch.equal(weight, same)
    assert not torch.equal(weight, other)
    small_encoder()
    small_method(mgta_config())
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("guidance", ["alternating", "simultaneous"])
def test_a_state_is_taken_up_as_it_was_and_is_not_labelled_again(
    known: Callable[[MGTA], KnownFeatures], tmp_path: Path, guidance: str
) -> None:
    config = mgta_config(rounds={"count": 1, "guidance": guidance})
    method, pictures = small_method(config), MemoryPictures()
    known(method)
    prepare(method, 0, pictures, tmp_path)
    for index in (1, 2):
        plan = prepare(method, index, pictures, tmp_path)
        resumed = small_method(config)
        resumed.encoder.load_state_dict(method.encoder.state_dict())
        resumed.load_state(method.state())
        state = method.state()
        assert all(isinstance(tensor, Tensor) for tensor in state.values())
        assert resumed.state().keys() == state.keys()
        assert all(torch.equal(tensor, resumed.state()[name]) for name, tensor in state.items())
        features = known(resumed)
        again = prepare(resumed, index, pictures, tmp_path)
        assert features.looked == []
        assert all(torch.equal(a, b) for a, b in zip(seen(plan), seen(again), strict=True))
        known(method)


def test_labels_of_other_pictures_are_refused(known: Callable[[MGTA], KnownFeatures], tmp_path: Path) -> None:
    method = small_method(mgta_config())
    known(method)
    for index in range(2):
        prepare(method, index, MemoryPictures(60), tmp_path)
    with pytest.raises(CheckpointError, match="labels for 60 pictures, but there are 70"):
        prepare(method, 1, MemoryPictures(70), tmp_path)


class Ledger(NullTracker):
    """Remembers what is recorded."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}
        self.files: list[str] = []
        self.children: dict[str, Ledger] = {}

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append(value)

    def log_artifact(self, path: Path, folder: str | None = None, *, unless_there: bool = False) -> None:
        assert path.exists()
        self.files.append(path.name)

    def child(self, name: str, *, reopen: bool = True) -> "Ledger":
        return self.children.setdefault(name, Ledger())


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Ledger]:
    probe = "evaluations=[{name: linear_probe, seeds: 2, epochs: 1, max_features: 64}]"
    ledger = Ledger()
    return run_experiment(small_config(tmp_path_factory.mktemp("whole"), probe), tracker=ledger), ledger


def test_a_run_tells_every_epoch_and_every_network(whole_run: tuple[Report, Ledger]) -> None:
    report, _ = whole_run
    assert [row["stage"] for row in report.history] == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert [row["epoch"] for row in report.history] == list(range(1, 11))
    weights = {2: 0.1, 3: 0.1, 4: 1.0, 5: 1.0, 6: 1.0}
    for row in report.history[1:]:
        assert row["loss"] == pytest.approx(
            row["reconstruction"] + weights[int(row["stage"])] * row["triplet"], rel=1e-4
        )
        assert 0 <= row["active_triplets"] <= 1
        assert ("feature/std" in row) == (row["stage"] in (2, 4, 6))
    assert report.history[0]["loss"] == report.history[0]["reconstruction"]
    names = {f"{who}linear_probe/b5/top1" for who in ("", "baseline/", "n1/", "random/")}
    assert names <= report.metrics.keys()
    text = report.to_markdown()
    assert "| block | trained | baseline | n1 | random |" in text
    assert "| stage | epoch | loss | reconstruction | triplet | active triplets | views/s |" in text
    assert "accuracy" not in text


def test_a_run_records_what_is_known_of_the_clusters(whole_run: tuple[Report, Ledger]) -> None:
    _, ledger = whole_run
    assert list(ledger.children) == ["baseline", "round-1", "round-2", "final"]
    always = {
        "clusters/calinski_harabasz",
        "clusters/inertia",
        "clusters/num",
        "clusters/smallest",
        "clusters/median",
        "clusters/largest",
        "clusters/singletons",
        "clusters/dropped_images",
        "information_only/nmi_classes",
    }
    later = always | {"nmi/networks", "nmi/previous_round"}
    found = {name: set(child.metrics) for name, child in ledger.children.items()}
    assert {f"n1/{key}" for key in always} | {f"n2/{key}" for key in always} | {"triplet_weight"} <= found["round-1"]
    assert {f"n1/{key}" for key in later} | {f"n2/{key}" for key in later} <= found["round-2"]
    assert {f"n1/{key}" for key in later} <= found["final"]
    assert "n1/nmi/networks" not in found["round-1"]  # the networks are still the same
    assert "n2/nmi/networks" in found["round-1"]
    assert ledger.children["round-2"].metrics["triplet_weight"] == [1.0, 1.0]
    assert ledger.children["round-1"].metrics["n1/clusters/num"] == [8.0]
    values = [value for child in ledger.children.values() for series in child.metrics.values() for value in series]
    assert np.isfinite(values).all()


def test_a_run_draws_reconstructions_and_cluster_sizes(whole_run: tuple[Report, Ledger]) -> None:
    report, ledger = whole_run
    files = {name: set(child.files) for name, child in ledger.children.items()}
    assert {"baseline-n2.png"} <= files["baseline"]
    assert {"round-1-n2.png", "round-1-n1.png", "round-1-n1.txt", "round-1-n2.txt"} <= files["round-1"]
    assert {"final-n2.png", "final-n1.txt"} <= files["final"]
    with Image.open(report.folder / "reconstructions" / "final-n2.png") as picture:
        assert picture.size == (8 * 18 + 2, 2 * 18 + 2)  # 16 px with a border of 2 beside each
    assert "70 pictures in 8 clusters" in (report.folder / "clusters" / "round-1-n1.txt").read_text()


def test_the_result_is_the_encoder_of_n2(whole_run: tuple[Report, Ledger]) -> None:
    """N1's half-rounds leave it alone, every stage of N2 changes it."""
    report, _ = whole_run
    states = [load_checkpoint(report.folder / f"stage-{number}").backbone for number in range(1, 7)]
    changed = [
        any(not torch.equal(before[name], after[name]) for name in after)
        for before, after in zip(states, states[1:], strict=False)
    ]
    assert changed == [True, False, True, False, True]
    result = torch.load(report.folder / "encoder.pt", weights_only=True)
    assert all(torch.equal(result[name], tensor) for name, tensor in states[-1].items())


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in history]


@pytest.mark.parametrize(
    ("guidance", "deaths"),
    [
        pytest.param("alternating", [1, 7], id="before round 1, then inside half-round 2 of round 2"),
        pytest.param("simultaneous", [3, 1], id="between the halves of round 1, then inside the second"),
    ],
)
def test_a_run_that_died_goes_on_and_ends_as_if_it_had_not(
    tmp_path: Path, whole_run: tuple[Report, Ledger], guidance: str, deaths: list[int]
) -> None:
    """Bit for bit: the result, N1, the decoders, the baseline and the labels."""
    config = small_config(tmp_path, f"method.rounds.guidance={guidance}")
    whole, _ = whole_run
    if guidance == "simultaneous":
        whole = run_experiment(small_config(tmp_path, "method.rounds.guidance=simultaneous", "name=whole"))
    run = open_run(config)
    for reports in deaths:
        with pytest.raises(Interrupted):
            run_experiment(config, DyingRuntime(run.path, after=reports, epochs_only=False))
    report = run_experiment(config)
    assert report.folder == run.path
    assert without_times(report.history) == without_times(whole.history)
    one, other = (load_checkpoint(each.folder / "stage-6") for each in (report, whole))
    for part in ("backbone", "method"):
        tensors, expected = getattr(one, part), getattr(other, part)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_without_rounds_the_baseline_is_the_result(tmp_path: Path) -> None:
    report = run_experiment(small_config(tmp_path, "method.rounds.count=0", "method.baseline.epochs=2"))
    assert [row["stage"] for row in report.history] == [1, 1]
    assert "feature/std" in report.history[-1]
    assert small_method(mgta_config(rounds={"count": 0})).compared_encoders() == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.clusters=1"], "must be at least 2, as one cluster tells nothing apart, got 1. "),
        (
            ["method.clusters={grid: [20]}"],
            "method.clusters.grid: must hold at least two numbers to choose from, got [20]. ",
        ),
        (["method.clusters={grid: [20, 8]}"], "method.clusters.grid: must ascend, got [20, 8]. Write [8, 20]"),
        (
            ["method.clusters={grid: [1, 8]}"],
            "must hold numbers of at least 2, as one cluster tells nothing apart, got [1, 8]",
        ),
        (["method.triplet.classes=9"], "must be at most 8, the clusters that there may be, got 9. "),
        (["method.triplet.margin=0"], "must be greater than 0, or soft, got 0.0"),
        (["cluster.workers=3"], "training.batch_size=32: must be a multiple of 3, cluster.workers, "),
        (["cluster.workers=3", "training.batch_size=30"], "method.triplet.classes=4: must be a multiple of 3, "),
        (["data.image_size=20"], "must be a multiple of 8, the total stride of a ResNet with the small stem, "),
        (
            ["backbone={name: revnet}"],
            "backbone.name: must be resnet, which the decoder of method mgta mirrors, got revnet",
        ),
        (["method.rounds.lambda=[0.1, -1]"], "method.rounds.lambda.1: must be at least 0, got -1"),
        (["method.rounds.lamda=[0, 1]"], "unknown key. Did you mean 'lambda'?"),
    ],
)
def test_a_recipe_that_can_not_be_trained_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        small_config(tmp_path, *overrides)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"clusters": 31},
            "method.clusters: must be at most 30, the pictures of a half, got 31. Lower it, or raise data.limit.",
        ),
        (
            {"clusters": {"grid": [5, 30]}},
            "method.clusters.grid: must hold numbers below 30, the pictures of a half, got 30. Leave it out, or raise "
            "data.limit.",
        ),
        (
            {"triplet": {"classes": 4, "instances": 8}},
            "method.triplet: a batch takes 4 clusters x 8 pictures = 32, but a half has only 30 pictures. Lower "
            "method.triplet.classes or method.triplet.instances, or raise data.limit.",
        ),
    ],
)
def test_too_few_pictures_are_refused_before_training(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        prepare(small_method(mgta_config(**fields)), 0, MemoryPictures(61), tmp_path)
    assert str(refusal.value) == message


def test_more_directions_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.whiten: must be at most 32, the width of the embeddings, got 33"):
        small_method(mgta_config(whiten=33))
    small_method(mgta_config(whiten=32))


def test_clusters_that_make_no_batch_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pictures but a few in one cluster: two clusters of two pictures can't be found."""

    def almost_collapsed(encoder: Backbone, pictures: Pictures, indices: np.ndarray, **_: object) -> Tensor:
        features = torch.zeros(len(indices), 4)
        features[:2] = torch.tensor([[9.0, 0, 0, 0], [0, 9.0, 0, 0]])
        return features

    monkeypatch.setattr(pseudo_labels, "extract_embeddings", almost_collapsed)
    method, pictures = small_method(mgta_config(clusters=3)), MemoryPictures()
    prepare(method, 0, pictures, tmp_path)
    with pytest.raises(TrainingError, match=r"round-1: the clusters of N1 can't be batched"):
        prepare(method, 1, pictures, tmp_path)


def test_networks_that_agree_and_clusters_that_hold_all_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both_see_the_same(encoder: Backbone, pictures: Pictures, indices: np.ndarray, **_: object) -> Tensor:
        return torch.from_numpy(np.where(indices % 5 == 0, indices % 4, 9))[:, None].float()

    monkeypatch.setattr(pseudo_labels, "extract_embeddings", both_see_the_same)
    method, pictures = small_method(mgta_config(clusters=5)), MemoryPictures()
    prepare(method, 0, pictures, tmp_path)
    told = prepare(method, 1, pictures, tmp_path).warnings
    assert any(text.startswith("round-1, N1: one cluster holds 73%") for text in told)
    assert not any("agree" in text for text in told)  # N1 is a copy of N2 there
    told = prepare(method, 2, pictures, tmp_path).warnings
    assert any(
        "round-1: collapse: the two networks agree on everything (NMI of their clusters 1.000)" in t for t in told
    )


def test_a_number_of_clusters_at_the_grids_edge_is_told(known: Callable[[MGTA], KnownFeatures], tmp_path: Path) -> None:
    method, pictures = small_method(mgta_config(clusters={"grid": [3, N1_GROUPS]})), MemoryPictures()
    known(method)
    prepare(method, 0, pictures, tmp_path)
    plan = prepare(method, 1, pictures, tmp_path)
    assert any("the best number, 5, is at the edge of the grid [3, 5]" in text for text in plan.warnings)
    assert plan.facts["n1/clusters/num"] == N1_GROUPS
    assert plan.facts["n1/clusters/ch_k5"] > plan.facts["n1/clusters/ch_k3"]


def test_a_stuck_triplet_loss_is_told_with_its_stage() -> None:
    method = small_method(mgta_config())
    (remark,) = method.remarks(2, {"triplet": 0.3, "active_triplets": 1.0})
    assert remark.startswith("round-1, N1: collapse: the triplet loss is stuck at 0.3000")
    assert method.remarks(2, {"triplet": 0.9, "active_triplets": 1.0}) == []
    assert method.remarks(0, {"reconstruction": 0.3}) == []
