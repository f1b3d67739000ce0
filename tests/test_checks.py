"""Every check lets good values pass and names the bad one."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch

from immiscible_diffusion.checks import (
    check_batch,
    check_choice,
    check_finite,
    check_integers,
    check_lengths,
    check_number,
    check_whole,
)


def test_choices() -> None:
    check_choice("cost", "l2", Literal["l1", "l2"])
    for bad in ("l3", None, 2):
        with pytest.raises(ValueError, match=rf"^no cost named {bad!r}; there are \['l1', 'l2'\]$"):
            check_choice("cost", bad, Literal["l1", "l2"])


@pytest.mark.parametrize("good", [2, 10**30, np.int64(2)])
def test_whole_numbers(good: Any) -> None:
    check_whole(k=good, at_least=2)
    with pytest.raises(ValueError, match=r"^m is 1; it must be a whole number >= 2$"):
        check_whole(k=good, m=1, at_least=2)


@pytest.mark.parametrize("bad", [0, -1, 1.5, 1.0, True, "1", None, math.nan])
def test_what_is_no_whole_number(bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"^k is {bad!r}; it must be a whole number >= 1$"):
        check_whole(k=bad)


BOUNDS: list[tuple[dict[str, Any], list[Any], list[Any], str]] = [
    ({}, [-1, 0.5, np.float32(2)], ["1", None, False], "a finite number"),
    ({"at_least": 0, "at_most": 1}, [0, 1, 0.5], [-1e-9, 1.1], "a number >= 0 and <= 1"),
    ({"above": 0}, [1e-300, 7], [0, -1], "a number > 0"),
    ({"at_least": 0, "below": 1}, [0, 0.99], [1, -0.1], "a number >= 0 and < 1"),
    ({"at_least": 1, "whole": True}, [1, 8.0], [0, 1.5], "a whole number >= 1"),
]


@pytest.mark.parametrize(("bounds", "good", "bad", "span"), BOUNDS)
def test_numbers(bounds: dict[str, Any], good: list[Any], bad: list[Any], span: str) -> None:
    check_number(**{f"a{i}": value for i, value in enumerate(good)}, **bounds)
    for value in [*bad, math.nan, math.inf, -math.inf]:
        with pytest.raises(ValueError, match=rf"^r is {value!r}; it must be {span}$"):
            check_number(first=good[0], r=value, **bounds)


def test_batches() -> None:
    check_batch(torch.zeros(1))
    bad: list[tuple[Any, str]] = [
        (torch.zeros(2, 3, dtype=torch.long), "x is a torch.int64 tensor; it must be a floating-point tensor"),
        (None, "x is a NoneType"),
        (torch.tensor(1.0), r"x has shape \(\)"),
        (torch.zeros(2, 0), r"x has shape \(2, 0\)"),
    ]
    for value, message in bad:
        with pytest.raises(ValueError, match=message):
            check_batch(value)


def test_rows() -> None:
    x = torch.zeros(3, 2)
    check_lengths(x, cond=torch.zeros(3, 4, 5), other=None)
    check_integers(x, labels=torch.arange(3), other=None)
    check_finite(x=x, y=torch.zeros(()))
    for check in (check_lengths, check_integers):
        for bad in (torch.arange(2), torch.tensor(1)):
            with pytest.raises(ValueError, match=r"cond has .*a row, \(3,"):
                check(x, cond=bad)
    with pytest.raises(ValueError, match=r"^labels has dtype torch.float32 and shape \(3,\); it must hold an integer"):
        check_integers(x, labels=torch.zeros(3))
    with pytest.raises(ValueError, match="y holds NaN or infinity, first in row 1"):
        check_finite(x=x, y=torch.tensor([[0.0, 1.0], [2.0, math.inf]]))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [(torch.arange(4),), {"labels": torch.arange(4)}, [0, 1, 2, 3], "a", 5])
def test_conditions_that_are_no_tensor(bad: Any) -> None:
    for check in (check_lengths, check_integers):
        with pytest.raises(ValueError, match=rf"^cond is a {type(bad).__name__}; it must be one tensor"):
            check(torch.ones(4, 2), cond=bad)
        check(torch.ones(4, 2), cond=torch.arange(4))
