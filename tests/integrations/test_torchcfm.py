"""Our sampler in TorchCFM's place: its optimum, every row once, and labels that stay with their data."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_diffusion.integrations.torchcfm import OTPlanSampler

WHY = "needs TorchCFM: pip install 'immiscible-diffusion[hosts]'"


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X0, X1, Y = randn(48, 2, 3), 2 * randn(48, 2, 3, seed=1) + 1, torch.arange(48) % 4


def partners(x0: Tensor, x1: Tensor) -> Tensor:
    """Return scipy's assignment of squared distances, in float64: the row of x0 for each row of x1."""
    square = torch.cdist(x1.flatten(1).double(), x0.flatten(1).double()).square()
    return torch.from_numpy(linear_sum_assignment(square.numpy())[1])


def test_the_plan_is_the_optimum_of_squared_distance() -> None:
    index = partners(X0, X1)
    x0, x1 = OTPlanSampler().sample_plan(X0, X1)
    assert torch.equal(x0, X0[index])
    assert torch.equal(x1, X1)
    plan = OTPlanSampler().get_map(X0, X1)
    expected = np.zeros((48, 48))
    expected[index, np.arange(48)] = 1 / 48
    assert np.array_equal(plan, expected)
    assert all(torch.equal(a, b) for a, b in zip(OTPlanSampler().sample_plan_with_scipy(X0, X1), (x0, x1), strict=True))


def test_labels_stay_with_their_data() -> None:
    x0, x1, y0, y1 = OTPlanSampler().sample_plan_with_labels(X0, X1, Y.flip(0), Y)
    assert torch.equal(x1, X1)
    assert torch.equal(y1, Y)
    assert torch.equal(y0, Y.flip(0)[partners(X0, X1)])
    assert OTPlanSampler().sample_plan_with_labels(X0, X1)[2:] == (None, None)
    within = OTPlanSampler(per_class=True).sample_plan_with_labels(X0, X1, None, Y)[0]
    for label in range(4):
        rows = label == Y
        assert torch.equal(within[rows], X0[rows][partners(X0[rows], X1[rows])])
    assert not torch.equal(within, x0)


def test_with_replacement_pairs_are_drawn_from_the_plan() -> None:
    sampler = OTPlanSampler()
    np.random.seed(3)
    rows, columns = sampler.sample_map(sampler.get_map(X0, X1), 48, replace=True)
    np.random.seed(3)
    x0, x1 = sampler.sample_plan(X0, X1, replace=True)
    assert torch.equal(x0, X0[rows])
    assert torch.equal(x1, X1[columns])
    assert torch.equal(partners(X0, X1)[columns], torch.from_numpy(rows))
    assert len(set(columns.tolist())) < 40  # which is why it is not the default


def test_trajectories_follow_the_plans() -> None:
    paths = OTPlanSampler().sample_trajectory(torch.stack([X0, X1, X0 + 1], 1))
    assert paths.shape == (48, 3, 2, 3)
    inverse = partners(X0, X1).argsort()
    assert np.array_equal(paths[:, 0], X0.numpy())
    assert np.array_equal(paths[:, 1], X1[inverse].numpy())


def test_wrong_use_is_told() -> None:
    with pytest.raises(ValueError, match=r"no method named 'emd'; there are \['exact', 'sinkhorn'"):
        OTPlanSampler("emd")
    with pytest.raises(ValueError, match="per_class pairs by method = 'exact' and without replacement"):
        OTPlanSampler(per_class=True).sample_plan_with_labels(X0, X1, None, Y, replace=True)


@pytest.fixture(scope="module")
def torchcfm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchcfm", reason=WHY)
        import torchcfm.conditional_flow_matching as matching
    return matching


@pytest.mark.slow
def test_a_matcher_of_torchcfm_keeps_data_and_labels_in_order(torchcfm: Any) -> None:
    matcher = torchcfm.ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)

    def data_of(t: Tensor, x_t: Tensor, u_t: Tensor, *rest: Tensor) -> Tensor:
        return x_t + (1 - t.reshape(-1, 1, 1)) * u_t

    before = data_of(*matcher.sample_location_and_conditional_flow(X0, X1))
    matcher.ot_sampler = OTPlanSampler()
    t, x_t, u_t = matcher.sample_location_and_conditional_flow(X0, X1)
    torch.testing.assert_close(data_of(t, x_t, u_t), X1)
    torch.testing.assert_close(data_of(t, x_t, u_t) - u_t, X0[partners(X0, X1)], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, X1)  # control: theirs leaves rows out
    *_, y1 = matcher.guided_sample_location_and_conditional_flow(X0, X1, y1=Y)
    assert torch.equal(y1, Y)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", "sinkhorn", "unbalanced", "partial"])
@pytest.mark.parametrize("rows", [48, 32])
def test_every_plan_is_that_of_torchcfm(torchcfm: Any, method: str, rows: int) -> None:
    options = {"reg": 0.5, "reg_m": 0.8, "normalize_cost": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # POT's, of its own deprecations
        expected = torchcfm.OTPlanSampler(method, **options).get_map(X0[:rows], X1)
        plan = OTPlanSampler(method, **options).get_map(X0[:rows], X1)  # type: ignore[arg-type]
    np.testing.assert_allclose(plan, expected, rtol=1e-4, atol=1e-9)
