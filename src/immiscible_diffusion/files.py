"""Files and folders that are either whole or absent."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from immiscible_diffusion.extras import needs

__all__ = [
    "digest_of",
    "digest_of_file",
    "locked",
    "new_folder",
    "parsed_json",
    "read_index",
    "read_json",
    "read_lines",
    "read_tensors",
    "remove_parts",
    "whole_lines",
    "write_bytes",
    "write_json",
    "write_lines",
    "write_tensors",
]


_PARTS = ".*.part"
_LINE = 120
_INDEX = {"experiment": str, "runs": [{"arm": str, "seed": int, "folder": str, "point?": {"*": str}}]}
_WORDS = {dict: "a table", list: "a list", str: "a text", int: "a whole number", float: "a number"}


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN and infinity are refused, for they are not JSON."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    write_bytes(path, (_indented(plain) + "\n").encode())


def _indented(value: Any, begin: str = "", indent: str = "") -> str:
    """Return a JSON value as text after ``begin``: on one line if it fits or holds plain values alone.

    >>> print(_indented({"sizes": [2, 3], "rows": [{"step": 10 ** 20, "loss": 0.5}] * 3}))
    {
     "sizes": [2, 3],
     "rows": [
      {"step": 100000000000000000000, "loss": 0.5},
      {"step": 100000000000000000000, "loss": 0.5},
      {"step": 100000000000000000000, "loss": 0.5}
     ]
    }
    """
    line = begin + json.dumps(value)
    if len(indent + line) < _LINE or not isinstance(value, dict | list):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        lines = [inner + _indented(part, f"{json.dumps(key)}: ", inner) for key, part in value.items()]
        return f"{begin}{{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if any(isinstance(part, dict | list) for part in value):
        return f"{begin}[\n" + ",\n".join(inner + _indented(part, "", inner) for part in value) + f"\n{indent}]"
    return line


def read_json(path: Path, form: Any = object) -> Any:
    """Return the value that a JSON file holds.

    Args:
        path: the file.
        form: what the value must look like: a type; ``[form]`` for a list; ``{key: form}`` for a table that has these
            keys, where the key ``"*"`` stands for every key and one such as ``"point?"`` may be absent. A file with a
            form is this library's own, and holds no NaN or infinity.

    Raises:
        ValueError: the file is missing, not JSON, or of another form; names the value.
    """
    try:
        value = parsed_json(path.read_text(encoding="utf-8"), constants=form is object)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if problem := _misfit(value, form, ""):
        raise ValueError(f"{path} is damaged or of another kind: {problem}; restore or remove it")
    return value


def parsed_json(content: str | bytes, *, constants: bool = True) -> Any:
    """Return the value that JSON text holds.

    Args:
        content: the text.
        constants: take NaN and infinity, which JSON lacks and other programs write.

    Raises:
        ValueError: it is not JSON, or is nested too deeply to be read.
    """
    try:
        return json.loads(content, parse_constant=None if constants else _refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of an experiment, whose runs lie in folders beside it.

    Raises:
        ValueError: there is none, or it names a run that is not one folder there but a path to elsewhere.
    """
    path = folder / "index.json"
    index: dict[str, Any] = read_json(path, _INDEX)
    for run in index["runs"]:
        name = run["folder"]
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"{path} names {name!r}, which is not a folder beside it")
    return index


def read_lines(path: Path, form: Any = object) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, none if it is not there; ``form`` of each as in ``read_json``.

    Raises:
        ValueError: a line is not a JSON object of this form.
    """
    lines, damaged = whole_lines(path, form)
    if damaged:
        raise ValueError(f"cannot read {path}: line {damaged[0]} is damaged or no JSON object; restore or remove it")
    return lines


def whole_lines(path: Path, form: Any = object) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the objects of a JSON-lines file that have this form, and the numbers, from 1, of all other lines.

    Raises:
        ValueError: the file is there and cannot be read at all.
    """
    if not path.exists():
        return [], []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    lines, damaged = list[dict[str, Any]](), list[int]()
    for number, line in enumerate(content.splitlines(), 1):
        try:
            value = parsed_json(line, constants=False)
        except ValueError:
            value = None
        if isinstance(value, dict) and not _misfit(value, form, ""):
            lines.append(value)
        else:
            damaged.append(number)
    return lines, damaged


def _misfit(value: Any, form: Any, where: str) -> str:
    """Return the fault of a value, "" if it has the form."""
    if isinstance(form, type):
        fits = isinstance(value, (int, float) if form is float else form)
        fits = fits and (form is not float or abs(value) <= sys.float_info.max)
        fits = fits and (form is object or isinstance(value, bool) == (form is bool))
        return "" if fits else f"{where or 'it'} is {json.dumps(value)[:60]}, not {_WORDS.get(form, form.__name__)}"
    if not isinstance(value, type(form)):
        return _misfit(value, type(form), where)
    if isinstance(form, list):
        parts: list[tuple[Any, Any]] = [(i, form[0]) for i in range(len(value))]
    else:
        if missing := [key for key in form if key not in (*value, "*") and not key.endswith("?")]:
            return f"{where or 'it'} has no {missing[0]}"
        parts = [(key, form.get(key, form.get(f"{key}?", form.get("*", object)))) for key in value]
    return next((text for key, part in parts if (text := _misfit(value[key], part, f"{where}.{key}".strip(".")))), "")


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write objects as a JSON-lines file, atomically."""
    write_bytes(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as a safetensors file; not atomic: write into a ``new_folder``.

    Tensors that share memory, as tied weights do, are written one by one: safetensors refuses them as they are.
    """
    with needs("nets", "weights need safetensors"):
        from safetensors.torch import save_file
    written: dict[str, Tensor] = {}
    places = set[int]()
    for name, value in tensors.items():
        kept = value.detach().contiguous().cpu()
        place = kept.untyped_storage().data_ptr()
        written[name] = kept.clone() if place in places else kept
        places.add(place)
    save_file(written, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: the file is missing or damaged.
    """
    with needs("nets", "weights need safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal; the file is read in pieces."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``path`` only when the block ends without an error."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left half written in a folder and in those directly below it.

    The caller holds the folder's lock, so that no process is still writing.
    """
    for path in [*folder.glob(_PARTS), *folder.glob(f"*/{_PARTS}")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system frees it when the process ends, however that ends.

    Raises:
        ValueError: another process holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False, thread_local=False)  # another thread may close a generator
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process is working in {folder}") from error
    try:
        yield
    finally:
        lock.release()
