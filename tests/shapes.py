"""The type checker that the tests run every call of the package through."""

from collections.abc import Iterator
from contextlib import contextmanager

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""beartype with PEP 484's numeric tower: an int is a float, as everywhere else in Python typing."""


@contextmanager
def unchecked() -> Iterator[None]:
    """Call the package as a user does, without the checker, so that its own errors are seen."""
    import jaxtyping

    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
