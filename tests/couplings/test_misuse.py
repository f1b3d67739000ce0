"""A misuse is told once for a line, with its remedy; a right use never."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import MisuseWarning
from immiscible_diffusion.couplings import (
    Assignment,
    Mixed,
    Nearest,
    Viewed,
    Warmup,
    assign,
    assign_index,
    assign_window,
    nearest,
)
from immiscible_diffusion.registry import make
from pairing import PAIRING


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = randn(32, 3, 8, 8).tanh()  # of root mean square .63, as images in -1..1
NOISE = randn(32, 3, 8, 8, seed=1)
PIXELS = (127.5 * (X + 1)).round()
SIGMA = (1.2 * randn(32, 1, 1, 1, seed=2) - 1.2).exp()
CLASSES = torch.arange(32)


def told(call: Callable[[], object], times: int = 5) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            call()
    return list(caught)


couple = Assignment()
MISUSES: dict[str, tuple[Callable[[], object], str]] = {
    "swapped": (lambda: assign(NOISE, X), r"root mean square 0\.6.*Data come first, assign\(x, noise\)"),
    "scaled by sigma": (lambda: assign(X, NOISE * SIGMA * 3), r"before it is multiplied by sigma"),
    "scaled by the largest sigma": (
        lambda: assign(X, 80 * NOISE, cost="dot"),
        r"noise = couple\(x\) in place of the draw",
    ),
    "bytes": (lambda: assign(PIXELS, NOISE), r"x reaches from .* as bytes 0 to 255 do.*x / 127.5 - 1"),
    "bytes in an object": (lambda: Assignment()(PIXELS), r"as bytes 0 to 255 do"),
    "bytes in nearest": (lambda: nearest(PIXELS, 4), r"as bytes 0 to 255 do"),
    "bytes in an object of nearest": (lambda: Nearest(4)(PIXELS), r"as bytes 0 to 255 do"),
    "bytes beside padding": (lambda: assign(PIXELS, NOISE, mask=(CLASSES > 3).reshape(-1, 1, 1, 1)), r"as bytes"),
    "one row": (lambda: assign(X[:1], NOISE[:1]), r"one row has nothing to pair with.*nearest\(x, k\)"),
    "one row in an object": (lambda: Assignment()(X[:1]), r"one row has nothing to pair with.*assign_window"),
    "one row in a wrapper": (
        lambda: Mixed(Assignment(), start=1.0, end=1.0)(X[:1]),
        "one row has nothing to pair with",
    ),
    "one row in another coupling": (lambda: Viewed()(X[:1]), r"one row has nothing to pair with"),
    "one row a window": (lambda: assign_window([X[:1]]), r"one row has nothing to pair with"),
    "swapped beside padding": (lambda: assign(NOISE, X, mask=(CLASSES > 3).reshape(-1, 1, 1, 1)), "Data come first"),
    "swapped, for the index": (lambda: assign_index(NOISE, X), "Data come first"),
    "swapped arrays": (lambda: assign_index(NOISE.numpy(), X.numpy()), "Data come first"),
    "bytes, for the index": (lambda: assign_index(PIXELS, NOISE), "as bytes 0 to 255 do"),
    "one row, for the index": (lambda: assign_index(X[:1], NOISE[:1]), "one row has nothing to pair with"),
    "no step": (lambda: Warmup()(X), "called without it"),
    "all labels differ": (lambda: assign(X, NOISE, labels=CLASSES), r"no two of the 32 rows share a label"),
    "all labels differ in an object": (lambda: Assignment()(X, labels=CLASSES), r"no two of the 32 rows share a label"),
    "all conditions differ": (
        lambda: Assignment(per_class=True)(X, cond=CLASSES),
        r"no two of the 32 rows share a label",
    ),
}


@pytest.mark.parametrize("case", MISUSES)
def test_a_misuse_is_told_once_with_its_remedy(case: str) -> None:
    call, message = MISUSES[case]
    (caught,) = told(call, 1 if case == "no step" else 5)  # that one as often as the filters say
    with pytest.raises(MisuseWarning, match=message):
        raise caught.message  # type: ignore[misc]
    assert Path(caught.filename) == Path(__file__)
    assert "lambda" in Path(__file__).read_text("utf-8").splitlines()[caught.lineno - 1]


OFFSET = 0.1 * randn(32, 3, 1, 1, seed=3)
RIGHT: dict[str, Callable[[], object]] = {
    "plain": lambda: assign(X, NOISE),
    "noise offset": lambda: assign(X, NOISE + OFFSET),
    "more noise than data": lambda: assign(X, randn(64, 3, 8, 8)),
    "bf16": lambda: assign(X.bfloat16(), NOISE.bfloat16()),
    "two rows of one number": lambda: [assign(randn(2, 1, seed=s), randn(2, 1, seed=s + 99)) for s in range(200)],
    "latents that were not scaled": lambda: assign(5.5 * NOISE, randn(32, 3, 8, 8)),
    "data in 0..1": lambda: assign((X + 1) / 2, NOISE),
    "wide data": lambda: assign(100 * randn(32, 3, 8, 8), NOISE),
    "classes": lambda: assign(X, NOISE, labels=CLASSES % 10),
    "one row in nearest": lambda: (nearest(X[:1], 16), Nearest(16)(X[:1])),
    "one row among more noises": lambda: assign(X[:1], NOISE),
    "a row alone in its class": lambda: Assignment()(X, labels=CLASSES.clamp(max=3)),
    "classes of a coupling that is split": lambda: make("coupling", "greedy")(X, labels=CLASSES.clamp(max=3)),
    "the rest of an epoch": lambda: [assign(X[start : start + 31], NOISE[start : start + 31]) for start in (0, 31)],
    "the rest of an epoch in an object": lambda: [couple(X[start : start + 31]) for start in (0, 31)],
    "padding": lambda: assign(X, NOISE, mask=(CLASSES > 3).reshape(-1, 1, 1, 1)),
    "noise that is zero at padding": lambda: assign(X, NOISE * (X > 0), mask=X > 0),
    "a window": lambda: assign_window([X[:1], X[1:2]]),
    **{name: lambda name=name: make("coupling", name)(X, cond=CLASSES % 4, step=1) for name in PAIRING},  # type: ignore[misc]
}


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_use_is_not_told_anything(case: str) -> None:
    assert told(RIGHT[case], 2) == []


def test_another_line_is_told_again() -> None:
    def two_lines() -> None:
        assign(NOISE, X)
        assign(X, NOISE)
        assign(NOISE, X)

    assert len({caught.lineno for caught in told(two_lines)}) == len(told(two_lines)) + 2


def test_the_warnings_can_be_silenced() -> None:
    def misuse() -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=MisuseWarning)
            assign(NOISE, X)

    assert told(misuse) == []


def test_only_the_first_call_looks_at_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a device is done once for a line: on CUDA every look would stop the queue of kernels."""
    looks, original = [], Tensor.aminmax

    def counted(self: Tensor, **options: object) -> object:
        looks.append(Path(sys._getframe(1).f_code.co_filename).name)
        return original(self)

    monkeypatch.setattr(Tensor, "aminmax", counted)
    for _ in range(4):
        assign(X, NOISE)
    for _ in range(4):
        Nearest(4)(X)
    assert looks.count("_misuse.py") == 2
