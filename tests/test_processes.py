import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from immiscible_diffusion.processes import results, run_tasks
from tasks import count_slowly, environment_variable, fail_unpicklably, process_and_parent

pytestmark = pytest.mark.medium

PROGRAM = """
import signal, sys, time
from tasks import count_slowly, sleep_then_write
from immiscible_diffusion.processes import run_tasks
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    work, tasks = {
        "generator": (count_slowly, [(sys.argv[2], "a", 100_000)]),
        "function": (sleep_then_write, [(sys.argv[2], "a")]),
    }[sys.argv[1]]
    items = run_tasks(work, tasks, 1)
    if sys.argv[3] == "half read":
        next(items)
    else:
        for news in items:
            print(news.kind, flush=True)
"""


def eventually(holds: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def started(folder: Path, kind: str, how: str = "all") -> "subprocess.Popen[str]":
    """Return a program with a worker that works."""
    (folder / "program.py").write_text(PROGRAM)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, str(folder / "program.py"), kind, str(folder), how],
        env=os.environ | {"PYTHONPATH": paths}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def members(group: int) -> list[int]:
    """Return the processes of a group that still run."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
            pids += [int(path.parent.name)] if int(of) == group and state != "Z" else []
    return pids


def test_a_worker_that_dies_fails_its_task_alone(tmp_path: Path) -> None:
    tasks = [(str(tmp_path), "a", 60, 5), (str(tmp_path), "b", 60), (str(tmp_path), "c", 3), (str(tmp_path), "d", 3)]
    all_news = list(run_tasks(count_slowly, tasks, 2, threads=1))
    ended = {news.task: news for news in all_news if news.kind != "yielded"}
    assert {task: news.kind for task, news in ended.items()} == {
        0: "raised",
        1: "returned",
        2: "returned",
        3: "returned",
    }
    assert "a worker ended with exit code -9" in str(ended[0].value)
    steps = [news.value for news in all_news if news.kind == "yielded" and news.task == 1]
    assert steps == sorted(steps)
    assert len(steps) < 20  # of 60, at most five a second
    said = {name: (tmp_path / f"{name}.txt").read_text().split() for name in "bcd"}
    assert {name: (step, threads) for name, (step, _, threads) in said.items()} == {
        "b": ("60", "1"), "c": ("3", "1"), "d": ("3", "1"),
    }  # fmt: skip
    assert len({pid for _, pid, _ in said.values()}) == 2  # a worker carries out more than one task
    assert not multiprocessing.active_children()


def test_closing_lets_a_generator_end_and_save(tmp_path: Path) -> None:
    all_news = run_tasks(count_slowly, [(str(tmp_path), "a", 100_000), (str(tmp_path), "b", 1)], 1)
    next(all_news)
    all_news.close()
    assert 0 < int((tmp_path / "a.txt").read_text().split()[0]) < 100_000
    assert not (tmp_path / "b.txt").exists()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_an_error_that_cannot_be_sent_is_told_in_its_words() -> None:
    with pytest.raises(RuntimeError, match="UnpicklableError: one and two"):
        list(results(fail_unpicklably, [()], 1))


def test_a_worker_has_the_environment_of_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(results(environment_variable, [("IMMISCIBLE_TEST",)], 1)) == [None]  # a server of processes runs now
    monkeypatch.setenv("IMMISCIBLE_TEST", "later")
    assert list(results(environment_variable, [("IMMISCIBLE_TEST",)], 1)) == ["later"]


@pytest.mark.skipif(sys.platform != "linux", reason="processes start empty elsewhere")
def test_workers_are_copies_of_one_server_that_is_not_this_process() -> None:
    (first, server), (second, same) = (next(results(process_and_parent, [()], 1)) for _ in range(2))
    assert first != second
    assert same == server != os.getpid()


@pytest.mark.parametrize("kind", ["generator", pytest.param("function", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_no_worker_outlives_a_killed_parent(tmp_path: Path, kind: str) -> None:
    program = started(tmp_path, kind)
    if kind == "generator":
        assert program.stdout is not None
        assert program.stdout.readline() == "yielded\n"
    else:
        assert eventually((tmp_path / "a.begun").exists)
    assert members(program.pid)
    program.kill()
    program.communicate()
    assert eventually(lambda: not members(program.pid), 8)
    assert (tmp_path / "a.txt").exists() == (kind == "generator")  # which saves; the other is cut off


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_all_lets_a_generator_save_without_a_traceback_of_the_worker(tmp_path: Path, number: int) -> None:
    program = started(tmp_path, "generator")
    assert program.stdout is not None
    assert program.stdout.readline() == "yielded\n"
    os.killpg(program.pid, number)
    err = program.communicate(timeout=60)[1]
    assert eventually(lambda: not members(program.pid), 8)
    assert err.count("Traceback") == (number == signal.SIGINT)  # of the parent, which does not catch it
    assert (tmp_path / "a.txt").exists()


@pytest.mark.slow
def test_a_program_may_end_with_tasks_half_read(tmp_path: Path) -> None:
    program = started(tmp_path, "generator", "half read")
    assert program.communicate(timeout=60) == ("", "")
    assert program.returncode == 0
    assert (tmp_path / "a.txt").exists()
