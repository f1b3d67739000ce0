"""Tasks in worker processes. One worker that dies fails one task, and no worker outlives this process."""

import atexit
import inspect
import multiprocessing
import multiprocessing.resource_tracker as resource_tracker
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import torch

__all__ = [
    "News",
    "end_with_the_parent",
    "on_stop_signals",
    "one_thread",
    "process_context",
    "results",
    "run_tasks",
    "without_interrupts",
]

T = TypeVar("T")
if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    _Pipe = Connection[Any, Any]
else:
    _Pipe = Connection  # which cannot be subscripted
_NEWS_EVERY = 0.2
"""Seconds between two messages of a task; what it yields sooner is not sent."""
_HEAVY = "torch", "scipy.stats", "sklearn.datasets", "diffusers.models"
"""Modules that take seconds to import, and start neither threads nor a device."""


def process_context() -> "ForkServerContext | SpawnContext":
    """Return the way to start processes: on Linux by a server that has imported once what this process has.

    The server never computes, so that its copies are clean: a plain fork would copy torch's threads in mid-air. Torch
    and diffusers take seconds to import, a copy of the server milliseconds. Elsewhere every process starts empty.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in _HEAVY if name in sys.modules])  # where it does not run already
    return context


class News(NamedTuple):
    """Something that a task did: it yielded a value, returned one, or raised an error."""

    task: int
    kind: Literal["yielded", "returned", "raised"]
    value: Any


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread, for sums depend on their split; on a GPU with deterministic kernels and no TF32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.set_num_threads(threads)


def on_stop_signals(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Handle requests to terminate and a closed terminal, unless they are ignored as under ``nohup``.

    Returns:
        The handlers before, by the number of the signal.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in handled}


def results(work: Callable[..., T], tasks: Sequence[tuple[Any, ...]], workers: int) -> Generator[T, None, None]:
    """Yield ``work(*task)`` of every task as they end, from worker processes.

    Raises:
        Exception: what work raised.
        RuntimeError: a process died.
    """
    with closing(run_tasks(work, tasks, workers)) as all_news:
        for news in all_news:
            if news.kind == "raised":
                raise news.value
            yield news.value


def run_tasks(
    work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], workers: int, *, threads: int | None = None
) -> Generator[News, None, None]:
    """Call ``work(*task)`` for every task, in order, in this many fresh processes, and yield what becomes of them.

    A worker takes one task after the other. If it dies, its task has ``raised`` a RuntimeError, and a new worker goes
    on with the tasks that are left. Closing this generator, Ctrl-C and the end of this process, even by ``kill -9``,
    end the workers. ``work`` may be a generator function: then it ends at its next ``yield``, where it is closed and
    may save what it has; what it yields is sent at most five times a second. Any other function is cut off.

    Args:
        work: a function that can be imported, or a method of an object that can be pickled.
        tasks: the arguments of each call.
        workers: processes at a time.
        threads: CPU threads of torch in each worker; torch's default if None.
    """
    waiting, running = deque(range(len(tasks))), dict[_Pipe, tuple[BaseProcess, int]]()
    end = partial(_end, running, work)
    atexit.register(end)  # where a program ends with this generator half read
    try:
        for _ in range(min(workers, len(tasks))):
            _start(running, work, tasks, waiting.popleft(), threads)
        while running:
            for ready in wait(list(running)):
                connection = cast(_Pipe, ready)
                process, task = running[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, ConnectionResetError):
                    del running[connection]
                    connection.close()
                    process.join()
                    kind, value = "raised", RuntimeError(_death(process.exitcode))
                    if waiting:
                        _start(running, work, tasks, waiting.popleft(), threads)
                else:
                    if kind != "yielded":
                        _next(running, connection, tasks, waiting)
                yield News(task, kind, value)
    finally:
        atexit.unregister(end)
        end()


def _end(running: dict[_Pipe, tuple[BaseProcess, int]], work: Callable[..., Any]) -> None:
    """End the workers: a closed connection is their sign to stop, which a plain function does not look at."""
    for connection in running:
        connection.close()
    workers = [process for process, _ in running.values()]
    try:
        for process in workers:
            if not inspect.isgeneratorfunction(work):
                process.kill()
            process.join()
    except KeyboardInterrupt:  # a second one: stop now
        for process in workers:
            process.kill()
            process.join()
        raise


def _start(
    running: dict[_Pipe, tuple[BaseProcess, int]],
    work: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    task: int,
    threads: int | None,
) -> None:
    """Start a worker with its first task."""
    context = process_context()
    here, worker_end = context.Pipe()
    process = context.Process(target=_serve, args=(work, worker_end, threads, dict(os.environ)))
    with without_interrupts():
        process.start()
    worker_end.close()
    running[here] = process, task
    _send(here, tasks[task])


def _next(
    running: dict[_Pipe, tuple[BaseProcess, int]],
    connection: _Pipe,
    tasks: Sequence[tuple[Any, ...]],
    waiting: deque[int],
) -> None:
    """Hand a worker its next task, or let it go if none is left."""
    process, _ = running[connection]
    if waiting:
        task = waiting.popleft()
        running[connection] = process, task
        _send(connection, tasks[task])
        return
    del running[connection]
    connection.close()
    process.join()


def _send(connection: _Pipe, task: tuple[Any, ...]) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the worker is dead, which receiving from it shows
        connection.send_bytes(pickle.dumps(task))


def _death(exitcode: int | None) -> str:
    return (
        f"a worker ended with exit code {exitcode}; -9 is often a want of memory: try fewer workers or a smaller batch"
    )


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold back Ctrl-C; a process started here never gets it, but learns from its parent that it is to stop."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # or the first start would do that, and let Ctrl-C through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Callable[..., Any], parent: _Pipe, threads: int | None, environment: dict[str, str]) -> None:
    """Carry out the tasks that the parent sends, in its environment of today: the server's may be older."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threads is not None:
        torch.set_num_threads(threads)
    terminated = threading.Event()
    if inspect.isgeneratorfunction(work):
        on_stop_signals(lambda *_: terminated.set())
    else:
        end_with_the_parent()
    try:
        while True:
            task = pickle.loads(parent.recv_bytes())  # noqa: S301
            try:
                answer = "returned", _carry_out(work, task, parent, terminated)
            except Exception as error:
                answer = "raised", _portable(error)
            if terminated.is_set():
                sys.exit(128 + signal.SIGTERM)
            parent.send(answer)
    except (EOFError, OSError):  # the parent has no more tasks, or is gone
        return


def _carry_out(work: Callable[..., Any], task: tuple[Any, ...], parent: _Pipe, terminated: threading.Event) -> Any:
    """Run the work and return its result; of a generator send each yielded value, and close it on a request to stop.

    Raises:
        OSError: the parent has closed the connection.
    """
    if not inspect.isgeneratorfunction(work):
        return work(*task)
    sent = 0.0
    with closing(work(*task)) as steps:
        for value in steps:
            if terminated.is_set() or parent.poll():  # nothing comes in mid-task but the end of the connection
                break
            if time.monotonic() - sent > _NEWS_EVERY:
                sent = time.monotonic()
                parent.send(("yielded", value))
    return None


def _portable(error: Exception) -> Exception:
    """Return the error, or its text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def end_with_the_parent(_worker: int = 0) -> None:
    """End this process as soon as the one that started it is gone, even by ``kill -9``; call it in a worker.

    torch's loader looks at the parent's number alone: of a copy of the server that is the server, which lives on while
    a copy does. The argument is the number that torch's loader gives a worker.
    """
    threading.Thread(target=_wait_for_the_parents_end, daemon=True).start()


def _wait_for_the_parents_end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
