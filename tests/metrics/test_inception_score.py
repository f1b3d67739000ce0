import pytest
import torch

from benchmarks.precision import _independent
from immiscible_diffusion.metrics import InceptionScore, inception_score


def logits(n: int = 400, f: int = 12) -> torch.Tensor:
    return 2 * torch.randn(n, f, generator=torch.Generator().manual_seed(0))


def test_it_is_one_at_the_worst_and_the_number_of_classes_at_best() -> None:
    certain = 1000 * torch.eye(7)[torch.arange(70) % 7]
    assert inception_score(certain, splits=10).mean == pytest.approx(7, rel=1e-12)
    assert inception_score(certain[:1].expand(70, 7), splits=2).mean == pytest.approx(1, rel=1e-12)
    assert inception_score(torch.zeros(70, 7), splits=7) == pytest.approx((1, 0))


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_it_equals_scipys_relative_entropy(splits: int) -> None:
    x = logits(420)
    found = inception_score(x, splits=splits)
    assert found.mean == pytest.approx(_independent.scipy_inception_score(x, splits), rel=1e-10)
    assert found.mean != pytest.approx(_independent.scipy_inception_score(x, splits + 1), rel=1e-10)
    assert (found.sd == 0) == (splits == 1)


def test_probabilities_serve_through_their_logarithm() -> None:
    x = logits()
    assert inception_score(x.softmax(1).double().log(), splits=2) == pytest.approx(
        inception_score(x, splits=2), rel=1e-6
    )
    assert InceptionScore(splits=2)(x[:9], x) == inception_score(x, splits=2).mean


def test_splits_out_of_range_are_refused(unchecked: None) -> None:
    for splits in (0, 401):
        with pytest.raises(ValueError, match=f"{splits} splits of 400 rows"):
            inception_score(logits(), splits=splits)
    with pytest.raises(ValueError, match="it must be 1 or more"):
        InceptionScore(splits=0)
    with pytest.raises(ValueError, match="not finite"):
        inception_score(logits() / 0, splits=2)
