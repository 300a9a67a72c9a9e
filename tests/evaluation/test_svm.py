import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC
from torch import Tensor

from rayssl.evaluation import svm_kernel
from rayssl.evaluation.svm import (
    COSTS,
    average_precision,
    cross_validated_costs,
    evaluate_low_shot,
    evaluate_svm,
    fit_svms,
    l2_normalize,
    low_shot_samples,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rectified_features(num_rows: int, num_features: int, *, seed: int) -> Tensor:
    """Normalised outputs of a ReLU that all point about the same way; the first directions count most."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(24, num_features, generator=torch.Generator().manual_seed(99))
    latent = torch.randn(num_rows, 24, generator=generator) * torch.arange(1, 25) ** -0.5
    noise = torch.randn(num_rows, num_features, generator=generator)
    return l2_normalize((latent @ mixing + noise + 1).clamp_min(0))


def noisy_classes(features: Tensor, num_classes: int, *, share: float, seed: int) -> Tensor:
    """Targets that a plane tells most of the time; (N, num_classes) of 1 and -1."""
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(features.shape[1], num_classes, generator=torch.Generator().manual_seed(98))
    scores = features @ normals
    scores = scores / scores.std(0) + 0.7 * torch.randn(scores.shape, generator=generator)
    return torch.where(scores > scores.quantile(1 - share, dim=0), 1, -1)


def digits(num_rows: int) -> tuple[Tensor, Tensor]:
    pictures, labels = load_digits(return_X_y=True)
    features = l2_normalize(torch.from_numpy(pictures[:num_rows]).float())
    return features, 2 * torch.eye(10, dtype=torch.int64)[labels[:num_rows]] - 1


def reference(features: Tensor, targets: Tensor, cost: float, *, tolerance: float = 1e-8) -> LinearSVC:
    """Scikit-learn's SVM of one class on the rows that are not ignored; with a tight tolerance it is exact."""
    rows = targets != 0
    svm = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, tol=tolerance, max_iter=200_000, random_state=0)
    return svm.fit(features[rows].double().numpy(), targets[rows].numpy())


@pytest.mark.parametrize("num_features", [400, 20], ids=["more features than rows", "fewer"])
def test_hyperplanes_equal_those_of_linear_svc(num_features: int) -> None:
    features = rectified_features(150, num_features, seed=0).double()
    targets = noisy_classes(features.float(), 2, share=0.2, seed=1)
    costs = (1e-5, 0.01, 1.0, 30.0)
    svms = fit_svms(features, targets, costs, tolerance=1e-9)
    for number in range(2):
        for place, cost in enumerate(costs):
            expected = reference(features, targets[:, number], cost)
            scale = np.abs(expected.coef_).max()
            np.testing.assert_allclose(svms.weights[number, place], expected.coef_[0], rtol=0, atol=1e-5 * scale)
            assert svms.biases[number, place].item() == pytest.approx(
                expected.intercept_[0], rel=1e-4, abs=1e-5 * scale
            )


def test_the_objective_is_stationary_at_the_solution() -> None:
    """Autograd through the textbook objective, in the original space."""
    features = rectified_features(120, 60, seed=0).double()
    targets = noisy_classes(features.float(), 1, share=0.3, seed=1)
    for cost in (0.003, 0.3, 30.0):
        svms = fit_svms(features, targets, [cost], tolerance=1e-11)
        plane = torch.cat([svms.weights[0, 0], svms.biases[0]]).requires_grad_()
        slack = (1 - targets[:, 0] * (features @ plane[:-1] + plane[-1])).clamp_min(0)
        loss = plane.square().sum() / 2 + cost * (torch.where(targets[:, 0] > 0, 2, 1) * slack.square()).sum()
        (gradient,) = torch.autograd.grad(loss, plane)
        assert gradient.norm() < 1e-7 * plane.detach().norm()


def test_single_precision_ranks_rectified_features_like_linear_svc() -> None:
    features, test = rectified_features(300, 600, seed=0), rectified_features(400, 600, seed=1)
    targets, test_targets = (noisy_classes(rows, 3, share=0.1, seed=2) for rows in (features, test))
    costs = (1e-7, 1e-3, 0.0625, 1.0, 100.0)
    values = fit_svms(features, targets, costs).decision_values(test)
    for number in range(3):
        for place, cost in enumerate(costs):
            expected = reference(features, targets[:, number], cost, tolerance=1e-6).decision_function(test.double())
            assert average_precision(values[:, number, place], test_targets[:, number]) == pytest.approx(
                average_precision(expected, test_targets[:, number]), abs=1e-4
            )
            spread = values[:, number, place].std().item()
            np.testing.assert_allclose(values[:, number, place], expected, rtol=0, atol=1e-3 * spread)


def test_digits_are_ranked_like_by_linear_svc_with_its_own_tolerance() -> None:
    features, targets = digits(1200)
    costs = (1e-4, 0.01, 1.0)
    values = fit_svms(features[:600], targets[:600], costs).decision_values(features[600:])
    for number in range(10):
        for place, cost in enumerate(costs):
            svm = reference(features[:600], targets[:600, number], cost, tolerance=1e-4)
            expected = average_precision(svm.decision_function(features[600:].double()), targets[600:, number])
            found = average_precision(values[:, number, place], targets[600:, number])
            assert found == pytest.approx(expected, abs=1e-4)


def test_ignored_rows_have_no_influence() -> None:
    """Whatever stands in them: the hyperplanes are those without the rows, for each class its own."""
    features = rectified_features(160, 300, seed=0)
    targets = noisy_classes(features, 2, share=0.25, seed=1)
    targets[100:130, 0] = 0
    targets[130:, 1] = 0
    svms = fit_svms(features, targets, [0.01, 1.0], tolerance=1e-7)
    for number in range(2):
        rows = targets[:, number] != 0
        alone = fit_svms(features[rows], targets[rows, number : number + 1], [0.01, 1.0], tolerance=1e-7)
        torch.testing.assert_close(svms.weights[number], alone.weights[0], rtol=0, atol=2e-6)
        torch.testing.assert_close(svms.biases[number], alone.biases[0], rtol=0, atol=2e-6)


def test_each_class_may_have_costs_of_its_own() -> None:
    features = rectified_features(120, 200, seed=0)
    targets = noisy_classes(features, 2, share=0.25, seed=1)
    own = fit_svms(features, targets, torch.tensor([[0.01], [1.0]])).weights[:, 0]
    both = fit_svms(features, targets, [0.01, 1.0]).weights
    torch.testing.assert_close(own, torch.stack([both[0, 0], both[1, 1]]), rtol=0, atol=1e-5)


def test_chunks_do_not_change_the_inner_products(monkeypatch: pytest.MonkeyPatch) -> None:
    features, others = rectified_features(50, 70, seed=0), rectified_features(30, 70, seed=1)
    monkeypatch.setattr(svm_kernel, "_ROWS_A_CHUNK", 16)
    monkeypatch.setattr(svm_kernel, "_FEATURES_A_CHUNK", 32)
    identity = torch.eye(50, dtype=torch.float64)
    for rows, products in (
        (features, svm_kernel.inner_products(features)),
        (others, svm_kernel.inner_products(features, others)),
    ):
        expected = rows.double() @ features.double().T + 1
        torch.testing.assert_close(products.exact_times(identity), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(products.times(identity.float()), expected.float(), rtol=0, atol=1e-5)


def test_half_precision_features_are_accepted() -> None:
    features = rectified_features(100, 150, seed=0)
    targets = noisy_classes(features, 1, share=0.3, seed=1)
    rounded = features.half()
    half = fit_svms(rounded, targets, [0.1]).decision_values(rounded)
    torch.testing.assert_close(half, fit_svms(rounded.float(), targets, [0.1]).decision_values(rounded.float()))
    assert l2_normalize(rounded * 50).dtype == torch.float16


def test_an_unsolved_problem_warns() -> None:
    features = rectified_features(100, 150, seed=0)
    targets = noisy_classes(features, 1, share=0.3, seed=1)
    with pytest.warns(RuntimeWarning, match="not solved to"):
        fit_svms(features, targets, [1.0], tolerance=1e-30)


def test_the_costs_are_the_references_26() -> None:
    assert len(COSTS) == len(set(COSTS)) == 26
    assert list(COSTS) == sorted(COSTS)
    assert {1e-7, 1e-4, 1.0, 100.0, 0.0625, 0.5**19} <= set(COSTS)
    assert (COSTS[0], COSTS[-1]) == (1e-7, 100.0)


def test_normalised_rows_have_length_one_up_to_the_epsilon() -> None:
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    expected = torch.tensor([[3.0, 4.0], [0.0, 0.0]]) / (5 + 1e-5)
    torch.testing.assert_close(l2_normalize(features), expected)
    in_place = l2_normalize(features, out=features)
    assert in_place.data_ptr() == features.data_ptr()
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("seed", [None, 3])
def test_cross_validation_equals_scikit_learns(seed: int | None) -> None:
    """The same folds, the same SVMs, the same (not interpolated) average precision."""
    features = rectified_features(200, 150, seed=0)
    targets = noisy_classes(features, 2, share=0.2, seed=1)
    costs = (1e-3, 0.03, 1.0)
    found = cross_validated_costs(features, targets, costs, seed=seed)
    assert found.table.shape == (2, 3, 3)
    folds = StratifiedKFold(3, shuffle=seed is not None, random_state=seed)
    for number in range(2):
        for place, cost in enumerate(costs):
            svm = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, tol=1e-7, max_iter=50_000, random_state=0)
            expected = cross_val_score(
                svm, features.double().numpy(), targets[:, number].numpy(), cv=folds, scoring="average_precision"
            )
            np.testing.assert_allclose(found.table[number, :, place], expected, atol=1e-4)
        best = found.table[number].mean(0).argmax()
        assert found.costs[number] == costs[best]


def test_rows_that_a_class_ignores_are_in_none_of_its_folds() -> None:
    features = rectified_features(150, 100, seed=0)
    targets = noisy_classes(features, 2, share=0.3, seed=1)
    targets[100:, 1] = 0
    whole = cross_validated_costs(features, targets, [0.01, 1.0])
    alone = cross_validated_costs(features[:100], targets[:100, 1:], [0.01, 1.0])
    torch.testing.assert_close(whole.table[1], alone.table[0], rtol=0, atol=1e-6)


def test_of_equally_good_costs_the_lowest_is_taken() -> None:
    features = torch.eye(2).repeat(30, 1)
    targets = torch.tensor([[1], [-1]]).repeat(30, 1)
    assert cross_validated_costs(features, targets, [0.1, 1.0]).costs.tolist() == [0.1]


def test_the_evaluation_equals_its_parts_done_by_scikit_learn() -> None:
    features, test = rectified_features(200, 150, seed=0), rectified_features(200, 150, seed=5)
    targets, test_targets = (noisy_classes(rows, 2, share=0.2, seed=2) for rows in (features, test))
    test_targets[:50, 1] = 0
    costs = (0.01, 1.0)
    result = evaluate_svm(features, targets, test, test_targets, costs=costs)
    for number in range(2):
        counted = test_targets[:, number] != 0
        svm = reference(features, targets[:, number], result.cross_validation.costs[number].item())
        expected = average_precision(svm.decision_function(test[counted].double()), test_targets[counted, number])
        assert result.average_precision[number].item() == pytest.approx(expected, abs=1e-4)
    assert result.mean == pytest.approx(result.average_precision.mean().item())


def test_a_class_without_test_positives_is_left_out_of_the_mean() -> None:
    features = rectified_features(120, 80, seed=0)
    targets = noisy_classes(features, 2, share=0.3, seed=1)
    test_targets = targets.clone()
    test_targets[:, 1] = -1
    result = evaluate_svm(features, targets, features, test_targets, costs=[0.1])
    assert math.isnan(result.average_precision[1])
    assert result.mean == result.average_precision[0]


def test_the_same_seed_gives_the_same_numbers_bit_for_bit() -> None:
    features = rectified_features(150, 100, seed=0)
    targets = noisy_classes(features, 2, share=0.25, seed=1)
    runs = [evaluate_svm(features, targets, features, targets, costs=(0.01, 1.0), seed=4) for _ in range(2)]
    assert torch.equal(runs[0].average_precision, runs[1].average_precision)
    assert torch.equal(runs[0].cross_validation.table, runs[1].cross_validation.table)
    other = evaluate_svm(features, targets, features, targets, costs=(0.01, 1.0), seed=5)
    assert not torch.equal(runs[0].cross_validation.table, other.cross_validation.table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_are_left_as_they_were(dtype: torch.dtype) -> None:
    features = rectified_features(100, 60, seed=0).to(dtype)
    targets = noisy_classes(features.float(), 1, share=0.3, seed=1)
    before, targets_before = features.clone(), targets.clone()
    evaluate_svm(features, targets, features, targets, costs=[0.1])
    evaluate_low_shot(features, targets, features, targets, num_positives=[1], num_samples=1, costs=[0.1])
    assert torch.equal(features, before)
    assert torch.equal(targets, targets_before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.full((60, 1), 2)}, "targets: must be 1"),
        ({"targets": torch.ones(60, 1, dtype=torch.int64)}, "at least 3 negatives, class 0 has 0"),
        ({"targets": torch.ones(50, 1, dtype=torch.int64)}, "features and targets"),
        ({"features": torch.full((60, 5), math.nan)}, "features: must be finite"),
        ({"costs": [1.0, 0.0]}, "costs: must be numbers above 0"),
        ({"costs": []}, "costs: must be numbers above 0"),
        ({"num_folds": 1}, "num_folds: must be at least 2"),
        ({"positive_weight": 0.0}, "positive_weight: must be"),
    ],
)
def test_impossible_arguments_are_refused(change: dict, message: str) -> None:
    arguments = {"features": torch.rand(60, 5), "targets": torch.tensor([[1], [-1]]).repeat(30, 1), "costs": [0.1]}
    with pytest.raises(ValueError, match=message):
        cross_validated_costs(**(arguments | change))


def test_test_rows_that_do_not_fit_the_training_rows_are_refused() -> None:
    features, targets = torch.rand(60, 5), torch.tensor([[1, 1], [-1, -1]]).repeat(30, 1)
    for evaluate in (evaluate_svm, evaluate_low_shot):
        with pytest.raises(ValueError, match=r"got \(5, 2\) and \(5, 1\)"):
            evaluate(features, targets, features, targets[:, :1])
        with pytest.raises(ValueError, match=r"got \(5, 2\) and \(4, 2\)"):
            evaluate(features, targets, features[:, :4], targets)


def test_low_shot_samples_have_k_positives_and_19_k_negatives_of_every_class() -> None:
    targets = torch.where(torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) < 0.2, 1, -1)
    targets[:50, 2] = 0
    for k in (1, 5):
        drawn = low_shot_samples(targets, k, sample=0, seed=0)
        assert (drawn == 1).sum(0).tolist() == [k] * 3
        assert (drawn == -1).sum(0).tolist() == [19 * k] * 3
        assert ((drawn == 0) | (drawn == targets)).all()


def test_low_shot_samples_depend_on_seed_number_and_class_alone() -> None:
    targets = torch.tensor([[1, 1], [-1, -1]]).repeat(100, 1)
    drawn = low_shot_samples(targets, 3, sample=0, seed=0)
    assert torch.equal(drawn, low_shot_samples(targets, 3, sample=0, seed=0))
    assert not torch.equal(drawn, low_shot_samples(targets, 3, sample=1, seed=0))
    assert not torch.equal(drawn, low_shot_samples(targets, 3, sample=0, seed=1))
    assert not torch.equal(drawn[:, 0], drawn[:, 1])


def test_low_shot_samples_that_a_class_cannot_give_are_refused() -> None:
    targets = torch.tensor([[1], [-1]]).repeat(100, 1)
    with pytest.raises(ValueError, match="6 needs 114 negatives of every class, class 0 has 100; leave 6 out"):
        low_shot_samples(targets, 6, sample=0, seed=0)
    with pytest.raises(ValueError, match="k: must be at least 1"):
        low_shot_samples(targets, 0, sample=0, seed=0)


def test_low_shot_equals_one_linear_svc_a_sample_class_and_cost() -> None:
    features, test = rectified_features(400, 120, seed=0), rectified_features(300, 120, seed=5)
    targets, test_targets = (noisy_classes(rows, 3, share=0.2, seed=2) for rows in (features, test))
    test_targets[:60, 1] = 0
    costs = (1e-4, 0.05, 5.0)
    found = evaluate_low_shot(features, targets, test, test_targets, num_positives=(1, 4), num_samples=2, costs=costs)
    for k, result in found.items():
        table = np.zeros((2, 3))
        for sample in range(2):
            drawn = low_shot_samples(targets, k, sample=sample, seed=0)
            for place, cost in enumerate(costs):
                for number in range(3):
                    counted = test_targets[:, number] != 0
                    values = reference(features, drawn[:, number], cost).decision_function(test[counted].double())
                    table[sample, place] += average_precision(values, test_targets[counted, number]) / 3
        np.testing.assert_allclose(result.table, table, atol=1e-4)
        best = table.mean(0).argmax()
        assert result.cost == costs[best]
        assert result.mean == pytest.approx(table[:, best].mean(), abs=1e-4)
        assert result.deviation == pytest.approx(table[:, best].std(), abs=1e-4)


def test_more_positives_help() -> None:
    features, targets = digits(900)
    found = evaluate_low_shot(
        features[:600], targets[:600], features[600:], targets[600:], num_positives=(1, 16), costs=(0.01, 1.0)
    )
    assert found[16].mean > found[1].mean + 0.1
    assert found[1].deviation > found[16].deviation


def test_random_features_reach_the_share_of_positives() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 20, generator=generator)
    targets = torch.where(torch.rand(300, 1, generator=generator) < 0.3, 1, -1)
    table = cross_validated_costs(features, targets, [0.01]).table
    assert table.mean().item() == pytest.approx((targets > 0).double().mean().item(), abs=0.1)


def test_large_costs_on_nearly_collinear_features_are_solved_without_a_warning() -> None:
    """A random network's features: the common direction holds nearly everything, and single precision is short."""
    generator = torch.Generator().manual_seed(0)
    features = l2_normalize(
        1 + 0.02 * torch.randn(400, 300, generator=generator) @ torch.diag(0.98 ** torch.arange(300))
    )
    targets = noisy_classes(features, 2, share=0.2, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_svms(features, targets, [1.0, 100.0])
