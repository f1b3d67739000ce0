"""Words: lines of Markdown break at 120 characters, summary lines are no riddles, and variables name things."""

import ast
import re
from pathlib import Path

import pytest

from studies.wrapped import WIDTH

ROOT = Path(__file__).parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md")})
GENERATED = {
    "docs/papers.md",
    "docs/licences.md",
    *(f"docs/results/{path.name}" for path in ROOT.glob("docs/results/*")),
}
"""Pages whose tables are written by a program, and hold what people look up."""

RIDDLES = re.compile(
    r"\b(that of|those of|told|what (it|is|was|are|goes|a|an|the)|by itself|taken over|licensed|laws?|said of)\b"
)
"""Words that leave a stranger guessing: "those of" names no thing, "what is left" none either."""


def too_long(text: str, *, tables: bool) -> list[str]:
    """Return the lines over 120 characters; a link's target does not count, and tables only where asked for."""
    lines = [re.sub(r"\]\([^)]*\)", "]()", line) for line in text.splitlines()]
    return [line for line in lines if len(line) > WIDTH and (tables or not line.startswith("|"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_break_at_120_characters(page: Path) -> None:
    name = page.relative_to(ROOT).as_posix()
    assert too_long(page.read_text(encoding="utf-8"), tables=name not in GENERATED) == []


def test_a_long_line_is_seen() -> None:
    assert too_long("| " + "x" * 120, tables=True)
    assert not too_long("| " + "x" * 120, tables=False)
    assert too_long("x" * 121, tables=False)
    assert not too_long(f"[x]({'y' * 121})", tables=True)


def summaries(text: str) -> list[str]:
    """Return the first lines of all docstrings of a module."""
    nodes = ast.walk(ast.parse(text))
    documented = [node for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    return [line.partition("\n")[0] for node in documented if (line := ast.get_docstring(node))]


@pytest.mark.parametrize("part", ["src", "studies", "benchmarks", "examples"])
def test_summary_lines_are_no_riddles(part: str) -> None:
    """A stranger understands each of them without the code: it names the thing, not "what it is" or "that of"."""
    paths = sorted(ROOT.glob(f"{part}/**/*.py"))
    lines = [(path.relative_to(ROOT).as_posix(), line) for path in paths for line in summaries(path.read_text("utf-8"))]
    assert lines
    assert [line for line in lines if RIDDLES.search(line[1])] == []


def test_a_riddle_is_seen() -> None:
    text = '"""Hand over what it is."""\ndef f():\n    """Return x.\n\n    What is more.\n    """\n'
    assert [bool(RIDDLES.search(line)) for line in summaries(text)] == [True, False]


VAGUE = {"found", "each", "told", "asked", "own", "there", "theirs"}
"""Names of variables that say nothing of the thing."""
SHORT = 5
"""Lines of a function in which the thing is in sight anyway."""


def vague_names(text: str) -> list[tuple[str, str]]:
    """Return function and name of every vague variable in a longer function of a module."""
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return [(node.name, name) for node in functions if length(node) > SHORT for name in sorted(variables(node) & VAGUE)]


def length(function: ast.FunctionDef) -> int:
    """Return how many lines a function has without its head and docstring."""
    body = function.body[bool(ast.get_docstring(function)) :]
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def variables(function: ast.FunctionDef) -> set[str]:
    """Return the names of a function's parameters and of all that is assigned in it."""
    nodes = list(ast.walk(function))
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return assigned | {node.arg for node in nodes if isinstance(node, ast.arg)}


@pytest.mark.parametrize("part", ["src", "studies", "benchmarks", "examples", "tests"])
def test_variables_name_things(part: str) -> None:
    paths = sorted(ROOT.glob(f"{part}/**/*.py"))
    assert paths
    names = {path.relative_to(ROOT).as_posix(): vague_names(path.read_text("utf-8")) for path in paths}
    assert {name: vague for name, vague in names.items() if vague} == {}


def test_a_vague_name_is_seen() -> None:
    long = "def f(x, *, told=1):\n    'Return.'\n" + "    x += 1\n" * 4 + "    return [each for each in x]\n    # end\n"
    assert vague_names(long + "    x = 2\n") == [("f", "each"), ("f", "told")]
    assert vague_names("def f(x):\n    return [each for each in x]\n") == []
