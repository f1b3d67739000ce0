"""The loss over the real places of a padded batch, against the loss of these places alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import Denoising, Edm
from immiscible_diffusion.methods import Consistency
from immiscible_diffusion.methods._distances import Distance, distance
from immiscible_diffusion.types import Method

METHODS: dict[str, Method] = {
    "denoising": Denoising(),
    "edm": Edm(),
    "consistency": Consistency(),
    "consistency by l1": Consistency(distance="l1"),
    "consistency by pseudo_huber": Consistency(distance="pseudo_huber", weight="inverse_gap"),
}
REAL = [6, 1, 4, 0]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask() -> Tensor:
    return (torch.arange(6) < torch.tensor(REAL)[:, None]).unsqueeze(2)


def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    """Return each place's prediction from that place alone, so that padding can act through the loss only."""
    return (x_t + t.reshape(-1, 1, 1)).sin()


def losses(method: Method, x: Tensor, noise: Tensor, **options: Any) -> Tensor:
    return method.loss(net, x, noise, generator=torch.Generator().manual_seed(1), **options)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_s_loss_is_the_mean_over_its_real_places(name: str) -> None:
    x, noise = randn(4, 6, 2), randn(4, 6, 2, seed=1)
    masked = losses(METHODS[name], x, noise, mask=mask())
    for row, real in enumerate(REAL):
        short = losses(METHODS[name], x[:, : max(real, 1)], noise[:, : max(real, 1)])[row]
        torch.testing.assert_close(masked[row], short if real else torch.zeros(()), rtol=1e-5, atol=1e-9)
    whole = losses(METHODS[name], x, noise)
    assert masked[0] == pytest.approx(float(whole[0]), rel=1e-5)
    assert bool(((masked[1:] - whole[1:]).abs() > 1e-4 * whole[1:]).all())  # control: padding counts without a mask


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("padding", [5.0, torch.nan])
def test_what_stands_in_the_padding_changes_no_loss_and_no_gradient(name: str, padding: float) -> None:
    noise, gradients, values = randn(4, 6, 2, seed=1), [], []
    for filled in (0.0, padding):
        x = torch.where(mask(), randn(4, 6, 2), filled).requires_grad_()
        loss = losses(METHODS[name], x, noise, mask=mask())
        values.append(loss.detach())
        if filled == filled:  # NaN times the mask's zero is NaN on the way back
            gradients.append(torch.autograd.grad(loss.sum(), x)[0])
    assert torch.equal(values[0], values[1])
    assert all(not gradient[~mask().expand_as(x)].any() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("kind", ["l2", "l1", "pseudo_huber"])
def test_a_mask_of_true_is_no_mask(kind: Distance) -> None:
    first, second = randn(5, 3, 4), randn(5, 3, 4, seed=1)
    expected = distance(kind, first, second)
    for shape in ((5, 1, 1), (5, 3, 1), (5, 3, 4)):
        every = distance(kind, first, second, mask=torch.ones(shape, dtype=torch.bool))
        torch.testing.assert_close(every, expected, rtol=1e-6, atol=0)


def test_whole_images_are_not_masked() -> None:
    with pytest.raises(ValueError, match="'lpips' compares whole images and takes no mask"):
        distance("lpips", randn(2, 3, 8, 8), randn(2, 3, 8, 8), "absent", torch.ones(2, 1, 8, 8, dtype=torch.bool))
