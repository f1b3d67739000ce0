"""The transformer: diffusers' own answer, one drop a row, and flow and DDPM training."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from immiscible_diffusion import Betas, Denoising, Digits, Independent, Pixels, Straight, Train, fit, new_state
from immiscible_diffusion.nets import Dit

pytestmark = pytest.mark.medium

X_T = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.9, 0.999])
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])


def built(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return Dit(**{"depth": 3, "conditional": True, **options}).build((4, 8, 8), 2).eval()


@torch.no_grad()
def ask(net: nn.Module, cond: Tensor | None) -> Tensor:
    out: Tensor = net(X_T, T, cond)
    return out


def test_it_says_what_diffusers_model_says() -> None:
    net = built()
    model: Any = net.model
    with torch.no_grad():
        expected = model(X_T, 1000 * T, class_labels=LABELS).sample
        null = model(X_T, 1000 * T, class_labels=torch.full((6,), 1000)).sample
    assert torch.equal(ask(net, LABELS), expected)
    assert torch.equal(ask(net, None), null)
    assert float((expected - null).abs().mean()) > 1e-3
    assert torch.equal(ask(built(conditional=False), LABELS), null)


def test_a_row_is_dropped_in_every_block_or_in_none() -> None:
    net = built(drop=0.2)
    full, null = ask(net, LABELS), ask(net, None)

    def alien(net: nn.Module) -> int:
        """Count rows that are neither the conditional nor the null answer."""
        count = 0
        for seed in range(10):
            torch.manual_seed(seed)
            out = ask(net, LABELS)
            near = [(out - answer).flatten(1).abs().amax(1) < 1e-5 for answer in (full, null)]
            count += int((~(near[0] | near[1])).sum())
        return count

    assert alien(net.train()) == 0
    torch.manual_seed(0)
    dropped = sum(int(((ask(net, LABELS) - null).flatten(1).abs().amax(1) < 1e-5).sum()) for _ in range(20))
    assert 8 <= dropped <= 40  # of 120, 24 expected: 3.6 deviations
    net.eval()
    assert torch.equal(ask(net, LABELS), full)
    # Control: diffusers' own dropping, block by block.
    blockwise: Any = copy.deepcopy(net).train()
    blockwise.drop = 0.0
    for module in blockwise.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.5
    assert alien(blockwise) > 10


@pytest.mark.parametrize("method", [Denoising(Straight(), "velocity"), Denoising(Betas(), "eps")], ids=["flow", "ddpm"])
@pytest.mark.slow
def test_digits_train(method: Denoising) -> None:
    """Smoke: the loss falls under flow matching and DDPM."""
    torch.manual_seed(0)
    config = Train(steps=40, batch=64, lr=3e-3, warmup=0)
    net = Dit(depth=2, heads=4, head_width=8, conditional=True).build((1, 8, 8), 10)
    losses = [s.loss for s in fit(new_state(net, config), Digits(), Pixels(), Independent(), method, config)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="needs \\(c, h, h\\) with sides of multiples of 2"):
        Dit().build((4, 8, 6), None)
    with pytest.raises(ValueError, match="sides of multiples of 3"):
        Dit(patch=3).build((4, 8, 8), None)
    for options in ({"depth": 0}, {"drop": 1.0}, {"heads": 1, "head_width": 2}):
        with pytest.raises(ValueError, match=r"depth is 0; it must|drop is 1.0; it must|is 2; it must be a multiple"):
            Dit(**options)
    many = Dit(conditional=True).build((4, 8, 8), 1500)
    assert int(many.null(LABELS)[0]) == 1500  # type: ignore[operator]
