"""The files of the modules that a script imports: those beside it, and small packages that are installed."""

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["imported_files", "parse"]

_MOST = 300
_LARGE = {
    "torch", "torchvision", "torchaudio", "numpy", "scipy", "diffusers", "transformers", "accelerate", "peft",
    "datasets", "lightning", "pytorch_lightning", "huggingface_hub", "PIL", "tqdm", "wandb", "matplotlib", "sklearn",
    "pandas", "einops", "timm", "immiscible_diffusion",
}  # fmt: skip
"""Packages that draw no training noise for a script, or too many kinds to say which."""


def parse(source: str, path: Path) -> ast.Module:
    """Return a file's syntax tree.

    Raises:
        ValueError: it is not Python.
    """
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not Python that this interpreter reads: {error}") from error


def imported_files(script: Path) -> list[Path]:
    """Return the files of the modules that a script imports, directly or through one another."""
    roots = [script.resolve().parent, *(Path(entry) for entry in sys.path if entry)]
    files, left = {script.resolve(): None}, [script.resolve()]
    while left and len(files) < _MOST:
        path = left.pop(0)
        for module in _imports(path):
            if module.split(".")[0] in _LARGE or module.split(".")[0] in sys.stdlib_module_names:
                continue
            file = _file(module, [path.parent] if module.startswith(".") else roots)
            if file is not None and file not in files:
                files[file] = None
                left.append(file)
    return list(files)[1:]


def _imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports; those relative to it begin with dots."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            yield from (f"{module}{'' if module.endswith('.') else '.'}{alias.name}" for alias in node.names)


def _file(module: str, roots: Sequence[Path]) -> Path | None:
    """Return the file of a module below one of these folders."""
    name = module.lstrip(".")
    up = max(len(module) - len(name) - 1, 0)
    for root in roots:
        base = (root, *root.parents)[up] if up <= len(root.parents) else root
        place = base.joinpath(*name.split(".")) if name else base
        for file in (place.with_suffix(".py") if name else place / "__init__.py", place / "__init__.py"):
            if file.is_file():
                return file.resolve()
    return None
