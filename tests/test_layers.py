"""What may import what, and what the bare package needs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import immiscible_diffusion

ROOT = Path(immiscible_diffusion.__file__).parent
BASE = {"types", "streams", "registry", "tensors", "schedules", "priors", "files", "text"}
PLUGINS = {"couplings", "methods", "nets", "codecs", "data", "metrics"}
LAYERS = [
    BASE,
    PLUGINS,
    {"train", "sample", "checkpoint", "pipelines"},
    {"config"},
    {"experiment"},
    {"analysis", "runs", "encode", "evaluation", "trackers"},
]
BENCHES = {"contenders", "bench", "bench_images", "bench_papers", "bench_step", "precision"}
LAYERS += [
    {"launch", "figures", "study_figures", "papers", "samples", "charts"} | BENCHES,
    {"records", "findings"},
    {"published", "exhibits"},
    {"report", "pages", "reruns", "reuse"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def imports(source: str) -> set[str]:
    """Return the top-level parts of the package that a module's text imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        found |= {name.split(".")[1] for name in names if name.startswith("immiscible_diffusion.")}
    return found


def violations(part: str, source: str) -> list[str]:
    """Return the imports of a module that point upwards, or from one plug-in folder to another."""
    return sorted(
        other
        for other in imports(source)
        if other != part and (RANK[other] > RANK[part] or (RANK[other] == RANK[part] and part in PLUGINS))
    )


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def test_every_module_has_a_layer() -> None:
    parts = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in modules()}
    assert parts == set(RANK)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert violations(part, path.read_text(encoding="utf-8")) == []


def test_a_wrong_import_is_seen() -> None:
    assert violations("couplings", "from immiscible_diffusion.methods import Denoising") == ["methods"]
    assert violations("train", "import immiscible_diffusion.cli") == ["cli"]


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


def test_the_package_imports_nothing_beyond_its_requirements() -> None:
    assert added_by("import immiscible_diffusion") == {"immiscible_diffusion"}


def test_a_further_import_is_seen() -> None:
    assert "safetensors" in added_by("import immiscible_diffusion, safetensors.torch")
