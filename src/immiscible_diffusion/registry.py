"""Names for everything an experiment file can choose."""

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["KINDS", "describe", "lookup", "make", "names", "register"]

KINDS = {
    "coupling": "couplings",
    "method": "methods",
    "net": "nets",
    "codec": "codecs",
    "source": "data",
    "features": "features",
    "metric": "metrics",
    "schedule": "schedules",
}
"""What can be named, and the module of the package that holds its built-in choices."""

_registered: dict[str, dict[str, type[Any]]] = {kind: {} for kind in KINDS}
T = TypeVar("T", bound=type[Any])


def register(kind: str) -> Callable[[T], T]:
    """Return a decorator that lets experiment files choose a dataclass by its name in snake case.

    >>> @register("coupling")
    ... @dataclasses.dataclass(frozen=True)
    ... class Plain: ...
    >>> make("coupling", {"use": "plain"})
    Plain()
    """

    def add(cls: T) -> T:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        known = _registered[_checked(kind)].get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"a {kind} named {name!r} exists already: {known.__module__}:{known.__name__}")
        _registered[kind][name] = cls
        return cls

    return add


def names(kind: str) -> list[str]:
    """Return the names that an experiment file may use for one kind, sorted."""
    importlib.import_module(f"immiscible_diffusion.{KINDS[_checked(kind)]}")
    return sorted(_registered[kind])


def lookup(kind: str, name: str, *, imports: bool = True) -> type[Any]:
    """Return the class behind a name, or behind ``"my_package.module:Thing"``.

    A class of one's own must carry ``@register``: a name that comes out of a file never reaches anything else.

    Args:
        kind: one of ``KINDS``.
        name: of the class.
        imports: import the module that the name holds, which runs its code; False where the name is a stranger's.

    Raises:
        ValueError: nothing is registered under that name, or its module is not imported and may not be.
    """
    known = names(kind)
    if ":" in name:
        module, _, attribute = name.partition(":")
        if not imports and module not in sys.modules:
            raise ValueError(
                f"{kind} {name!r} names a module that is not imported, and may be anyone's: import it first"
            )
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"cannot import {kind} {name!r}: {error}") from error
        if found not in _registered[kind].values():
            raise ValueError(f"{name!r} is not registered: decorate it with @register({kind!r})")
        return found  # type: ignore[no-any-return]
    if name not in known:
        raise ValueError(f"no {kind} named {name!r}; there are {known}")
    return _registered[kind][name]


def make(kind: str, choice: str | Mapping[str, Any], *, imports: bool = True) -> Any:
    """Return the object that ``{"use": name, **options}`` or a bare name describes.

    Args:
        kind: one of ``KINDS``.
        choice: what to make.
        imports: as in ``lookup``.

    Raises:
        ValueError: an unknown name or option, or a value that the object refuses.

    >>> make("coupling", {"use": "nearest", "k": 8})
    Nearest(k=8, cost='l2')
    """
    options: dict[str, Any] = {"use": choice} if isinstance(choice, str) else dict(choice)
    name = options.pop("use", None)
    if not isinstance(name, str):
        raise ValueError(f"a {kind} needs use = NAME; there are {names(kind)}")
    cls = lookup(kind, name, imports=imports)
    allowed = [field.name for field in dataclasses.fields(cls) if field.init]
    if unknown := sorted(set(options) - set(allowed)):
        raise ValueError(f"{kind} {name!r} has no option {unknown[0]!r}; there are {allowed}")
    for key, value in options.items():
        if key in KINDS and isinstance(value, (str, Mapping)):
            options[key] = make(key, value, imports=imports)
        elif isinstance(value, list):  # files have no tuples
            options[key] = tuple(value)
    return cls(**options)


def describe(kind: str, thing: Any) -> dict[str, Any]:
    """Return the choice that ``make`` turns into an equal object.

    Raises:
        ValueError: the object's class is not registered.

    >>> describe("coupling", make("coupling", "nearest"))
    {'use': 'nearest', 'k': 8, 'cost': 'l2'}
    """
    known = [name for name in names(kind) if _registered[kind][name] is type(thing)]
    if not known:
        raise ValueError(f"{type(thing).__name__} is not registered: decorate it with @register({kind!r})")
    own = type(thing).__module__.startswith("immiscible_diffusion.")
    use = known[0] if own else f"{type(thing).__module__}:{type(thing).__qualname__}"
    values = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.init}
    nested = {key: describe(key, value) if key in KINDS else value for key, value in values.items()}
    return {"use": use, **nested}


def _checked(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; there are {sorted(KINDS)}")
    return kind
