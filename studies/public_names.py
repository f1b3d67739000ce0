"""The list of public names: what may not change without a line in the changelog."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from typer.main import get_command

from immiscible_diffusion.cli import COMMANDS, command_line
from studies.site import ROOT, home, public_names

__all__ = ["PUBLIC_NAMES", "public_names_text"]

PUBLIC_NAMES = Path("tests", "reference", "public-names.txt")

PARTS = [
    "",
    "codecs",
    "couplings",
    "data",
    "diagnostics.idle",
    "diagnostics.one_noise",
    "features",
    "integrations.lucidrains",
    "integrations.torchcfm",
    "integrations.transport",
    "integrations.windows",
    "methods",
    "metrics",
    "nets",
    "train",
    "types",
]
"""The modules whose names are promised; the first is the package itself."""

_FOREIGN = {"Bool", "Float", "Int", "UInt8"}
"""Names of jaxtyping that ``types`` hands on."""


def public_names_text() -> str:
    r"""Return one line for each public name, with its kind and its parameters, then one for each command.

    >>> print(*[line for line in public_names_text().splitlines() if line.startswith("Nearest.")], sep="\n")
    Nearest.pair: method (x, rows)
    Nearest.prior: method (data)
    """
    lines = ["# The public names: written by `python -m studies public-names`, compared by tests/test_package.py."]
    for part in PARTS:
        dotted = f"immiscible_diffusion.{part}".rstrip(".")
        place = ROOT / "src" / Path(*dotted.split("."))
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        lines += ["", f"[{dotted}]"]
        for name in sorted(set(public_names(file)) - _FOREIGN):
            if part or home(file, name)[0].parent == file.parent:
                lines += _described(name, getattr(import_module(dotted), name))
            else:  # described where it is defined
                lines.append(f"{name}: from {home(file, name)[1].rpartition('.')[0]}")
    lines += ["", "[commands]"]
    for name in sorted(COMMANDS):
        command: Any = get_command(command_line(name))
        lines.append(f"immiscible {name}: {' '.join(option.opts[-1] for option in command.commands[name].params)}")
    return "\n".join(lines) + "\n"


def _described(name: str, value: Any) -> Iterator[str]:
    """Yield the line of a name, and for a class the lines of the public methods that no other line has."""
    if inspect.isfunction(value):
        yield f"{name}: function{_parameters(value)}"
    elif not inspect.isclass(value):
        yield f"{name}: {type(value).__name__}"
    if not inspect.isclass(value):
        return
    yield f"{name}: {'protocol' if getattr(value, '_is_protocol', False) else 'class'}{_parameters(value)}"
    bases = [base for base in reversed(value.__mro__[1:]) if base.__module__.startswith("immiscible_diffusion")]
    hidden = [base for base in bases if not _is_public(base)]
    members = {name: entry for base in [*hidden, value] for name, entry in vars(base).items()}
    for member, entry in sorted(members.items()):
        if member.startswith("_") and member != "__call__":
            continue
        if isinstance(entry, property):
            yield f"{name}.{member}: property"
        elif inspect.isfunction(entry):
            yield f"{name}.{member}: method{_parameters(entry)}"


def _is_public(value: type) -> bool:
    """Return whether a class is a public name itself, so that its methods have lines of their own."""
    package = value.__module__.split(".")[1]
    return value.__name__ in getattr(import_module(f"immiscible_diffusion.{package}"), "__all__", [])


def _parameters(value: Any) -> str:
    """Return the parameters with their defaults in brackets, without types: these differ between Python versions."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    text = str(inspect.Signature(plain))
    return "" if text == "(*args, **kwargs)" and inspect.isclass(value) else f" {text}"
