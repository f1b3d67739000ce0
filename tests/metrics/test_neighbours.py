import numpy as np
import pytest
import torch

from benchmarks.precision import _independent
from immiscible_diffusion.metrics import Coverage, Density, Precision, Recall, neighbourhoods
from immiscible_diffusion.metrics import neighbours as module


def draws(seed: int, n: int, f: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed)) * scale + shift


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("pairs", [2**24, 300])
def test_they_equal_the_loops_and_scikit_learn(k: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAIRS", pairs)
    real, generated = draws(0, 60, 4), draws(1, 45, 4, 0.4, 0.7)
    a, b = real.double().numpy(), generated.double().numpy()

    def reach(x: np.ndarray) -> list[float]:
        return [sorted(np.linalg.norm(x - row, axis=1))[k] for row in x]

    reach_a, reach_b = reach(a), reach(b)
    inside = [[np.linalg.norm(x - y) <= r for x, r in zip(a, reach_a, strict=True)] for y in b]
    recalled = [[np.linalg.norm(x - y) <= r for y, r in zip(b, reach_b, strict=True)] for x in a]
    expected = (
        np.mean(np.any(inside, 1)),
        np.mean(np.any(recalled, 1)),
        np.sum(inside) / (k * len(b)),
        np.mean(np.any(inside, 0)),
    )
    scores = neighbourhoods(real, generated, k=k)
    assert scores == pytest.approx(expected, rel=1e-12)
    assert scores == pytest.approx(_independent.sklearn_neighbourhoods(real, generated, k), rel=1e-12)
    assert neighbourhoods(real, generated, k=k + 1) != pytest.approx(expected)  # one neighbour off would be seen
    metrics = Precision(k), Recall(k), Density(k), Coverage(k)
    assert tuple(metric(real, generated) for metric in metrics) == scores


def test_copies_of_the_data_score_perfectly_even_far_from_the_origin() -> None:
    real = draws(0, 100, 8, shift=1000)
    real[1] = real[0]  # at k = 1 their balls have radius 0
    found = neighbourhoods(real, real.clone(), k=1)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_fidelity_and_variety_are_told_apart() -> None:
    real = draws(0, 400, 3)
    narrow, wide = (
        neighbourhoods(real, draws(1, 400, 3, scale=0.2), k=3),
        neighbourhoods(real, draws(1, 400, 3, 0, 3), k=3),
    )
    assert narrow.precision > 0.95 > 0.5 > narrow.recall
    assert wide.recall > 0.95 > 0.5 > wide.precision
    assert narrow.density > 1 > wide.density
    apart = neighbourhoods(real, draws(1, 400, 3, shift=100), k=3)
    assert apart == (0, 0, 0, 0)


def test_k_out_of_range_is_refused(unchecked: None) -> None:
    x = draws(0, 9, 3)
    for k in (0, 9):
        with pytest.raises(ValueError, match=f"k is {k}; with 9 and 9 rows"):
            neighbourhoods(x, x, k=k)
    for kind in (Precision, Recall, Density, Coverage):
        with pytest.raises(ValueError, match="k is 0; it must be a whole number >= 1"):
            kind(k=0)
