"""The lock of a folder: one process at a time, and none once that process is gone."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

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
