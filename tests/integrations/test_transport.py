"""A transport in the shape of SiT's trains on the coupling's noise."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import assign_index, one_noise
from immiscible_diffusion.couplings import Nearest
from immiscible_diffusion.integrations.transport import paired

X = torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Transport:
    """The lines from the draw to the target as SiT has them: x0 is noise, x1 data, and the velocity x1 - x0."""

    def sample(self, x1: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        return torch.rand(len(x1)) + shift, torch.randn_like(x1), x1

    def training_losses(self, x1: Tensor) -> dict[str, Tensor]:
        t, x0, x1 = self.sample(x1)
        t = t.reshape(-1, 1, 1, 1)
        return {"x_t": t * x1 + (1 - t) * x0, "target": x1 - x0, "noise": x0, "x": x1}


def share_in_place(terms: dict[str, Tensor]) -> float:
    """Return the share of rows that an exact assignment leaves where they are."""
    return float((assign_index(terms["x"], terms["noise"]) == torch.arange(32)).float().mean())


def test_the_losses_are_those_of_coupled_noise() -> None:
    transport: Any = Transport()
    assert share_in_place(transport.training_losses(X)) < 0.2
    transport.sample = paired(transport.sample)
    terms = transport.training_losses(X)
    assert share_in_place(terms) == 1
    assert terms["x"] is X
    one_noise(X, terms["x_t"], terms["target"])
    assert float(transport.sample(X, shift=5.0)[0].min()) >= 5
    assert float(transport.sample(X, 5.0)[0].min()) >= 5
    for other in (copy.deepcopy(transport), pickle.loads(pickle.dumps(transport))):  # noqa: S301
        assert other.sample.sample.__self__ is other
    assert paired(transport.sample, Nearest()).sample == transport.sample.sample  # type: ignore[attr-defined]


@pytest.mark.parametrize("drawn", [(X, X), (1, X, X[:3]), (1, 2, 3)])
def test_another_result_is_told(drawn: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"did not return \(t, noise, data\)"):
        paired(lambda x: drawn)(X)
