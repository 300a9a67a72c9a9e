"""Losses against closed forms, slow double loops, and lightly's and pytorch-metric-learning's where those are there."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rayssl.losses import (
    active_triplet_share,
    batch_hard_triplet_loss,
    batch_hard_triplets,
    info_nce_logits,
    info_nce_loss,
    nt_xent_logits,
    nt_xent_loss,
    reconstruction_loss,
    triplet_loss,
)


def peer(module: str) -> Any:
    """Another library's module; the test is skipped where that is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(module)


def random_rows(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers that require a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def cosine(left: list[float], right: list[float]) -> float:
    """Of the angle between two vectors, in Python floats."""
    return sum(a * b for a, b in zip(left, right, strict=True)) / (math.hypot(*left) * math.hypot(*right))


def gradient(loss: Tensor, inputs: Tensor) -> Tensor:
    """Of a loss by one tensor."""
    return torch.autograd.grad(loss, inputs)[0]


# NT-Xent


def test_identical_embeddings_leave_a_uniform_choice() -> None:
    """All similarities are equal, so the loss is the log of the number of candidates."""
    views = torch.ones(8, 4)
    assert nt_xent_loss(views, views, temperature=0.5).item() == pytest.approx(math.log(15))


def test_orthogonal_pictures_have_a_closed_form() -> None:
    """The other view has similarity 1, the 2N - 2 candidates of other pictures 0: log(1 + (2N - 2) e^(-1 / t))."""
    views = 3 * torch.eye(5, 7)
    loss = nt_xent_loss(views, views, temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + 8 * math.exp(-1 / 0.5)), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_a_sum_over_one_pair_at_a_time(temperature: float) -> None:
    view_a, view_b = random_rows(6, 5, seed=0), random_rows(6, 5, seed=1)
    rows = [*view_a.tolist(), *view_b.tolist()]
    total = 0.0
    for i in range(12):
        weights = {k: math.exp(cosine(rows[i], rows[k]) / temperature) for k in range(12) if k != i}
        total -= math.log(weights[(i + 6) % 12] / sum(weights.values()))
    assert nt_xent_loss(view_a, view_b, temperature=temperature).item() == pytest.approx(total / 12, rel=1e-5)


def test_nt_xent_and_its_gradient_are_lightlys() -> None:
    view_a, view_b = random_rows(32, 16, seed=0), random_rows(32, 16, seed=1)
    ours = nt_xent_loss(view_a, view_b, temperature=0.2)
    theirs = peer("lightly.loss.ntx_ent_loss").NTXentLoss(temperature=0.2)(view_a, view_b)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, view_a), gradient(theirs, view_a))


def test_nt_xent_does_not_mind_length_order_or_which_view_is_first() -> None:
    view_a, view_b = random_rows(16, 4, seed=0), random_rows(16, 4, seed=1)
    loss = nt_xent_loss(view_a, view_b, temperature=0.5)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    for left, right in [(view_a * 7, view_b / 9), (view_a[order], view_b[order]), (view_b, view_a)]:
        torch.testing.assert_close(nt_xent_loss(left, right, temperature=0.5), loss)


def test_nt_xent_targets_name_the_other_view_and_nothing_is_its_own_candidate() -> None:
    """Views that differ by little are found again, whatever the order of the pictures."""
    view_a = random_rows(9, 6, seed=0)
    logits, targets = nt_xent_logits(view_a, view_a + 0.01 * random_rows(9, 6, seed=1), temperature=0.1)
    assert targets.tolist() == [*range(9, 18), *range(9)]
    assert logits.diagonal().eq(-math.inf).all()
    assert logits.argmax(1).equal(targets)


# InfoNCE


def test_keys_that_are_all_alike_leave_a_uniform_choice() -> None:
    key = functional.normalize(torch.ones(1, 4), dim=1)
    loss = info_nce_loss(random_rows(3, 4, seed=0), key.expand(3, 4), key.expand(31, 4), temperature=0.2)
    assert loss.item() == pytest.approx(math.log(32))


def test_info_nce_equals_a_sum_over_one_pair_at_a_time() -> None:
    query, key = random_rows(5, 4, seed=0), random_rows(5, 4, seed=1)
    queue = functional.normalize(random_rows(8, 4, seed=2), dim=1)
    total = 0.0
    for query_row, key_row in zip(query.tolist(), key.tolist(), strict=True):
        right = math.exp(cosine(query_row, key_row) / 0.2)
        wrong = sum(math.exp(cosine(query_row, old) / 0.2) for old in queue.tolist())
        total -= math.log(right / (right + wrong))
    assert info_nce_loss(query, key, queue, temperature=0.2).item() == pytest.approx(total / 5, rel=1e-5)


def test_info_nce_and_its_gradient_are_lightlys_with_a_memory_bank() -> None:
    query, key = random_rows(16, 8, seed=0), random_rows(16, 8, seed=1).detach()
    queue = functional.normalize(random_rows(64, 8, seed=2), dim=1).detach()
    reference = peer("lightly.loss.ntx_ent_loss").NTXentLoss(temperature=0.2, memory_bank_size=(64, 8))
    reference.memory_bank.bank = queue.clone()
    ours, theirs = info_nce_loss(query, key, queue, temperature=0.2), reference(query, key)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, query), gradient(theirs, query))


def test_info_nce_trains_the_query_alone() -> None:
    query, key, queue = (random_rows(6, 4, seed=seed) for seed in range(3))
    info_nce_loss(query, key, queue, temperature=0.2).backward()
    assert query.grad is not None
    assert key.grad is None
    assert queue.grad is None


def test_the_queue_may_move_on_before_the_backward_pass() -> None:
    """Its owner writes the new keys right after the loss; the gradient is that of the queue as it was."""
    query, key = random_rows(6, 4, seed=0), random_rows(6, 4, seed=1)
    queue = functional.normalize(random_rows(12, 4, seed=2), dim=1).detach()
    expected = gradient(info_nce_loss(query, key, queue.clone(), temperature=0.2), query)
    loss = info_nce_loss(query, key, queue, temperature=0.2)
    queue[:6] = 0
    assert gradient(loss, query).equal(expected)


def test_class_0_is_the_querys_own_key() -> None:
    key = random_rows(9, 6, seed=0)
    queue = functional.normalize(random_rows(20, 6, seed=1), dim=1)
    logits = info_nce_logits(key + 0.01, key, queue, temperature=0.07)
    assert logits.shape == (9, 21)
    assert logits.argmax(1).eq(0).all()
    torch.testing.assert_close(logits[:, 0], functional.cosine_similarity(key + 0.01, key) / 0.07)


# Batch-hard triplets


def slow_triplets(embeddings: Tensor, labels: list[int], image_ids: list[int]) -> list[tuple[float, float]]:
    """Hardest positive and negative distance of each anchor that has both, one pair at a time."""
    rows, triplets = embeddings.tolist(), []
    for a, anchor in enumerate(rows):
        positives, negatives = [], []
        for b, other in enumerate(rows):
            if labels[a] != labels[b]:
                negatives.append(math.dist(anchor, other))
            elif image_ids[a] != image_ids[b]:
                positives.append(math.dist(anchor, other))
        if positives and negatives:
            triplets.append((max(positives), min(negatives)))
    return triplets


FOUR_POINTS = torch.tensor([[0.0], [3.0], [4.0], [10.0]])
"""In pairs: positives at 3, 3, 6, 6; negatives at 4, 1, 1, 7."""
PAIRS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("margin", "loss", "share"),
    [
        (0.0, (0 + 2 + 5 + 0) / 4, 0.5),
        (0.3, (0 + 2.3 + 5.3 + 0) / 4, 0.5),
        (2.0, (1 + 4 + 7 + 1) / 4, 1.0),
        ("soft", sum(math.log1p(math.exp(violation)) for violation in (-1, 2, 5, -1)) / 4, 0.5),
    ],
)
def test_four_points_on_a_line_by_hand(margin: Any, loss: float, share: float) -> None:
    distances = batch_hard_triplets(FOUR_POINTS, PAIRS)
    assert [d.tolist() for d in distances] == [[3, 3, 6, 6], [4, 1, 1, 7], 4 * [True]]
    assert batch_hard_triplet_loss(FOUR_POINTS, PAIRS, margin=margin).item() == pytest.approx(loss)
    assert triplet_loss(*distances, margin=margin).item() == pytest.approx(loss)
    assert triplet_loss(*distances, margin=margin, reduction="sum").item() == pytest.approx(4 * loss)
    assert active_triplet_share(*distances, margin=margin).item() == share


def test_a_triplet_exactly_at_its_margin_is_not_active() -> None:
    """It has no gradient: of the violations 0, 3, 6 and 0 at margin 1 two count."""
    assert active_triplet_share(*batch_hard_triplets(FOUR_POINTS, PAIRS), margin=1.0).item() == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_triplets_equal_a_search_of_one_pair_at_a_time(seed: int) -> None:
    """Clusters of uneven size, some with a single row, and several rows of the same picture."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = random_rows(24, 3, seed=seed)
    image_ids = torch.randint(16, (24,), generator=generator)
    labels = torch.randint(9, (16,), generator=generator)[image_ids]
    slow = slow_triplets(embeddings, labels.tolist(), image_ids.tolist())
    positives, negatives, exist = batch_hard_triplets(embeddings, labels, image_ids=image_ids)
    assert 0 < len(slow) < 24
    torch.testing.assert_close(torch.stack([positives, negatives], dim=1)[exist], torch.tensor(slow))
    violations = [positive - negative + 0.3 for positive, negative in slow]
    mean = batch_hard_triplet_loss(embeddings, labels, margin=0.3, image_ids=image_ids)
    assert mean.item() == pytest.approx(sum(max(0, each) for each in violations) / len(slow))
    share = active_triplet_share(positives, negatives, exist, margin=0.3).item()
    assert share == pytest.approx(sum(each > 0 for each in violations) / len(slow))


@pytest.mark.parametrize("margin", [0.3, "soft"])
def test_an_anchor_without_a_triplet_changes_neither_loss_nor_gradient(margin: Any) -> None:
    """A row that is alone in its cluster, and so far away that it is nobody's negative."""
    embeddings, labels = random_rows(8, 3, seed=0), torch.arange(4).repeat(2)
    alone = torch.cat([embeddings, torch.full((1, 3), 1e6)])
    without = batch_hard_triplet_loss(embeddings, labels, margin=margin)
    loss = batch_hard_triplet_loss(alone, torch.cat([labels, torch.tensor([4])]), margin=margin)
    torch.testing.assert_close(loss, without)
    torch.testing.assert_close(gradient(loss, embeddings), gradient(without, embeddings))


def test_the_same_picture_is_no_positive_of_itself() -> None:
    """The row farthest from the first one is another view of its picture; the next farthest counts."""
    embeddings = torch.tensor([[0.0], [9.0], [2.0], [50.0]])
    labels = torch.tensor([0, 0, 0, 1])
    positive, _, exist = batch_hard_triplets(embeddings, labels)
    assert positive[exist].tolist() == [9, 9, 7]
    positive, _, exist = batch_hard_triplets(embeddings, labels, image_ids=torch.tensor([5, 5, 6, 7]))
    assert positive[exist].tolist() == [2, 7, 7]


@pytest.mark.parametrize("margin", [0.3, 2.0, "soft"])
def test_triplet_loss_and_its_gradient_are_those_of_pytorch_metric_learning(margin: Any) -> None:
    """Once its distances are not normalised, and its mean counts the inactive triplets too."""
    losses, miners, distances, reducers = (
        peer(f"pytorch_metric_learning.{part}") for part in ("losses", "miners", "distances", "reducers")
    )
    embeddings = random_rows(32, 8, seed=0, dtype=torch.float64)
    labels = torch.arange(8).repeat(4)
    euclidean = distances.LpDistance(normalize_embeddings=False)
    reference = losses.TripletMarginLoss(
        margin=0 if margin == "soft" else margin,
        smooth_loss=margin == "soft",
        distance=euclidean,
        reducer=reducers.MeanReducer(),
    )
    ours = batch_hard_triplet_loss(embeddings, labels, margin=margin)
    theirs = reference(embeddings, labels, miners.BatchHardMiner(distance=euclidean)(embeddings, labels))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, embeddings), gradient(theirs, embeddings))


@pytest.mark.parametrize(("margin", "loss"), [(0.3, 0.3), ("soft", math.log(2))])
def test_collapse_shows_as_a_loss_stuck_at_its_margin_with_a_finite_gradient(margin: Any, loss: float) -> None:
    embeddings = torch.ones(4, 3, requires_grad=True)
    value = batch_hard_triplet_loss(embeddings, PAIRS, margin=margin)
    assert value.item() == pytest.approx(loss)
    assert gradient(value, embeddings).isfinite().all()


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]], ids=["no negatives", "no positives"])
@pytest.mark.parametrize("margin", [0.3, "soft"])
def test_without_triplets_the_loss_is_zero_and_moves_nothing(labels: list[int], margin: Any) -> None:
    embeddings = random_rows(4, 3, seed=0)
    triplets = batch_hard_triplets(embeddings, torch.tensor(labels))
    assert not triplets[2].any()
    assert active_triplet_share(*triplets, margin=margin).item() == 0
    loss = batch_hard_triplet_loss(embeddings, torch.tensor(labels), margin=margin)
    assert loss.item() == 0
    assert gradient(loss, embeddings).eq(0).all()


def test_triplets_have_the_same_gradient_each_time_with_two_threads() -> None:
    """Rows that are the hardest of many: what they get must be added up in one order, or no run could be repeated."""
    embeddings, labels = random_rows(256, 512, seed=0), torch.arange(64).repeat_interleave(4)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = [
            gradient(batch_hard_triplet_loss(embeddings, labels, margin="soft"), embeddings) for _ in range(10)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, gradients[0]) for each in gradients)


def test_close_points_far_from_zero_keep_their_distances() -> None:
    """Features after a ReLU have a large mean, where |a|^2 + |b|^2 - 2ab would give noise."""
    offsets = random_rows(16, 64, seed=0).detach() * 0.01
    labels = torch.arange(4).repeat(4)
    shifted = (offsets + 64).double() - 64  # rounded as float32 rounds them there
    near = torch.stack(batch_hard_triplets(shifted, labels)[:2]).float()
    torch.testing.assert_close(torch.stack(batch_hard_triplets(offsets + 64, labels)[:2]), near)


def test_an_embedding_that_is_not_a_number_is_not_hidden() -> None:
    embeddings = FOUR_POINTS.clone()
    embeddings[2] = math.nan
    assert batch_hard_triplet_loss(embeddings, PAIRS, margin=0.3).isnan()


# Reconstruction


def test_reconstruction_by_hand() -> None:
    """Two images of 2 x 3 x 3 x 4 = 72 elements, off by 2 everywhere, in one pixel by 5."""
    target = random_rows(2, 3, 3, 4, seed=0).detach()
    output = target + 2
    output[1, 2, 0, 3] += 3
    assert reconstruction_loss(output, target).item() == pytest.approx((71 * 4 + 25) / 72, rel=1e-6)
    assert reconstruction_loss(output, target, reduction="sum").item() == pytest.approx(71 * 4 + 25, rel=1e-6)


def test_the_literal_sum_is_the_mean_times_150528_for_one_image_of_224_pixels() -> None:
    output, target = torch.zeros(1, 3, 224, 224), torch.full((1, 3, 224, 224), 0.5)
    ratio = reconstruction_loss(output, target, reduction="sum") / reconstruction_loss(output, target)
    assert ratio.item() == 150_528


# All of them


def as_nt_xent(rows: Tensor) -> Tensor:
    """A loss of one matrix of 8 rows, as the ones below."""
    return nt_xent_loss(rows[:4], rows[4:], temperature=0.1)


def as_info_nce(rows: Tensor) -> Tensor:
    """Queries first, then keys and queue."""
    return info_nce_loss(rows[:2], rows[2:4], functional.normalize(rows[4:], dim=1), temperature=0.2)


def as_triplet(rows: Tensor) -> Tensor:
    """Half of the rows in each cluster."""
    return batch_hard_triplet_loss(rows, torch.arange(8) % 2, margin="soft")


def as_reconstruction(rows: Tensor) -> Tensor:
    """Against the other half."""
    return reconstruction_loss(rows[:4], rows[4:].detach() * 2)


LOSSES: list[Callable[[Tensor], Tensor]] = [as_nt_xent, as_info_nce, as_triplet, as_reconstruction]


@pytest.mark.parametrize(("loss", "moving"), [*zip(LOSSES, [8, 2, 8, 4], strict=True)])
def test_gradients_are_those_of_finite_differences(loss: Callable[[Tensor], Tensor], moving: int) -> None:
    """By the rows that have one: all, the queries alone in InfoNCE, the auto-encoder's output."""
    rows = random_rows(8, 3, seed=3, dtype=torch.float64).detach()
    start = rows[:moving].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda part: loss(torch.cat([part, rows[moving:]])), [start])


@pytest.mark.parametrize("loss", LOSSES)
def test_identical_rows_have_a_finite_gradient(loss: Callable[[Tensor], Tensor]) -> None:
    rows = torch.ones(8, 3, requires_grad=True)
    assert gradient(loss(rows), rows).isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_changes_nothing(loss: Callable[[Tensor], Tensor]) -> None:
    rows = random_rows(8, 64, seed=0)
    expected = loss(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(rows)
    assert value.dtype == torch.float32
    assert value.equal(expected)
    assert gradient(value, rows).equal(gradient(expected, rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [as_nt_xent, as_triplet, as_reconstruction])
def test_half_precision_rows_give_the_loss_of_their_float32_copies(
    loss: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    rows = random_rows(8, 64, seed=0).detach().to(dtype)
    assert loss(rows).equal(loss(rows.float()))


def test_half_precision_queries_meet_a_float32_queue() -> None:
    query, key = (random_rows(4, 16, seed=seed).detach().bfloat16() for seed in (0, 1))
    queue = functional.normalize(random_rows(9, 16, seed=2), dim=1)
    expected = info_nce_loss(query.float(), key.float(), queue, temperature=0.2)
    assert info_nce_loss(query, key, queue, temperature=0.2).equal(expected)


def test_squares_that_overflow_half_precision_do_no_harm() -> None:
    """300 squared is more than float16 holds."""
    assert reconstruction_loss(torch.full((2, 2), 300.0).half(), torch.zeros(2, 2).half()).item() == 90_000
    distances = batch_hard_triplets((100 * FOUR_POINTS).half(), PAIRS)
    assert [d.tolist() for d in distances[:2]] == [[300, 300, 600, 600], [400, 100, 100, 700]]


def test_a_small_temperature_stays_finite() -> None:
    """Logits of 1000 would overflow exp; the same in float64 is the reference."""
    rows = random_rows(8, 3, seed=0, dtype=torch.float64).detach()
    exact = nt_xent_loss(rows[:4], rows[4:], temperature=1e-3)
    small = rows.float().requires_grad_()
    loss = nt_xent_loss(small[:4], small[4:], temperature=1e-3)
    torch.testing.assert_close(loss, exact.float())
    assert gradient(loss, small).isfinite().all()


EIGHT = torch.ones(8, 4)
ALL = torch.ones(4, dtype=torch.bool)
UNKNOWN: Any = "median"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nt_xent_loss(EIGHT, EIGHT[:7], temperature=1), r"view_b: must have the shape \(8, 4\).* got \(7, 4\)"),
        (lambda: nt_xent_loss(EIGHT[:0], EIGHT[:0], temperature=1), r"view_a: .*at least one row.* got shape \(0, 4\)"),
        (lambda: nt_xent_loss(EIGHT[0], EIGHT[0], temperature=1), r"view_a: must be a matrix"),
        (lambda: nt_xent_loss(EIGHT, EIGHT, temperature=0), "temperature: must be above 0, got 0"),
        (lambda: nt_xent_loss(EIGHT, EIGHT, temperature=math.nan), "temperature: must be above 0, got nan"),
        (lambda: info_nce_loss(EIGHT, EIGHT[:1], EIGHT, temperature=1), r"key: must have the shape \(8, 4\)"),
        (lambda: info_nce_loss(EIGHT, EIGHT, EIGHT[:, :3], temperature=1), r"queue: .* \(8, 4\).* got \(8, 3\)"),
        (lambda: info_nce_loss(EIGHT, EIGHT, EIGHT[:0], temperature=1), "queue: must be a matrix"),
        (lambda: info_nce_loss(EIGHT, EIGHT, EIGHT, temperature=-1), "temperature: must be above 0, got -1"),
        (lambda: batch_hard_triplets(EIGHT, PAIRS), r"labels: must have the shape \(8,\).* got \(4,\)"),
        (lambda: batch_hard_triplets(EIGHT[:4], PAIRS, image_ids=PAIRS[:1]), r"image_ids: .* got \(1,\)"),
        (lambda: batch_hard_triplets(EIGHT[0], PAIRS), "embeddings: must be a matrix"),
        (lambda: batch_hard_triplet_loss(EIGHT[:4], PAIRS, margin=-0.1), "margin: .* at least 0 or 'soft', got -0.1"),
        (lambda: batch_hard_triplet_loss(EIGHT[:4], PAIRS, margin=math.inf), "margin: .* got inf"),
        (lambda: batch_hard_triplet_loss(EIGHT[:4], PAIRS, margin=UNKNOWN), "margin: .* got 'median'"),
        (lambda: triplet_loss(EIGHT[0], EIGHT[0, :3], ALL, margin=0.3), r"negative_distances: .* got \(3,\)"),
        (lambda: triplet_loss(EIGHT[0], EIGHT[0], ALL[:3], margin=0.3), r"exist: .* got \(3,\)"),
        (
            lambda: triplet_loss(EIGHT, EIGHT, ALL, margin=0.3),
            r"positive_distances: must be a vector, got .*\(8, 4\)",
        ),
        (lambda: triplet_loss(EIGHT[0], EIGHT[0], ALL, margin=0.3, reduction=UNKNOWN), "reduction: .* got 'median'"),
        (lambda: reconstruction_loss(EIGHT, EIGHT[:1]), r"reconstruction: must have the shape \(1, 4\).* got \(8, 4\)"),
        (lambda: reconstruction_loss(EIGHT[:0], EIGHT[:0]), "target: must hold at least one image"),
        (lambda: reconstruction_loss(EIGHT, EIGHT, reduction=UNKNOWN), "reduction: .* got 'median'"),
    ],
)
def test_wrong_shapes_and_values_are_refused_by_name(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
