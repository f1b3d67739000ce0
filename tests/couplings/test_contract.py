"""What every registered coupling must do for its callers, whatever the distribution of its noise."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.couplings import DropIn, Independent, Rows
from immiscible_diffusion.couplings._wrapper import noise_from
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.registry import make, names
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling, HasMemory, Prior
from pairing import PAIRING
from sweeps import sweep

pytestmark = pytest.mark.medium

NAMES = PAIRING


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def honours(couple: Any, x: Tensor, cond: Tensor | None = None) -> None:
    """Assert what must hold of one call: noise like x, finite and repeatable, and x as it was."""
    before, version = x.detach().clone(), x._version
    noise = couple(x, cond=cond, generator=stream(0, 0, "noise"))
    assert isinstance(noise, Tensor)
    assert (noise.shape, noise.dtype, noise.device) == (x.shape, x.dtype, x.device)
    assert noise.isfinite().all()
    assert x.dtype != torch.float64 or not torch.equal(noise, noise.float().double())
    assert not noise.requires_grad
    assert noise.data_ptr() != x.data_ptr()
    assert torch.equal(x, before)
    assert x._version == version
    state = torch.get_rng_state()
    assert torch.equal(noise, couple(x, cond=cond, generator=stream(0, 0, "noise")))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(noise, couple(x, cond=cond, generator=stream(0, 1, "noise")))


def test_the_built_in_couplings_are_registered() -> None:
    assert {"assignment", "independent", "nearest"} <= set(NAMES)


BATCHES: dict[str, Callable[[], Tensor]] = {
    "images": lambda: randn(6, 3, 4, 5),
    "one row": lambda: randn(1, 3, 4, 4),
    "one row of one number": lambda: randn(1, 1),
    "numbers": lambda: randn(7),
    "long rows": lambda: randn(2, 10**6),
    "zeros": lambda: torch.zeros(4, 3),
    "float64": lambda: randn(5, 8).double(),
    "bfloat16": lambda: randn(5, 8).bfloat16(),
    "float16 near its end": lambda: (6e4 * randn(5, 8).sign()).half(),
    "requires grad": lambda: randn(5, 8).requires_grad_(),
    "not contiguous": lambda: randn(8, 5).T,
    "channels last": lambda: randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last),
    "expanded": lambda: randn(1, 8).expand(5, 8),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_noise_is_like_x_and_x_is_untouched(name: str, batch: str) -> None:
    couple = make("coupling", name)
    assert isinstance(couple, Coupling)
    x = BATCHES[batch]()
    honours(couple, x)
    honours(couple, x, torch.arange(len(x)) % 2)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_no_digit(name: str) -> None:
    """Rows from 1e-3 to 1e3, so that the digits of a cost matter."""
    x = randn(64, 200) * torch.logspace(-3, 3, 64)[:, None]
    cond, index = torch.arange(64) % 2, torch.arange(64)
    expected = make("coupling", name)(x, cond=cond, generator=stream(0, 0, "noise"), index=index, step=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16
        noise = make("coupling", name)(x, cond=cond, generator=stream(0, 0, "noise"), index=index, step=3)
    assert torch.equal(noise, expected)


@pytest.mark.parametrize("name", ["assignment", "joint", "oversampled", "sinkhorn"])
def test_a_coupling_that_lets_autocast_in_fails_the_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = randn(64, 200) * torch.logspace(-3, 3, 64)[:, None]
    expected = make("coupling", name)(x, generator=stream(0, 0, "noise"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        monkeypatch.setattr(torch, "autocast", lambda *a, **k: nullcontext())
        assert not torch.equal(make("coupling", name)(x, generator=stream(0, 0, "noise")), expected)


@pytest.mark.parametrize("name", NAMES)
def test_row_numbers_and_the_step_are_welcome(name: str) -> None:
    """A coupling that needs neither takes both; memory and schedules aside, the noise is as lawful as without them."""
    x, couple = randn(6, 3, 4, 4), make("coupling", name)
    for step in (0, 10**6):
        noise = couple(
            x, cond=torch.arange(6) % 2, generator=stream(0, 0, "noise"), index=torch.arange(6) + 10, step=step
        )
        assert noise.shape == x.shape
        assert not noise.requires_grad
        again = make("coupling", name)(
            x, cond=torch.arange(6) % 2, generator=stream(0, 0, "noise"), index=torch.arange(6) + 10, step=step
        )
        assert name == "cached" or torch.equal(noise, again)


def couple_global(x: Tensor, cond: Tensor | None, generator: torch.Generator) -> Tensor:
    return torch.randn_like(x, requires_grad=False)


def couple_adding(x: Tensor, cond: Tensor | None, generator: torch.Generator) -> Tensor:
    x.add_(0)
    return torch.randn(x.shape, generator=generator)


def couple_float(x: Tensor, cond: Tensor | None, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator)


def couple_coarse(x: Tensor, cond: Tensor | None, generator: torch.Generator) -> Tensor:
    return couple_float(x, cond, generator).to(x.dtype)


def couple_with_gradient(x: Tensor, cond: Tensor | None, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype) + 0 * x


def couple_same(x: Tensor, cond: Tensor | None, generator: torch.Generator) -> Tensor:
    return torch.ones_like(x)


@pytest.mark.parametrize(
    ("couple", "batch"),
    [
        (couple_global, "images"),
        (couple_adding, "images"),
        (couple_float, "float64"),
        (couple_coarse, "float64"),
        (couple_with_gradient, "requires grad"),
        (couple_same, "images"),
    ],
)
def test_a_coupling_that_breaks_the_contract_is_caught(couple: Any, batch: str) -> None:
    with torch.random.fork_rng(), pytest.raises(AssertionError):
        honours(couple, BATCHES[batch]())


@pytest.mark.parametrize("name", sweep(sorted({*NAMES} - {"flipped", "rotated"}), 5))
def test_each_row_follows_its_own_datum(name: str) -> None:
    """No coupling may put noise farther from its row, on average, than independent noise would be.

    ``flipped`` does, by design, and ``rotated`` may in four dimensions; see their own tests.
    """
    x = 2 * randn(2000, 4)
    noise = make("coupling", name)(x, generator=stream(0, 0, "noise"))
    alignment = torch.linalg.vecdot(x, noise)
    assert alignment.mean() > -5 * alignment.std() / 2000**0.5


WRONG_ROWS: dict[str, tuple[dict[str, Tensor], str]] = {
    "conditions": ({"cond": torch.arange(4)}, r"cond has shape \(4,\); it must have an entry a row, \(6, ...\)"),
    "one condition": ({"cond": torch.tensor(1)}, r"cond has shape \(\); it must have an entry a row"),
    "numbers": ({"index": torch.arange(7)}, r"index has .* shape \(7,\); it must hold an integer a row, \(6,\)"),
    "numbers of two axes": ({"index": torch.zeros(6, 1, dtype=torch.long)}, r"it must hold an integer a row"),
    "numbers with fractions": ({"index": torch.zeros(6)}, r"index has dtype torch.float32 .* an integer a row"),
}


def refuses(couple: Any, case: str) -> None:
    arguments, message = WRONG_ROWS[case]
    with pytest.raises(ValueError, match=message):
        couple(randn(6, 8), generator=stream(0, 0, "noise"), **arguments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG_ROWS)
@pytest.mark.parametrize("name", NAMES)
def test_a_condition_and_a_number_belong_to_every_row(name: str, case: str) -> None:
    refuses(make("coupling", name), case)


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_a_coupling_with_an_open_door_fails_the_check(case: str) -> None:
    class Open(Independent):
        def check(self, x: Tensor, rows: Rows) -> None:
            pass

    with pytest.raises(pytest.fail.Exception):
        refuses(Open(), case)


def test_a_coupling_needs_pair_and_no_more() -> None:
    class Ones(DropIn):
        def pair(self, x: Tensor, rows: Rows) -> Tensor:
            return torch.ones_like(x)

    assert isinstance(Ones(), Coupling)
    assert not isinstance(Ones(), HasMemory)
    assert torch.equal(Ones()(randn(3, 2)), torch.ones(3, 2))
    assert Ones().prior([]) == StandardNormal()
    with pytest.raises(TypeError, match="abstract"):
        type("Without", (DropIn,), {})()


def test_a_wrapper_hands_on_all_that_it_was_given() -> None:
    """``noise_from`` serves couplings of the protocol alone, whose step is a whole number."""
    calls: list[Any] = []

    class Plain:
        def __call__(
            self,
            x: Tensor,
            cond: Any = None,
            generator: Any = None,
            *,
            index: Any = None,
            step: int = 0,
            mask: Any = None,
        ) -> Tensor:
            calls.append((cond, generator, index, step))
            return x

        def prior(self, data: Any) -> Prior:
            return StandardNormal()

    x, cond, index, generator = randn(3, 2), torch.arange(3), torch.arange(3) + 1, stream(0, 0, "noise")
    noise_from(Plain(), x, Rows(cond, generator, index, 7))
    noise_from(Plain(), x, Rows())
    assert all(given is passed for given, passed in zip(calls[0][:3], (cond, generator, index), strict=True))
    assert (calls[0][3], calls[1]) == (7, (None, None, None, 0))


@pytest.mark.parametrize("name", names("coupling"))
def test_the_docstring_tells_marginal_and_cost(name: str) -> None:
    documentation = type(make("coupling", name)).__doc__ or ""
    assert "Marginal:" in documentation
    assert "Cost:" in documentation


@pytest.mark.parametrize("name", NAMES)
def test_the_prior_samples_rows_of_the_data(name: str) -> None:
    """Smoke test; the moments of a prior are tested beside its coupling."""
    prior = make("coupling", name).prior(iter([randn(5, 2, 3), randn(4, 2, 3)]))
    assert isinstance(prior, Prior)
    noise = prior.sample((3, 2, 3), stream(0, 0, "sample"))
    assert (noise.shape, noise.dtype) == ((3, 2, 3), torch.float32)
    assert noise.isfinite().all()
    assert torch.equal(noise, prior.sample((3, 2, 3), stream(0, 0, "sample")))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", sorted({*NAMES} - {"independent"}))
def test_a_value_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    """Independent noise never reads the values of x."""
    for b in (1, 5):
        x = randn(b, 8)
        x[b // 2, 3] = bad
        with pytest.raises(ValueError, match=f"x holds NaN or infinity, first in row {b // 2}"):
            make("coupling", name)(x, generator=stream(0, 0, "noise"))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [torch.ones(3, 2, dtype=torch.long), torch.ones(0, 2), torch.tensor(1.0), None])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_floating_batch_is_refused(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"x (is a|has shape) .*; it must be"):
        make("coupling", name)(bad, generator=stream(0, 0, "noise"))
