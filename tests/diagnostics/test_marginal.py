import pytest
import torch

from immiscible_diffusion import Assignment, Independent, Nearest
from immiscible_diffusion.diagnostics.inspect import inspect
from immiscible_diffusion.diagnostics.marginal import gaussian_kl, gaussian_kl_bias, leak, principal_variance
from immiscible_diffusion.types import Coupling


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_kl_bias_is_what_perfect_noise_shows() -> None:
    raw = [gaussian_kl(randn(200, 20, seed=seed)) + gaussian_kl_bias(200, 20) for seed in range(40)]
    assert sum(raw) / 40 == pytest.approx(gaussian_kl_bias(200, 20), rel=0.03)
    assert sum(raw) / 40 > 0.5  # uncorrected, perfect noise looks wrong


def test_kl_of_shorter_noise_is_the_closed_form() -> None:
    """The published check of nearest of 8: variance .979 in 3072 coordinates is .34 nat."""
    d, variance = 50, 0.8
    expected = 0.5 * d * (variance - 1 - torch.tensor(variance).log().item())
    assert gaussian_kl(variance**0.5 * randn(20_000, d)) == pytest.approx(expected, abs=0.05)
    with pytest.raises(ValueError, match="more rows than coordinates"):
        gaussian_kl(randn(5, 5))


@pytest.mark.parametrize(("n", "d"), [(400, 30), (40, 90)])
def test_principal_directions_are_those_of_the_data(n: int, d: int) -> None:
    scales = torch.ones(d)
    scales[3], scales[7] = 9.0, 5.0
    x, noise = randn(n, d) * scales, randn(n, d, seed=1)
    noise[:, 3] *= 2
    variances, coordinates = principal_variance(x, noise, 2)
    torch.testing.assert_close(coordinates[:, 0].abs(), noise[:, 3].abs().double(), atol=1.5, rtol=0.5)
    assert variances[0] == pytest.approx(4, rel=0.5)
    assert variances[1] == pytest.approx(1, rel=0.6)


def test_a_leak_is_found_and_its_absence_too() -> None:
    labels = torch.arange(2000) % 10
    plain = randn(2000, 16)
    leaky = plain + 0.8 * randn(10, 16, seed=5)[labels]
    for noise, leaks in ((plain, False), (leaky, True)):
        scores = leak(noise, labels)
        assert scores["chance"] == pytest.approx(0.1, abs=0.01)
        assert (scores["accuracy"] > scores["chance"] + 4 * scores["error"]) == leaks


def test_inspect_shows_what_each_coupling_is_known_to_do() -> None:
    labels = torch.arange(256) % 2
    centres = 2.0 * randn(2, 12, seed=9)[labels]
    data = [(centres + 0.3 * randn(256, 12, seed=seed), labels) for seed in range(12)]
    couplings: dict[str, Coupling] = {
        "independent": Independent(),
        "assignment": Assignment(),
        "within": Assignment(per_class=True),
        "nearest": Nearest(8, "dot"),
    }
    rows = {row["coupling"]: row for row in inspect(couplings, data)}
    reductions = [
        rows[name]["distance_reduction_percent"] for name in ("independent", "within", "assignment", "nearest")
    ]
    assert reductions[0] == 0
    assert reductions[1] < reductions[2]
    assert min(reductions[1:]) > 2
    for name in ("independent", "assignment", "within"):
        assert abs(rows[name]["kl"]) < 0.05
    assert rows["nearest"]["kl"] > 0.2
    assert rows["nearest"]["shift"] == pytest.approx(1.424, abs=0.05)
    assert rows["independent"]["shift"] == pytest.approx(0, abs=0.05)
    leaks = {name: row["leak"]["accuracy"] - row["leak"]["chance"] for name, row in rows.items()}
    error = rows["within"]["leak"]["error"]
    assert abs(leaks["within"]) < 4 * error
    assert leaks["assignment"] > 10 * error
    assert rows["assignment"]["cost_ms"] < rows["assignment"]["milliseconds"] * 2
    assert rows["nearest"]["cost_ms"] is None
