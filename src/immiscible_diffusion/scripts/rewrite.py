"""A script with some draws replaced, line by line, and what changed as a diff."""

import difflib
from collections.abc import Sequence

from immiscible_diffusion.scripts.draws import Draw

__all__ = ["diff", "rewrite"]


def rewrite(source: str, draws: Sequence[Draw]) -> str:
    r"""Return a script in which draws are calls of the functions that pair; every line keeps its number.

    >>> import ast
    >>> from immiscible_diffusion.scripts.draws import find_draws
    >>> text = "import torch\nnoise = torch.randn_like(x)  # noise"
    >>> rewrite(text, find_draws(ast.parse(text)))
    'import torch\nnoise = immiscible_like(x)  # noise'
    """
    lines = [line.encode() for line in _lines(source)]
    for edit in sorted((edit for draw in draws for edit in draw.edits), key=lambda edit: edit.start, reverse=True):
        (first, begin), (last, end) = edit.start, edit.end
        text = lines[first - 1][:begin] + edit.text.encode() + lines[last - 1][end:]
        lines[first - 1 : last] = [line.encode() for line in _lines(text.decode())]
    return b"".join(lines).decode()


def diff(source: str, changed: str, name: str) -> str:
    """Return the lines that differ, as a unified diff without context."""
    lines = difflib.unified_diff(_lines(source), _lines(changed), name, name, n=0)
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines)


def _lines(text: str) -> list[str]:
    """Return lines with their ends; unlike ``str.splitlines`` a form feed ends none, as in Python's own count."""
    return [line + "\n" for line in text.split("\n")[:-1]] + ([last] if (last := text.split("\n")[-1]) else [])
