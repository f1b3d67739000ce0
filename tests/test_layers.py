"""What may import what, and what the bare package needs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import immiscible_diffusion

ROOT = Path(immiscible_diffusion.__file__).parent
REPOSITORY = Path(__file__).parents[1]
RULE = re.compile(r"^vocabulary <- [^`]*", re.MULTILINE)
VOCABULARY = "vocabulary"
PACKAGE = "immiscible_diffusion."


def layers() -> list[list[str]]:
    """Return the layers of the sentence in CONTRIBUTING.md, lowest first."""
    sentence = RULE.search((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert sentence is not None
    return [layer.strip().split(", ") for layer in sentence[0].split("<-")]


RANK = {name: rank for rank, layer in enumerate(layers()) for name in layer}
BESIDE = {"integrations": {"couplings", VOCABULARY}}
"""Folders outside the sentence, and the only parts that they may import."""


def part_of(module: str) -> str:
    """Return the folder or module of the rule that a dotted name belongs to; the rest of the root is vocabulary."""
    name = module.removeprefix(PACKAGE).split(".")[0]
    return name if name in RANK or name in BESIDE else VOCABULARY


def imports(source: str) -> set[str]:
    """Return the parts that a module's text imports."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = (PACKAGE, "studies.", "benchmarks.")
    return {part_of(module) for module in modules if module.startswith(ours)}


def violations(part: str, source: str) -> list[str]:
    """Return the imports of a module that point upwards, or to another part of its own layer."""
    others = imports(source) - {part}
    if part in BESIDE:
        return sorted(others - BESIDE[part])
    return sorted(other for other in others if other in BESIDE or RANK[other] >= RANK[part])


def modules() -> list[tuple[str, Path]]:
    """Return every module of the repository with the part that it belongs to; doors such as ``__main__`` are free."""
    package = [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT or not path.name.startswith("__")]
    inside = [(part_of(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")), path) for path in package]
    return inside + [
        (part, path) for part in ("studies", "benchmarks") for path in sorted(REPOSITORY.glob(f"{part}/**/*.py"))
    ]


def test_every_folder_has_a_layer() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert len(folders) > 10
    assert folders <= set(RANK) | set(BESIDE)


@pytest.mark.parametrize(
    ("part", "path"), modules(), ids=lambda value: value.name if isinstance(value, Path) else value
)
def test_imports_point_down(part: str, path: Path) -> None:
    assert violations(part, path.read_text(encoding="utf-8")) == []


def test_a_wrong_import_is_seen() -> None:
    assert violations("couplings", "from immiscible_diffusion.methods import Denoising") == ["methods"]
    assert violations("train", "import immiscible_diffusion.cli") == ["cli"]
    assert violations("vocabulary", "from immiscible_diffusion import nets") == ["nets"]
    assert violations("cli", "from studies.papers import papers") == ["studies"]
    assert violations("integrations", "from immiscible_diffusion.train import fit") == ["train"]


def added_by(statement: str) -> set[str]:
    """Return the third-party packages that a statement loads beyond torch, numpy, scipy and lapx."""
    program = (
        "import sys, torch, numpy, scipy.optimize, scipy.special, lap\n"
        f"before = set(sys.modules)\n{statement}\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split()) - {"torch", "numpy", "scipy", "lap"}


@pytest.mark.medium
def test_the_package_imports_nothing_beyond_its_requirements() -> None:
    assert added_by("from immiscible_diffusion import *") == {"immiscible_diffusion"}


@pytest.mark.medium
@pytest.mark.slow
def test_a_further_import_is_seen() -> None:
    assert "safetensors" in added_by("import immiscible_diffusion, safetensors.torch")
