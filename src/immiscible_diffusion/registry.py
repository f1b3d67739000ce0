"""Names for everything an experiment file can choose."""

import dataclasses
import functools
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["KINDS", "describe", "lookup", "make", "names", "read_table", "register", "written"]

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
_DECORATED = re.compile(r'^@register\("(\w+)"\)\n(?:@.+\n)*class (\w+)', re.MULTILINE)
C = TypeVar("C", bound=type[Any])
T = TypeVar("T")


def register(kind: str) -> Callable[[C], C]:
    """Return a decorator that lets experiment files choose a dataclass by its name in snake case.

    Raises:
        ValueError: another class has that name; the names of this package are all taken.

    >>> @register("coupling")
    ... @dataclasses.dataclass(frozen=True)
    ... class Plain: ...
    >>> make("coupling", {"use": "plain"})
    Plain()
    """

    def add(cls: C) -> C:
        name = _snake(cls.__name__)
        known = _registered[_checked(kind)].get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"a {kind} named {name!r} exists already: {known.__module__}:{known.__name__}")
        if (module := _built_in(kind).get(name, cls.__module__)) != cls.__module__:
            raise ValueError(f"a {kind} named {name!r} exists already: {module}:{cls.__name__}")
        _registered[kind][name] = cls
        return cls

    return add


def names(kind: str) -> list[str]:
    """Return the names that an experiment file may use for one kind, sorted. No built-in module is imported."""
    return sorted({*_built_in(kind), *_registered[kind]})


def lookup(kind: str, name: str, *, imports: bool = True) -> type[Any]:
    """Return the class behind a name, or behind ``"my_package.module:Thing"``; only its module is imported.

    A module is searched for where Python searches, then in the current folder.

    A class of one's own must carry ``@register``: a name in a file can reach nothing else.

    Args:
        kind: one of ``KINDS``.
        name: of the class.
        imports: import the module of a ``"module:Thing"`` name, which runs its code; False for an untrusted file.

    Raises:
        ValueError: nothing is registered under that name, or its module is not imported and may not be.
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        if not imports and module not in sys.modules:
            raise ValueError(
                f"{kind} {name!r} names a module that is not imported, and may be anyone's: import it first"
            )
        try:
            cls = getattr(_imported(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"cannot import {kind} {name!r}: {error}") from error
        if cls not in _registered[_checked(kind)].values():
            raise ValueError(f"{name!r} is not registered: decorate it with @register({kind!r})")
        return cls  # type: ignore[no-any-return]
    if (built_in := _built_in(kind).get(name)) is not None:
        importlib.import_module(built_in)
    if name not in _registered[kind]:
        path = f'; images of that folder or file: \'{{use="images", path="{name}"}}\'' if _is_path(kind, name) else ""
        raise ValueError(f"no {kind} named {name!r}; there are {names(kind)}{path}")
    return _registered[kind][name]


def _imported(module: str) -> ModuleType:
    """Return a module; one that Python does not find is looked for in the current folder, as ``python -m`` does."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        here, first = str(Path.cwd()), module.partition(".")[0]
        exists = Path(here, f"{first}.py").is_file() or Path(here, first).is_dir()
        if error.name != first or here in sys.path or not exists:
            raise
    sys.path.append(here)
    importlib.invalidate_caches()
    return importlib.import_module(module)


def _is_path(kind: str, name: str) -> bool:
    return kind == "source" and Path(name).exists()


def make(kind: str, choice: Any, *, where: str = "", imports: bool = True) -> Any:
    """Return the object that ``{"use": name, **options}`` or a bare name describes.

    Args:
        kind: one of ``KINDS``.
        choice: a name, or a table of plain values. An option that is itself of some kind (``schedule``) may be a
            choice in turn, or an object.
        where: the dotted key of the choice in its file, which heads every message; by default the kind.
        imports: as in ``lookup``.

    Raises:
        ValueError: an unknown name or option, a value of another type, or one that the object refuses.

    >>> make("coupling", {"use": "nearest", "k": 8})
    Nearest(k=8.0, cost='l2')
    """
    where = where or kind
    if not isinstance(choice, str | Mapping):
        raise ValueError(f"{where} is {choice!r}; it must be a name or a table with use = NAME")
    options: dict[str, Any] = {"use": choice} if isinstance(choice, str) else dict(choice)
    name = options.pop("use", None)
    if not isinstance(name, str):
        raise ValueError(f"{where} needs use = NAME; there are {names(kind)}")
    try:
        cls = lookup(kind, name, imports=imports)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for key in [key for key in options if key in KINDS]:
        if type(options[key]) not in _registered[key].values():
            options[key] = make(key, options[key], where=f"{where}.{key}", imports=imports)
    return read_table(cls, options, where)


def read_table(cls: type[T], values: Any, where: str) -> T:
    """Return a dataclass made of a table of plain values: integers become floats and lists tuples where fields say so.

    Args:
        cls: the dataclass. Fields of other types than numbers, strings, booleans, ``Literal``, tuples and unions of
            these take a value as it is.
        values: option -> value.
        where: the dotted key that heads every message.

    Raises:
        ValueError: an unknown or missing key, a value of another type, or one that the dataclass refuses.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; it must be a table")
    allowed = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(allowed)):
        raise ValueError(f"unknown key {where}.{unknown[0]}; there are {allowed}")
    hints = get_type_hints(cls)
    typed = {key: _typed(value, hints[key], f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**typed)
    except ValueError as error:  # a message that begins with an option gets the option's dotted key
        mark = "." if str(error).partition(" ")[0] in allowed else ": "
        raise ValueError(f"{where}{mark}{error}") from error
    except TypeError as error:
        raise ValueError(f"{where}: a key is missing: {error}") from error


def describe(kind: str, thing: Any) -> dict[str, Any]:
    """Return the choice that ``make`` turns into an equal object.

    Raises:
        ValueError: the object's class is not registered.

    >>> describe("coupling", make("coupling", "nearest"))
    {'use': 'nearest', 'k': 8, 'cost': 'l2'}
    """
    cls = type(thing)
    if cls not in _registered[_checked(kind)].values():
        raise ValueError(f"{cls.__name__} is not registered: decorate it with @register({kind!r})")
    built_in = cls.__module__.startswith("immiscible_diffusion.")
    use = _snake(cls.__name__) if built_in else f"{cls.__module__}:{cls.__qualname__}"
    values = written(thing)
    nested = {key: describe(key, value) if key in KINDS else value for key, value in values.items()}
    return {"use": use, **nested}


def written(thing: Any) -> dict[str, Any]:
    """Return a dataclass as the plain values of a configuration, field by field.

    A field with the metadata ``unless_default`` is left out where it has its default: an option that came later changes
    neither the names of run folders nor the configurations in them.
    """
    return {
        field.name: getattr(thing, field.name)
        for field in dataclasses.fields(thing)
        if field.init and not (field.metadata.get("unless_default") and getattr(thing, field.name) == field.default)
    }


@functools.cache
def _built_in(kind: str) -> dict[str, str]:
    """Return name -> module of this package's classes of one kind, found in their source: to import them is slow."""
    place = Path(__file__).parent / KINDS[_checked(kind)]
    return {
        _snake(cls): f"immiscible_diffusion.{KINDS[kind]}" + (f".{path.stem}" if place.is_dir() else "")
        for path in (sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")])
        for decorated, cls in _DECORATED.findall(path.read_text(encoding="utf-8"))
        if decorated == kind
    }


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", NoneType: "none"}
_UNFIT = object()


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Return a plain value in the type of its field."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        if (typed := _fitted(value, choice)) is not _UNFIT:
            return typed
    raise ValueError(f"{where} is {value!r}; it must be {' or '.join(map(_in_words, choices))}")


def _fitted(value: Any, hint: Any) -> Any:
    """Return a plain value in one type, ``_UNFIT`` where it is of another."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return parts[parts.index(value)] if value in parts else _UNFIT
    if origin is tuple:
        if not isinstance(value, list | tuple) or (parts[-1] is not ... and len(parts) != len(value)):
            return _UNFIT
        hints = parts[:1] * len(value) if parts[-1] is ... else parts
        items = tuple(_fitted(item, part) for item, part in zip(value, hints, strict=True))
        return _UNFIT if any(item is _UNFIT for item in items) else items
    if hint in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return hint(value) if hint is float or value == value // 1 else _UNFIT
    if hint in _WORDS:
        return value if type(value) is hint else _UNFIT
    return tuple(value) if isinstance(value, list) and origin is not list else value


def _in_words(hint: Any) -> str:
    """Return a description of the values that a type allows."""
    if get_origin(hint) is Literal:
        return f"one of {list(get_args(hint))}"
    if get_origin(hint) is tuple:
        return f"a list, each {_in_words(get_args(hint)[0])}"
    return _WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _checked(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; there are {sorted(KINDS)}")
    return kind
