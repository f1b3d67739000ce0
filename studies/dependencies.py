"""The declared dependencies of the package: their oldest versions and their licences."""

import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

from studies.site import ROOT

__all__ = ["LICENCES", "Dependency", "declared", "licence", "licences_page", "listed_licences", "oldest"]

LICENCES = Path("docs", "licences.md")
_HEAD = """# Licences of the dependencies

This library is under the [MIT licence](../LICENSE). It copies no dependency; installing it fetches them. Below is every
package that `pyproject.toml` declares, with the licence that its own metadata states. Packages that these bring along
are not listed: `pip-licenses` lists all that is installed. Weights and data sets have licences of their own.

Written by `python -m studies licences` from the metadata of the installed packages. A package that is not installed
keeps its row.

| package | needed for | licence |
|---|---|---|
"""
_CLASSIFIER = "License :: OSI Approved :: "
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_LEAST = re.compile(r"[>=]=\s*([0-9.]+)")
_LONGEST = 40
"""Characters of a licence's name; what is longer is its text."""
_UNSTATED = "its metadata state none"


class Dependency(NamedTuple):
    """A package that ``pyproject.toml`` names: its name, the extras that ask for it, and its requirement."""

    name: str
    extras: tuple[str, ...]
    requirement: str


def declared(root: Path = ROOT) -> list[Dependency]:
    """Return every declared dependency by name; one that the bare package needs has no extras."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = {}
    requirements: dict[str, str] = {}
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for line in lines:
            name = _normal(_NAME.match(line)[0])  # type: ignore[index]
            if name != _normal(project["name"]):
                extras.setdefault(name, []).append(extra)
                requirements[name] = line
    return [
        Dependency(name, tuple(sorted(names)) if "" not in names else (), requirements[name])
        for name, names in sorted(extras.items())
    ]


def oldest(dependency: Dependency) -> str:
    """Return the oldest version that a dependency's requirement allows.

    >>> oldest(Dependency("torch", (), "torch>=2.4"))
    '2.4'
    """
    least = _LEAST.search(dependency.requirement)
    if least is None:
        raise ValueError(f"{dependency.requirement!r} in pyproject.toml names no oldest version: write >=")
    return least[1]


def licence(distribution: Distribution) -> str:
    """Return the licence that a package's metadata states: its expression, its classifiers, or its one line."""
    metadata = distribution.metadata
    if "License-Expression" in metadata:
        return str(metadata["License-Expression"])
    classifiers = [
        line.removeprefix(_CLASSIFIER) for line in metadata.get_all("Classifier") or [] if line.startswith(_CLASSIFIER)
    ]
    if classifiers:
        return " and ".join(classifiers)
    text = (str(metadata["License"]) if "License" in metadata else "").strip().partition("\n")[0]
    return text if text != "UNKNOWN" and 0 < len(text) <= _LONGEST else _UNSTATED


def listed_licences(page: str) -> dict[str, str]:
    """Return the licences that the page lists, by package."""
    return dict(re.findall(r"^\| `([^`]+)` \| [^|]* \| ([^|]*) \|$", page, re.MULTILINE))


def licences_page(before: str = "", folders: list[str] | None = None, root: Path = ROOT) -> str:
    """Return the page of licences.

    Args:
        before: the page as it is, whose rows stand for packages that are not installed.
        folders: where packages are looked for besides where Python does.
        root: the repository.

    Raises:
        ValueError: a package has no row and is not installed.
    """
    places = [*(folders or []), *sys.path]
    installed = {_normal(package.name): package for package in distributions(path=places)}
    known = listed_licences(before)
    rows: Mapping[str, str] = {
        dependency.name: licence(installed[dependency.name]) if dependency.name in installed else ""
        for dependency in declared(root)
    }
    missing = [name for name, text in rows.items() if not (text or known.get(name))]
    if missing:
        raise ValueError(
            f"no licence is known of {', '.join(missing)}: install them, and name their folder with --path"
        )
    lines = [
        f"| `{dependency.name}` | {', '.join(f'`{extra}`' for extra in dependency.extras) or 'everything'} "
        f"| {rows[dependency.name] or known[dependency.name]} |"
        for dependency in declared(root)
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
