"""The counter-based generator against the published vectors of Philox, and its rows against the normal law."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest, norm
from torch import Tensor

from immiscible_diffusion.couplings import _seeded_noise
from immiscible_diffusion.couplings._seeded_noise import normal_rows, philox
from sweeps import sweep

# Random123's kat_vectors for philox4x32 of ten rounds (Salmon et al., SC 2011): counter, key, words.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def plain(counter: list[int], key: list[int], rounds: int = 10) -> list[int]:
    """Return Philox4x32 as its paper writes it, in Python's own integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for i in range(rounds):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        w0, w1 = (k0 + i * 0x9E3779B9) % 2**32, (k1 + i * 0xBB67AE85) % 2**32
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ w0, second % 2**32, (first >> 32) ^ c3 ^ w1, first % 2**32
    return [c0, c1, c2, c3]


def signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def any_seeds(n: int) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (n,), generator=torch.Generator().manual_seed(0))


def words(counter: list[int], key: list[int]) -> list[int]:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    return [int(word) for word in philox(torch.tensor([signed(key[0] | key[1] << 32)]), (c0, c1, c2, c3))]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_words_are_those_that_are_published(counter: list[int], key: list[int], expected: list[int]) -> None:
    assert words(counter, key) == expected
    assert plain(counter, key) == expected
    assert plain(counter, key, rounds=9) != expected


def test_words_are_those_of_plain_integers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        counter, key = rng.integers(0, 2**32, 4).tolist(), rng.integers(0, 2**32, 2).tolist()
        assert words(counter, key) == plain(counter, key)


def by_hand(seed: int, d: int) -> list[float]:
    """Return the row of a seed from plain integers and numpy's functions, in float64."""
    values: list[float] = []
    for block in range(-(-d // 4)):
        u = [word * 2.0**-32 for word in plain([block, 0, 0, 0], [seed % 2**32, (seed >> 32) % 2**32])]
        for pair in (0, 2):
            radius = np.sqrt(-2 * np.log(u[pair] + 2.0**-33))
            values += [radius * np.cos(2 * np.pi * u[pair + 1]), radius * np.sin(2 * np.pi * u[pair + 1])]
    return values[:d]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 4e-6), (torch.float64, 1e-13)])
def test_rows_are_those_of_plain_integers(dtype: torch.dtype, error: float) -> None:
    """A float32 angle of up to 2 pi is off by 2.4e-7, times a radius of up to 6.8, and its logarithm as well."""
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 123456789012345]
    rows = normal_rows(torch.tensor(seeds), 10, dtype=dtype)
    assert rows.dtype == dtype
    expected = torch.tensor([by_hand(seed, 10) for seed in seeds], dtype=dtype)
    torch.testing.assert_close(rows, expected, rtol=0, atol=error)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 15])
def test_a_row_depends_on_its_seed_alone(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = any_seeds(50)
    rows, state = normal_rows(seeds, 21), torch.get_rng_state()
    monkeypatch.setattr(_seeded_noise, "_CHUNK", {"cpu": chunk})
    for d in (1, 4, 7, 21):
        assert torch.equal(normal_rows(seeds, d), rows[:, :d])
    assert torch.equal(normal_rows(seeds.flip(0)[:9], 21), rows.flip(0)[:9])
    assert torch.equal(normal_rows(seeds[3].expand(2), 21), rows[3].expand(2, 21))
    assert torch.equal(state, torch.get_rng_state())


def p_normal(values: Tensor) -> float:
    """Return the p of the hypothesis that all values are standard normal."""
    return float(kstest(values.flatten().double().numpy(), norm.cdf).pvalue)


def p_independent(rows: Tensor) -> float:
    """Return the p of the hypothesis that neighbours of an (n, d) table are uncorrelated, along either axis.

    Sums of products, of signs' products and of squares' products, each nearly normal under independence.
    """
    least = 1.0
    for values in (rows, rows.sign(), (rows.square() - 1) / 2**0.5):
        table = values.double()
        pairs = [
            (table[1:], table[:-1]),
            (table[:, 1:], table[:, :-1]),
            (table[:, 2:], table[:, :-2]),
            (table[:, 4:], table[:, :-4]),
        ]
        for a, b in pairs:
            z = float((a * b).sum()) / a.numel() ** 0.5
            least = min(least, float(2 * norm.sf(abs(z))))
    return least


NEIGHBOURS: dict[str, Callable[[], Tensor]] = {
    "seeds that count": lambda: torch.arange(2000),
    "seeds 2^32 apart": lambda: torch.arange(2000) << 32,
    "any seeds": lambda: any_seeds(2000),
}


@pytest.mark.parametrize("name", sweep(NEIGHBOURS, 2))
@pytest.mark.medium
@pytest.mark.slow
def test_values_are_normal_and_independent_over_seeds_and_columns(name: str) -> None:
    rows = normal_rows(NEIGHBOURS[name](), 96)
    assert p_normal(rows) > 1e-4
    assert p_normal(rows[:, 0]) > 1e-4
    assert p_normal(rows[:, 95]) > 1e-4
    assert p_independent(rows) > 1e-4
    assert float(chi2(96).cdf(rows.double().square().sum(1).numpy()).mean()) == pytest.approx(0.5, abs=0.03)


def test_broken_rows_fail_the_checks_of_the_law() -> None:
    rows = normal_rows(torch.arange(2000), 96)
    assert p_normal(1.02 * rows) < 1e-4
    assert p_normal(rows + 0.02) < 1e-4
    assert p_independent(rows + 0.1 * rows.roll(1, 0)) < 1e-4
    assert p_independent(rows * (1 + 0.1 * rows.roll(1, 1).abs())) < 1e-4
    assert p_independent(rows[torch.arange(2000) // 2]) < 1e-4


@pytest.mark.gpu
def test_a_gpu_draws_the_same_rows() -> None:
    seeds = any_seeds(300)
    torch.testing.assert_close(
        normal_rows(seeds, 3000, torch.device("cuda")).cpu(), normal_rows(seeds, 3000), rtol=0, atol=4e-6
    )
