"""Execute a training script whose draws are replaced, as ``python SCRIPT ARGS`` would; its own processes too."""

import builtins
import importlib.abc
import importlib.machinery
import json
import linecache
import os
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["VARIABLE", "Launch", "Rewritten", "execute", "launched", "rerun"]

VARIABLE = "IMMISCIBLE_RUN"
"""Environment variable from which processes that a script starts learn what is replaced."""

_CHILD = "immiscible_diffusion.scripts.child"


@dataclass(frozen=True)
class Launch:
    """The absolute path of a script, the lines named by the user, also with absolute paths, and the coupling."""

    script: str
    at: tuple[str, ...]
    coupling: str


@dataclass(frozen=True)
class Rewritten:
    """A file of Python, as it is and as it runs."""

    path: Path
    source: str
    changed: str


def execute(files: Mapping[Path, Rewritten], launch: Launch, argv: Sequence[str], names: Mapping[str, Any]) -> None:
    """Execute a script as ``__main__`` and its modules as rewritten; exceptions pass through.

    Args:
        files: the script and the modules that were rewritten, by resolved path.
        launch: what processes started by the script are to repeat.
        argv: the script's name and arguments, as it will see them.
        names: the functions that the rewritten lines call.
    """
    script = Path(launch.script)
    os.environ[VARIABLE] = json.dumps(asdict(launch))
    main = types.ModuleType("__main__")
    # A process that the script starts, by multiprocessing or by Lightning, imports or runs the module named here.
    main.__spec__ = importlib.machinery.ModuleSpec(_CHILD, None)
    main.__file__, main.__dict__["__builtins__"] = str(script.resolve()), builtins
    before = sys.argv, sys.path[:], sys.modules["__main__"]
    sys.argv = list(argv)
    if not sys.flags.safe_path:
        sys.path[0] = str(script.resolve().parent)
    sys.modules["__main__"] = main
    try:
        _load(files, script, main.__dict__, names)
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"] = before


def launched() -> Launch | None:
    """Return the replacements of the process that started this one; None if it replaced nothing."""
    if VARIABLE not in os.environ:
        return None
    values = json.loads(os.environ[VARIABLE])
    return Launch(values["script"], tuple(values["at"]), values["coupling"])


def rerun(files: Mapping[Path, Rewritten], script: Path, scope: dict[str, Any], names: Mapping[str, Any]) -> None:
    """Define a script's functions in the module of a process that the script started by multiprocessing."""
    scope["__file__"] = str(script.resolve())
    _load(files, script, scope, names)


def _load(files: Mapping[Path, Rewritten], script: Path, scope: dict[str, Any], names: Mapping[str, Any]) -> None:
    if len(files) > 1:
        sys.meta_path.insert(0, _Finder(files, names))
    _run(files[script.resolve()], scope, names)


def _run(file: Rewritten, scope: dict[str, Any], names: Mapping[str, Any]) -> None:
    """Execute a rewritten file in a module's namespace; tracebacks show its lines as they run."""
    path = str(file.path.resolve())
    code = compile(file.changed, path, "exec", dont_inherit=True)
    linecache.cache[path] = len(file.changed), None, file.changed.splitlines(keepends=True), path
    scope.update(names)
    exec(code, scope)  # noqa: S102


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules that were rewritten, and leaves all others to Python."""

    def __init__(self, files: Mapping[Path, Rewritten], names: Mapping[str, Any]) -> None:
        self._files, self._names = files, names

    def find_spec(
        self, name: str, path: Any, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        file = self._files.get(Path(spec.origin).resolve()) if spec is not None and spec.origin else None
        if spec is None or file is None:
            return None
        spec.loader = _Loader(file, self._names)
        return spec


class _Loader(importlib.abc.Loader):
    """Executes a rewritten module."""

    def __init__(self, file: Rewritten, names: Mapping[str, Any]) -> None:
        self._file, self._names = file, names

    def exec_module(self, module: types.ModuleType) -> None:
        _run(self._file, module.__dict__, self._names)
