"""Work for processes in tests: functions that a worker process can import."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import torch


def count_slowly(folder: str, name: str, steps: int, die_at: int = -1) -> Iterator[int]:
    """Yield 1 .. steps, and write how far it came when it ends; die at a step if asked."""
    step = 0
    try:
        for step in range(1, steps + 1):
            if step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
            yield step
    finally:
        Path(folder, f"{name}.txt").write_text(f"{step} {os.getpid()} {torch.get_num_threads()}")


def sleep_then_write(folder: str, name: str) -> None:
    """Say that it began, sleep for ten seconds and write a file."""
    Path(folder, f"{name}.begun").write_text("")
    time.sleep(10)
    Path(folder, f"{name}.txt").write_text("")


class UnpicklableError(Exception):
    """An error that cannot be read back from its pickle."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def fail_unpicklably() -> None:
    """Raise an error that cannot be sent."""
    raise UnpicklableError("one", "two")


def environment_variable(name: str) -> str | None:
    return os.environ.get(name)


def process_and_parent() -> tuple[int, int]:
    return os.getpid(), os.getppid()
