"""Work in other processes that gives the same bytes as in this one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

import torch

__all__ = ["elsewhere", "one_thread"]

T = TypeVar("T")


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


def elsewhere(work: Callable[..., T], tasks: Sequence[tuple[Any, ...]], workers: int) -> Iterator[T]:
    """Yield ``work(*task)`` of every task as they end, from this many fresh processes, each with its share of tasks.

    They end with the iterator, however it ends, and with this process, were it killed.

    Raises:
        Exception: what work raised.
        RuntimeError: a process died.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in mid-air
    processes: list[Any] = []
    working: dict[Connection[Any, Any], Any] = {}
    try:
        for first in range(min(workers, len(tasks))):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(work, tasks[first::workers], sender))
            process.start()
            sender.close()
            processes.append(process)
            working[receiver] = process
        while working:
            for ready in wait(list(working)):
                receiver = cast("Connection[Any, Any]", ready)
                try:
                    failed, value = receiver.recv()
                except EOFError:  # it has ended
                    process = working.pop(receiver)
                    process.join()
                    if process.exitcode:
                        raise RuntimeError(
                            f"a worker ended with exit code {process.exitcode}; "
                            "-9 is often a want of memory: try fewer workers or a smaller batch"
                        ) from None
                    continue
                if failed:
                    raise value
                yield value
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _serve(work: Callable[..., T], tasks: Sequence[tuple[Any, ...]], sender: "Connection[Any, Any]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    for task in tasks:
        try:
            answer: tuple[bool, Any] = (False, work(*task))
        except Exception as error:
            answer = (True, error)
        sender.send(answer)
        if answer[0]:
            return


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
