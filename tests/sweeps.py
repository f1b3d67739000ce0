"""Parametrised tests over many cases, of which the default run takes some and `make test-all` takes all."""

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["sweep"]


def sweep(cases: Iterable[Any], every: int) -> list[Any]:
    """Return the cases of a parametrised test: the first of each ``every``, and the others marked slow."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*value, marks=[] if i % every == 0 else pytest.mark.slow) for i, value in enumerate(values)]
