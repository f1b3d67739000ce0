import pytest
import torch

from immiscible_diffusion import Assignment, Independent, Nearest
from immiscible_diffusion.diagnostics.effect import effect
from immiscible_diffusion.diagnostics.inspect import inspect

DATA = [(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(i)), None) for i in range(6)]


def test_independent_noise_is_no_nearer() -> None:
    measured = effect(Independent(), DATA)
    assert measured["distance_reduction_percent"] == 0
    assert measured["noise_square"] == pytest.approx(1, abs=0.02)
    assert measured["cosine"] == pytest.approx(0, abs=0.02)
    assert measured["batches"] == 6


def test_the_reduction_is_that_of_the_distances() -> None:
    x, _ = DATA[0]
    noise = Assignment()(x, generator=torch.Generator().manual_seed(0))
    measured = effect(Assignment(), DATA)
    assert measured["distance_reduction_percent"] > 1
    assert measured["noise_square"] == pytest.approx(1, abs=0.02)
    assert measured["cosine"] > torch.nn.functional.cosine_similarity(x.flatten(1), noise.roll(1, 0).flatten(1)).mean()


def test_nearest_by_distance_has_shorter_noise() -> None:
    d, c8 = 192, 1.424
    measured = effect(Nearest(8), DATA)
    assert measured["noise_square"] == pytest.approx(1 - 2 * c8 / (6 * d) ** 0.5 + (2 * c8 / 6**0.5) ** 2 / d, abs=0.02)


def test_no_data_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        effect(Assignment(), [])


def test_a_probe_reads_the_label_from_the_noise_of_a_leaking_coupling() -> None:
    """Two classes of opposite means: plain assignment gives each its side of the noise, pairing within does not."""
    data = []
    for i in range(10):
        generator = torch.Generator().manual_seed(i)
        labels = torch.arange(64) % 2
        rows = torch.randn(64, 8, generator=generator) + 3 * (2.0 * labels - 1).unsqueeze(1)
        data.append((rows, labels))
    plain, within = effect(Assignment(), data), effect(Assignment(per_class=True), data)
    assert plain["leak_chance"] == pytest.approx(0.5, abs=0.02)
    assert plain["leak_accuracy"] > 0.8
    assert within["leak_accuracy"] == pytest.approx(0.5, abs=0.1)
    assert "leak_accuracy" not in effect(Assignment(), data[:2])  # too few rows for a probe
    assert "leak_accuracy" not in effect(Assignment(), DATA)


def test_padding_is_not_measured() -> None:
    """A row's padding is far from everything; with a mask the figures are those of the short rows."""
    mask = torch.ones(64, 12, 1, dtype=torch.bool)
    mask[:, 8:] = False
    rows = [torch.randn(64, 12, 2, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    far = [(torch.where(mask, x, 50.0), None, mask) for x in rows]
    measured = effect(Assignment(), far)
    assert effect(Assignment(), [(torch.where(mask, x, -9.0), None, mask) for x in rows]) == pytest.approx(
        measured | {"milliseconds": pytest.approx(measured["milliseconds"], abs=1e3)}
    )
    assert measured["noise_square"] == pytest.approx(1, abs=0.05)
    assert measured["distance_reduction_percent"] > 5
    assert effect(Assignment(), [(x, None) for x, _, _ in far])["distance_reduction_percent"] < 1


def test_an_inspection_tells_what_cannot_pair_and_takes_masks() -> None:
    alone = [(torch.randn(1, 6, generator=torch.Generator().manual_seed(i)), None) for i in range(40)]
    rows = inspect({"a": Assignment(), "n": Nearest(4)}, alone)
    assert [row["idle"] != "" for row in rows] == [True, False]
    assert rows[0]["distance_reduction_percent"] == 0
    assert rows[1]["distance_reduction_percent"] > 5
    mask = torch.ones(32, 3, 2, dtype=torch.bool)
    mask[:, 2] = False
    data = [(torch.randn(32, 3, 2, generator=torch.Generator().manual_seed(i)), None, mask) for i in range(4)]
    other = [(torch.where(mask, x, 99.0), None, mask) for x, _, _ in data]
    first, second = (inspect({"a": Assignment()}, batches)[0] for batches in (data, other))
    assert (first["shift"], first["kl"]) == (second["shift"], second["kl"])
