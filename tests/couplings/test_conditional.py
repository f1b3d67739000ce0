"""Conditional assignment: classes kept, the weight of continuous conditions checked by counting, and the leak."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor

from immiscible_diffusion.couplings import Assignment, Independent, assign, assign_index
from immiscible_diffusion.couplings.conditional import (
    Conditional,
    assign_conditional,
    condition_distance,
    condition_weight,
)
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


@pytest.mark.parametrize("cost", ["dot", "l2"])
def test_labels_pair_within_their_class(cost: Any) -> None:
    x, noise, labels = randn(60, 5), randn(60, 5, seed=1), torch.arange(60) % 7
    index = assign_conditional(x, noise, labels, cost=cost)
    assert torch.equal(index, assign_index(x, noise, cost=cost, labels=labels))
    assert torch.equal(labels[index], labels)
    assert not torch.equal(index, assign_index(x, noise, cost=cost))


def share_below(costs: Tensor, distance: Tensor, weight: float) -> float:
    """Return the share of pairs of different rows that cost the row less than its own noise, counted one by one."""
    total, b = costs.double() + weight * distance.double(), len(costs)
    below = sum(bool(total[i, j] < costs[i, i].double()) for i in range(b) for j in range(b) if i != j)
    return below / (b * (b - 1))


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.1, 0.3, 0.45])
@pytest.mark.parametrize("b", [2, 9, 40])
def test_the_weight_is_the_least_that_leaves_the_ratio(b: int, ratio: float) -> None:
    """float32 rounds the weight, so that it is nudged by 1e-6 of itself before pairs are counted in float64."""
    for seed in range(3):
        costs = randn(b, b, seed=seed)
        distance, _ = condition_distance(randn(b, 4, seed=seed + 10))
        weight = float(condition_weight(costs, distance, ratio))
        assert share_below(costs, distance, weight * (1 + 1e-6)) <= ratio
        if weight > 0:
            assert share_below(costs, distance, weight * (1 - 1e-6)) > ratio
        assert weight > 0 or share_below(costs, distance, 0) <= ratio


def test_no_weight_is_needed_where_enough_pairs_drop_out_and_none_suffices_where_too_many_are_equal() -> None:
    costs, distance = randn(20, 20), condition_distance(randn(20, 3))[0]
    assert float(condition_weight(costs, distance, 0.9)) == 0
    equal = condition_distance(torch.eye(2).repeat(10, 1))[0]
    assert float(condition_weight(costs, equal, 0.05)) == torch.inf
    assert float(condition_weight(costs, equal, 0.4)) < torch.inf


def test_distances_of_conditions_are_those_of_the_cosine() -> None:
    cond = torch.cat([3 * randn(12, 2, 5), torch.zeros(2, 2, 5), randn(1, 2, 5, seed=1).repeat(2, 1, 1)])
    distance, label = condition_distance(cond)
    flat = cond.double().flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    expected = 1 - cosine
    expected[12:14, 12:14] = 0
    torch.testing.assert_close(distance.double(), expected, rtol=0, atol=2e-6)
    same = (cond[:, None] == cond[None]).flatten(2).all(2)
    assert torch.equal(distance == 0, same)
    assert torch.equal(label[:, None] == label, same)


@pytest.mark.parametrize("cost", ["dot", "l2", "l1", "cosine"])
@pytest.mark.parametrize("ratio", [0.0, 0.02, 0.2, 1.0])
def test_the_pairing_is_the_optimum_of_the_weighted_cost(cost: Any, ratio: float) -> None:
    """The total of scipy's own solution in float64 is reached to float32's rounding."""
    x, noise, cond = randn(48, 6), randn(48, 6, seed=1), randn(48, 8, seed=2)
    index = assign_conditional(x, noise, cond, ratio=ratio, cost=cost)
    difference, product = x.double()[:, None] - noise.double(), x.double() @ noise.double().T
    table = {
        "dot": -product,
        "l2": difference.norm(dim=2),
        "l1": difference.abs().sum(2),
        "cosine": -product / x.double().norm(dim=1)[:, None] / noise.double().norm(dim=1),
    }[cost]
    distance = condition_distance(cond)[0].double()
    relative = (table - table.mean(0)).float()
    table += float(condition_weight(relative, distance.float(), ratio)) * distance
    rows, columns = linear_sum_assignment(table)
    total = float(table[torch.arange(48), index].sum())
    assert total == pytest.approx(float(table[rows, columns].sum()), abs=1e-3)
    assert len(set(index.tolist())) == 48
    assert (ratio < 1) != torch.equal(index, assign_index(x, noise, cost=cost))
    assert float(table[torch.arange(48), assign_index(x, noise, cost=cost)].sum()) > total - 1e-3


def test_equal_continuous_conditions_act_as_labels() -> None:
    x, noise, labels = randn(60, 5), randn(60, 5, seed=1), torch.arange(60) % 4
    cond = randn(4, 16, seed=2)[labels]
    assert torch.equal(assign_conditional(x, noise, cond), assign_conditional(x, noise, labels))
    assert torch.equal(assign_conditional(x, noise, -2 * torch.eye(4)[labels]), assign_conditional(x, noise, labels))


def test_a_larger_ratio_trades_likeness_of_conditions_for_nearness() -> None:
    x, noise, cond = randn(128, 8), randn(128, 8, seed=1), randn(128, 4, seed=2)
    distance, far, near = condition_distance(cond)[0], [], []
    for ratio in (0.001, 0.01, 0.05, 0.2, 1.0):
        index = assign_conditional(x, noise, cond, ratio=ratio)
        far.append(float(distance[torch.arange(128), index].mean()))
        near.append(float(torch.linalg.vecdot(x, noise[index]).mean()))
    assert far == sorted(far)
    assert near == sorted(near)
    assert far[0] < 0.1 * far[-1]
    assert near[0] < 0.5 * near[-1]


CLASSES, D, B, BATCHES = 10, 16, 200, 20


def correct(couple: Any, condition: Callable[[Tensor, int], Tensor | None]) -> float:
    """Return how often the class is the one whose mean noise, over other batches, is nearest to a noise."""
    means, noises, labels = 1.5 * randn(CLASSES, D, seed=5), [], []
    for i in range(BATCHES):
        label = torch.randint(CLASSES, (B,), generator=generator(i))
        x = means[label] + randn(B, D, seed=100 + i)
        noises.append(couple(x, cond=condition(label, i), generator=stream(0, i, "noise")))
        labels.append(label)
    seen, seen_label = torch.cat(noises[: BATCHES // 2]), torch.cat(labels[: BATCHES // 2])
    centres = torch.stack([seen[seen_label == label].mean(0) for label in range(CLASSES)])
    guess = torch.cdist(torch.cat(noises[BATCHES // 2 :]), centres).argmin(1)
    return float((guess == torch.cat(labels[BATCHES // 2 :])).float().mean())


def labels_alone(label: Tensor, i: int) -> Tensor:
    return label


def embeddings(label: Tensor, i: int) -> Tensor:
    """Return a vector near the class's own for each row, (b, 32), no two of them equal."""
    return randn(CLASSES, 32, seed=6)[label] + 0.3 * randn(len(label), 32, seed=200 + i)


CHANCE = [float(binom(B * BATCHES // 2, 1 / CLASSES).ppf(p)) / (B * BATCHES // 2) for p in (1e-4, 1 - 1e-4)]


@pytest.mark.parametrize("condition", [labels_alone, embeddings])
def test_the_class_cannot_be_told_from_the_noise(condition: Callable[[Tensor, int], Tensor]) -> None:
    """The control is plain assignment, under which noise tells the class of two rows in three."""
    assert CHANCE[0] < correct(Conditional(), condition) < CHANCE[1]
    assert CHANCE[0] < correct(Independent(), condition) < CHANCE[1]
    assert correct(Assignment(), condition) > 0.5
    assert correct(Conditional(ratio=0.3), embeddings) > 0.2


def gain(couple: Any, condition: Callable[[Tensor, int], Tensor]) -> float:
    """Return how much more the noise is aligned with its datum than the noise that was drawn for it, on average."""
    label = torch.randint(CLASSES, (B,), generator=generator(0))
    x = 1.5 * randn(CLASSES, D, seed=5)[label] + randn(B, D, seed=100)
    noise, drawn = (
        couple(x, cond=condition(label, 0), generator=stream(0, 0, "noise")),
        torch.randn(B, D, generator=stream(0, 0, "noise")),
    )
    assert torch.equal(noise.sort(0).values, drawn.sort(0).values)
    return float(torch.linalg.vecdot(x, noise - drawn).mean())


def test_the_noise_is_still_nearer_than_independent_noise() -> None:
    """Of what plain assignment gains, ten classes leave two fifths and a ratio of 0.05 about half, seen."""
    plain = gain(Assignment(), labels_alone)
    assert plain > 5
    assert 0.3 * plain < gain(Conditional(), labels_alone) < plain
    assert 0.3 * plain < gain(Conditional(ratio=0.05), embeddings) < plain
    assert gain(Conditional(ratio=0.0), embeddings) < 0.02 * plain
    assert gain(Independent(), labels_alone) == 0


def test_without_a_condition_it_is_plain_assignment() -> None:
    x = randn(30, 4)
    own = torch.randn(30, 4, generator=generator(3))
    assert torch.equal(Conditional(cost="l1")(x, generator=generator(3)), assign(x, own, cost="l1"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_condition_and_data_are_left_as_they_came(dtype: torch.dtype) -> None:
    x, cond = randn(20, 3, 4).requires_grad_(), (5 * randn(20, 2, 6)).to(dtype).requires_grad_()
    before = x.detach().clone(), cond.detach().clone()
    noise = Conditional()(x, cond=cond, generator=generator(0))
    assert torch.equal(x, before[0])
    assert torch.equal(cond, before[1])
    assert not noise.requires_grad
    (noise * x).sum().backward()  # type: ignore[no-untyped-call]


def test_one_row_keeps_its_noise() -> None:
    noise = randn(1, 3)
    for cond in (torch.tensor([4]), randn(1, 7), torch.zeros(1, 7)):
        assert assign_conditional(randn(1, 3, seed=1), noise, cond).tolist() == [0]


def test_it_is_a_coupling_and_starts_from_the_standard_normal() -> None:
    assert isinstance(Conditional(), Coupling)
    assert Conditional().prior([randn(4, 2)]) == StandardNormal()


X, C = randn(5, 3), randn(5, 2)
NAN = C.clone()
NAN[2, 1] = torch.nan
FAILURES: dict[str, tuple[Callable[[], object], str]] = {
    "numbers": (
        lambda: Conditional()(X, cond=C[:, 0]),
        r"cond is torch.float32 of shape \(5,\); it must be labels \(5,\)",
    ),
    "rows": (lambda: Conditional()(X, cond=C[:4]), r"cond has shape \(4, 2\); it must have an entry a row, \(5, ...\)"),
    "label rows": (
        lambda: Conditional()(X, cond=torch.arange(4)),
        r"cond has shape \(4,\); it must have an entry a row, \(5, ...\)",
    ),
    "nan": (lambda: Conditional()(X, cond=NAN), r"cond holds NaN or infinity, first in row 2"),
    "x nan": (lambda: Conditional()(X * torch.nan, cond=C), r"x holds NaN or infinity, first in row 0"),
    "more noise": (
        lambda: assign_conditional(X, randn(6, 3), C),
        r"as many noise rows as rows of x; there are 6 for 5",
    ),
    "ratio": (lambda: Conditional(ratio=1.5), r"ratio is 1.5; it must be a number >= 0 and <= 1"),
    "ratio nan": (lambda: assign_conditional(X, X, C, ratio=torch.nan), r"ratio is nan"),
    "cost": (lambda: Conditional(cost="l3"), r"no cost named 'l3'"),  # type: ignore[arg-type]
    "cost in call": (lambda: assign_conditional(X, X, C, cost="l3"), r"no cost named 'l3'"),  # type: ignore[arg-type]
    "precision": (lambda: Conditional(precision="fp8"), r"no precision named 'fp8'"),  # type: ignore[arg-type]
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("failure", FAILURES)
def test_misuse_is_named(failure: str) -> None:
    call, message = FAILURES[failure]
    with pytest.raises(ValueError, match=message):
        call()
