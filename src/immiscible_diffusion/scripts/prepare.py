"""From a script and the lines that its user names to the files as they will run, or the reason why not."""

import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from immiscible_diffusion.scripts.choose import Decision, decide
from immiscible_diffusion.scripts.draws import find_draws
from immiscible_diffusion.scripts.execute import Rewritten
from immiscible_diffusion.scripts.imports import imported_files, parse
from immiscible_diffusion.scripts.reasons import NO_TRAINING
from immiscible_diffusion.scripts.rewrite import diff, rewrite

__all__ = ["PreparedScript", "prepare", "read_script"]


@dataclass(frozen=True)
class PreparedScript:
    """A script and its modules as they will run, by resolved path.

    ``places`` are the replaced lines as FILE:LINE; ``left`` says of each other draw why it stays.
    """

    script: Path
    files: Mapping[Path, Rewritten]
    places: tuple[str, ...]
    left: tuple[str, ...]

    def diff(self) -> str:
        """Return the lines that changed."""
        return "".join(diff(file.source, file.changed, str(file.path)) for file in self.files.values())


def prepare(script: Path, at: Sequence[str] = ()) -> PreparedScript:
    """Find and replace the training noise of a script.

    Args:
        script: a file of Python.
        at: the lines of the draws, LINE of the script or FILE:LINE of a module that it imports; none: they are searched
            for in the script.

    Raises:
        ValueError: no draw of the script, or more than one, may be the training noise; a named line holds none.
    """
    lines = _lines_by_file(script, at)
    files: dict[Path, Rewritten] = {}
    places, left = [], []
    for path in dict.fromkeys([script, *lines]):
        source = read_script(path)
        draws = find_draws(parse(source, path))
        decision = decide(draws, lines.get(path, ())) if path in lines or not at else Decision((), (), ())
        if path == script and not at and not decision.chosen:
            raise ValueError(_refusal(script, decision))
        files[path.resolve()] = Rewritten(path, source, rewrite(source, decision.chosen))
        places += [f"{path}:{draw.line}" for draw in decision.chosen]
        left += [f"{path}:{draw.line} stays: {reason}" for draw, reason in decision.others]
    return PreparedScript(script, files, tuple(places), tuple(left))


def read_script(path: Path) -> str:
    """Return a file of Python as text, in the encoding that it declares.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read the script {path}: {error}") from error


def _lines_by_file(script: Path, at: Sequence[str]) -> dict[Path, list[int]]:
    lines: dict[Path, list[int]] = {}
    for place in at:
        name, _, line = place.rpartition(":")
        if not line.isdecimal():
            raise ValueError(f"--at {place}: write LINE of the script, or FILE:LINE of a module that it imports")
        lines.setdefault(_module(script, name) if name else script, []).append(int(line))
    return lines


def _module(script: Path, name: str) -> Path:
    """Return the file that a user names: from here, beside the script, or where Python finds modules."""
    folders = [Path(), script.parent, *(Path(entry) for entry in sys.path if entry)]
    for folder in folders:
        if (folder / name).is_file():
            path = folder / name
            return script if path.resolve() == script.resolve() else path
    raise ValueError(f"--at {name}: there is no such file here, beside {script} or where Python finds modules")


def _refusal(script: Path, decision: Decision) -> str:
    """Return why a script is not run, with the lines from which its user may choose."""
    if decision.open:
        lines = [f"  line {draw.line}: {draw.text}" for draw in decision.open]
        head = f"{script}: several draws may be the training noise; choose with --at LINE, which may be repeated"
        return "\n".join([head, *lines])
    lines = [f"  line {draw.line}: {draw.text}: {reason}" for draw, reason in decision.others]
    head = f"{script}: no draw here is the training noise" + ("; there are" if lines else "; it draws none")
    elsewhere = [f"  {place}" for place in _elsewhere(script)]
    hint = "modules that it imports draw; choose with --at FILE:LINE"
    if any(draw.edits for draw, _ in decision.others):
        lines.append("if one of these is, choose it with --at LINE")
    if not lines and not elsewhere:
        head += (
            ". If its noise is drawn in a package that it calls, name that line with --at FILE:LINE; or put "
            "noise = couple(x) in place of the draw yourself"
        )
    return "\n".join([head, *lines, *([hint, *elsewhere] if elsewhere else [])])


def _elsewhere(script: Path) -> Iterator[str]:
    """Yield the draws in the modules that a script imports which may be its training noise."""
    folder = script.resolve().parent
    for path in imported_files(script):
        try:
            draws = find_draws(parse(read_script(path), path))
        except ValueError:
            continue
        decision = decide(draws)
        beside = path.is_relative_to(folder) and "site-packages" not in path.parts
        likely = list(decision.chosen or decision.open)
        likely += [draw for draw, reason in decision.others if beside and draw.edits and reason.endswith(NO_TRAINING)]
        yield from (f"{path.relative_to(folder) if beside else path}:{draw.line}: {draw.text}" for draw in likely)
