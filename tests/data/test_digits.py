import itertools

import pytest
import torch

from immiscible_diffusion import Digits


def test_training_and_held_out_rows_are_the_whole_set_and_disjoint() -> None:
    source = Digits(held_out_rows=497)
    held = source.held_out()
    seen = [batch.raw for batch in itertools.islice(source.batches(100, seed=3), 13)]
    rows = torch.cat([held.raw, *seen]).flatten(1)
    assert held.raw.shape == (497, 1, 8, 8)
    assert len(rows) == 1797
    from sklearn.datasets import load_digits

    expected = torch.from_numpy(load_digits().images.reshape(1797, 64)) * 255 / 16
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, expected.round().to(torch.uint8).tolist()))


def test_batches_depend_on_their_number_alone() -> None:
    source = Digits()
    first = list(itertools.islice(source.batches(128, seed=1), 25))
    later = list(itertools.islice(source.batches(128, seed=1, start=11), 14))
    for batch, other in zip(first[11:], later, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch[:3], other[:3], strict=True))  # type: ignore[arg-type]
    assert not torch.equal(first[0].raw, next(source.batches(128, seed=2)).raw)
    assert not torch.equal(first[0].raw, first[10].raw)  # a new epoch is a new order


def test_labels_belong_to_their_images() -> None:
    """Nearest class mean finds most labels; with labels shuffled it does not."""
    raw, labels, *_ = Digits().held_out()
    assert labels is not None
    means = torch.stack([raw[labels == c].float().mean(0) for c in range(10)]).flatten(1)
    predicted = torch.cdist(raw.float().flatten(1), means).argmin(1)
    assert float((predicted == labels).float().mean()) > 0.85
    assert float((predicted == labels.roll(1)).float().mean()) < 0.2


@pytest.mark.parametrize("rows", [0, 1797])
def test_a_split_that_leaves_nothing_is_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=r"1 \.\. 1796"):
        Digits(held_out_rows=rows)
