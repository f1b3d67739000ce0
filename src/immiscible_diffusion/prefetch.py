"""Work done one item ahead, in a background thread: a pairing is ready before the training step needs it."""

import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from immiscible_diffusion.checks import check_whole

__all__ = ["ahead"]

T = TypeVar("T")
_END = object()


def ahead(iterable: Iterable[T], depth: int = 1) -> Generator[T, None, None]:
    """Yield the same items in the same order, each made in a background thread before it is asked for.

    For any training loop: ``for x, noise in ahead((x, couple(x, generator=g)) for x in loader)``. A coupling needs
    neither the net nor a gradient, and the solvers of the assignment release Python's lock, so that it costs the loop
    nothing as long as it is shorter than a step and a core is free.

    What makes the items runs in one thread of its own, from the first item asked for until the last, an exception, or
    ``close()``; leaving the loop closes it too, once nothing refers to it. It must draw from generators of its own, not
    from the global one, which the loop uses at the same time. Contexts such as ``torch.no_grad``, ``torch.autocast``
    and the current CUDA device are a thread's own: set them where the items are made. There, operators of torch use as
    many threads again as ``torch.get_num_threads()`` says.

    Args:
        iterable: what makes the items; read by no one else.
        depth: how many items are made in advance.

    Raises:
        ValueError: depth is less than one.
        Exception: what the iterable raises, at the item that it failed to make.

    >>> [x * x for x in ahead(range(4))]
    [0, 1, 4, 9]
    """
    check_whole(depth=depth)
    return _run(iterable, depth)


def _run(iterable: Iterable[T], depth: int) -> Generator[T, None, None]:
    worker, ident = ThreadPoolExecutor(1, thread_name_prefix="ahead"), threading.get_ident
    thread = worker.submit(ident).result()
    pending: deque[Future[Any]] = deque()
    try:
        iterator: Any = worker.submit(iter, iterable).result()
        pending.extend(worker.submit(next, iterator, _END) for _ in range(depth))
        while (item := pending.popleft().result()) is not _END:
            pending.append(worker.submit(next, iterator, _END))
            yield item
    finally:
        # This may run in the worker itself, which cannot wait for itself, if the garbage collector does so there, and
        # at the very end of a program, when modules are gone.
        for future in pending:
            future.cancel()
        worker.shutdown(wait=ident() != thread)
