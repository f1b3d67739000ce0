"""Unpack the wheels that this machine lacks, then become ``python -m benchmarks gpu`` with them.

Needs the standard library and pip alone: ``python3 benchmarks/gpu/start.py --pack build/gpu-pack --out OUT ...`` from
the repository's root. All options are those of ``python -m benchmarks gpu``.
"""

import email
import os
import sys
import tarfile
import zipfile
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOTS: tuple[str, ...] = (
    *("torch", "numpy", "scipy", "pillow", "pytest", "diffusers", "safetensors", "lapx", "pydantic", "typer", "rich"),
    *("beartype", "jaxtyping"),
)
"""What the benchmarks and the tests marked gpu import."""


def chosen(wheels: dict[str, Path], roots: tuple[str, ...] = ROOTS) -> tuple[list[Path], list[str]]:
    """Return the wheels to unpack, and the requirements that neither this machine nor the wheels meet.

    What is installed here stays unless its version does not suit a wheel that is unpacked.

    Args:
        wheels: canonical name of a package -> its wheel.
        roots: names of the packages that are needed; what their wheels require is needed too.
    """
    requirement_of = _requirement()
    unpacked, lacking = dict[str, Path](), list[str]()
    waiting: list[Any] = [requirement_of(name) for name in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonical(requirement.name)
        if name in unpacked or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            if requirement.specifier.contains(version(name), prereleases=True):
                continue
        except PackageNotFoundError:
            pass
        if name in wheels:
            unpacked[name] = wheels[name]
            waiting += [requirement_of(text) for text in requires(wheels[name])]
        else:
            lacking.append(str(requirement))
    return list(unpacked.values()), sorted(set(lacking))


def _requirement() -> Any:
    """Return the class that reads a requirement: of ``packaging``, or of the copy of it in pip."""
    try:
        return import_module("packaging.requirements").Requirement
    except ImportError:
        return import_module("pip._vendor.packaging.requirements").Requirement


def canonical(name: str) -> str:
    """Return a package's name in the one form that names are compared in."""
    return name.lower().replace("_", "-").replace(".", "-")


def requires(wheel: Path) -> list[str]:
    """Return the requirements that a wheel's metadata state."""
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(file.read(name)).get_all("Requires-Dist") or []


def prepare(pack: Path) -> Path:
    """Unpack missing packages into the pack's folder ``site``, and return the folder."""
    site = pack / "site"
    if site.is_dir():
        return site
    with tarfile.open(pack / "wheels.tar.xz") as archive:
        archive.extractall(pack / "wheels", filter="data")
    wheels = {canonical(path.name.partition("-")[0]): path for path in sorted((pack / "wheels").glob("*.whl"))}
    unpacked, lacking = chosen(wheels)
    if lacking:
        sys.exit(f"this machine lacks {', '.join(lacking)}, and so does the pack: install them first")
    for wheel in unpacked:
        with zipfile.ZipFile(wheel) as file:
            file.extractall(site)  # noqa: S202
    return site


def main(arguments: list[str]) -> None:
    """Prepare the environment and become the benchmark."""
    pack = Path(arguments[arguments.index("--pack") + 1]) if "--pack" in arguments else Path("build/gpu-pack")
    root = Path(__file__).resolve().parents[2]
    paths = [str(root / "src"), str(root), str(prepare(pack.resolve())), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "benchmarks", "gpu", *arguments]
    os.execve(sys.executable, command, environment)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
