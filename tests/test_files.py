"""The lock of a folder: one process at a time, and none once that process is gone."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from immiscible_diffusion import files
from immiscible_diffusion.cache import alone_in_cache, cache_folder, keep_in_cache
from immiscible_diffusion.files import locked

pytestmark = pytest.mark.medium

HOLDER = """
import sys, time
from pathlib import Path
from immiscible_diffusion.files import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


Lock = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def exists_lock(folder: Path) -> Iterator[None]:
    """Take a lock file that exists for a lock that is held: the usual mistake."""
    if (folder / ".lock").exists():
        raise ValueError(f"another process is working in {folder}")
    yield


def refuses(lock: Lock, folder: Path) -> bool:
    """Return whether a lock refuses the folder, with its one message."""
    try:
        with lock(folder):
            return False
    except ValueError as error:
        return str(error) == f"another process is working in {folder}"


def test_a_folder_is_held_by_one_process_and_free_after_its_death(tmp_path: Path) -> None:
    """Two broken locks are the controls: one that never refuses, and one that a dead process leaves behind."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        locks: list[Lock] = [locked, exists_lock, lambda _: nullcontext()]
        assert [refuses(lock, tmp_path) for lock in locks] == [True, True, False]
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / ".lock").exists()
    assert [refuses(lock, tmp_path) for lock in locks] == [False, True, False]


def keep_three_times() -> None:
    for _ in range(3):
        keep_in_cache(cache_folder() / "thing", b"content")


@pytest.mark.parametrize("place", ["below a file", "read-only"])
def test_a_cache_that_cannot_be_written_is_told_once_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" if place == "below a file" else "/proc"))
    with pytest.warns(UserWarning, match="Set XDG_CACHE_HOME") as told:
        keep_three_times()
    assert len(told) == 1


def test_a_kept_file_of_the_cache_is_written_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the above."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_in_cache(cache_folder() / "thing", b"content")
    assert (tmp_path / "immiscible-diffusion" / "thing").read_bytes() == b"content"


def test_one_at_a_time_makes_a_file_of_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "thing.safetensors"
    with alone_in_cache(path), pytest.raises(Timeout):
        FileLock(path.with_suffix(".lock"), timeout=0).acquire()
    FileLock(path.with_suffix(".lock"), timeout=0).acquire()
    (tmp_path / "file").write_text("")
    with alone_in_cache(tmp_path / "file" / "thing"):  # a cache that cannot be written keeps nobody waiting
        pass


@pytest.mark.parametrize(
    "text", ["null", "[]", '{"runs": 3}', '{"runs": [3]}', '{"runs": [{"arm": "a"}]}', '{"experiment": "e"}', "{"]
)
def test_an_index_of_another_form_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json"):
        files.read_index(tmp_path)


@pytest.mark.parametrize("line", ["null", "[1]", "3", '{"step": 1', "\x00", '{"step": 1, "loss": NaN}', "[" * 10**5])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2 is damaged or no JSON object"):
        files.read_lines(tmp_path / "log.jsonl")
    assert files.whole_lines(tmp_path / "log.jsonl") == ([{"step": 1}], [2])


FORM = {"a": int, "b": [{"c": str, "e?": {"*": str}}], "d": {"*": float}}
GOOD = {"a": 1, "b": [{"c": "x", "more": None}], "d": {"any": 1, "other": 0.5}, "more": []}
MISFITS = {
    "a is 1.5, not a whole number": {**GOOD, "a": 1.5},
    "a is true, not a whole number": {**GOOD, "a": True},
    "it has no a": {"b": [], "d": {}},
    "b is {}, not a list": {**GOOD, "b": {}},
    "b.1 is null, not a table": {**GOOD, "b": [{"c": "x"}, None]},
    "b.0 has no c": {**GOOD, "b": [{}]},
    "b.0.c is 3, not a text": {**GOOD, "b": [{"c": 3}]},
    "b.0.e is [], not a table": {**GOOD, "b": [{"c": "x", "e": []}]},
    "b.0.e.f is 1, not a text": {**GOOD, "b": [{"c": "x", "e": {"f": 1}}]},
    'd.x is "1", not a number': {**GOOD, "d": {"x": "1"}},
    f"d.x is 1{'0' * 59}, not a number": {**GOOD, "d": {"x": 10**400}},
    "it is [], not a table": [],
}


@pytest.mark.parametrize("problem", list(MISFITS))
def test_a_value_of_another_form_is_named(tmp_path: Path, problem: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(MISFITS[problem]))
    with pytest.raises(ValueError, match=re.escape(f"another kind: {problem}; ")):
        files.read_json(tmp_path / "x.json", FORM)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1e999}', '{"a": -Infinity}', "[" * 10**5, '{"a":' * 10**5])
def test_what_is_no_json_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json.* (is no JSON|not a number|nested too deeply)"):
        files.read_json(tmp_path / "x.json", {"a": float})


def test_constants_of_other_programs_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"lambda_min_clipped": -Infinity}')
    assert files.read_json(tmp_path / "x.json") == {"lambda_min_clipped": float("-inf")}


def test_a_value_of_the_form_is_returned(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(GOOD))
    assert files.read_json(tmp_path / "x.json", FORM) == GOOD
