"""Couplings that can do nothing say so, and are found by doing: their noise is that of independent pairs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.couplings import (
    Assignment,
    Cached,
    Conditional,
    Flipped,
    Independent,
    Joint,
    Mixed,
    Nearest,
    Oversampled,
    Rotated,
    Viewed,
    Warmup,
)
from immiscible_diffusion.diagnostics.effect import effect
from immiscible_diffusion.diagnostics.idle import idle_reason, share_with_partners
from immiscible_diffusion.registry import make
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling
from pairing import PAIRING


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(name: str) -> Any:
    coupling = make("coupling", name)
    assert isinstance(coupling, Coupling)
    return coupling


APART = {"independent", "cached", "joint", "warmup", "mixed", "rotated", "windowed"}


@pytest.mark.parametrize("name", sorted({*PAIRING} - APART))
def test_what_is_said_of_a_batch_of_one_is_what_happens(name: str) -> None:
    """A row's noise is then the first draw of its generator, or that draw's negative."""
    coupling, x = built(name), 5 * randn(1, 20)
    noise = coupling(x, cond=torch.zeros(1, dtype=torch.long), generator=stream(0, 0, "noise"), step=10**6)
    independent = bool((noise.abs() == Independent()(x, generator=stream(0, 0, "noise")).abs()).all())
    assert independent == (idle_reason(coupling, 1) != "")
    assert idle_reason(coupling, 128) == ""


def test_a_cached_row_alone_keeps_its_noise_for_ever() -> None:
    assert "stays for ever: raise train.batch" in idle_reason(Cached(), 1)
    coupling, x = Cached(), randn(1, 20)
    drawn = [coupling(x, generator=stream(0, step, "noise"), index=torch.tensor([3])) for step in range(3)]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_the_reason_names_coupling_and_remedy() -> None:
    assert idle_reason(Viewed(), 1).startswith("viewed permutes the noise of a batch")
    for wrapper in (Flipped(), Joint(), Rotated(), Warmup(), Mixed()):
        assert idle_reason(wrapper, 1) == idle_reason(Assignment(), 1) != ""
        assert "raise train.batch, or choose nearest" in idle_reason(wrapper, 1)
    assert idle_reason(Nearest(k=1), 128) == "nearest of k = 1 noise is independent noise: raise coupling.k"
    assert idle_reason(Oversampled(times=1), 1).startswith("oversampled permutes")
    for coupling in (Independent(), Nearest(), Oversampled(times=4), Warmup(Independent())):
        assert idle_reason(coupling, 1) == ""


@pytest.mark.parametrize("coupling", [Assignment(per_class=True), Conditional(), Flipped(Conditional())])
def test_rows_without_partners_in_their_class_are_counted(coupling: Coupling) -> None:
    """1,000 classes at a batch of 256: 1 - (999 / 1000)^255 = 22.5 % of the rows have a partner."""
    source = torch.Generator().manual_seed(0)
    labels = [torch.randint(1000, (256,), generator=source) for _ in range(40)]
    assert share_with_partners(labels) == pytest.approx(0.225, abs=0.01)
    reason = idle_reason(coupling, 256, labels)
    assert "pairs within classes, and 22." in reason
    assert "in a batch of 256: raise train.batch, draw batches of fewer classes, or choose nearest" in reason
    few = [batch % 10 for batch in labels]
    assert idle_reason(coupling, 256, few) == ""
    assert idle_reason(Assignment(), 256, labels) == ""
    assert idle_reason(coupling, 256, [randn(256, 8)]) == ""  # conditions that are no classes
    data: list[tuple[Tensor, Tensor | None]] = [(randn(256, 16, seed=i), batch) for i, batch in enumerate(labels[:8])]
    idle, busy = (effect(Assignment(per_class=per), data)["distance_reduction_percent"] for per in (True, False))
    assert abs(idle) < 0.15 * abs(busy)


def test_pairs_by_a_condition_that_the_data_lack() -> None:
    for coupling in (Conditional(), Assignment(per_class=True), Mixed(Assignment(per_class=True))):
        assert "these data have none: choose assignment" in idle_reason(coupling, 8, None)
        assert idle_reason(coupling, 8) == ""
    assert idle_reason(Assignment(), 8, None) == ""
