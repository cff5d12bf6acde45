"""Work one or a few steps ahead of whoever consumes it, on one background thread."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def work_ahead(work: Callable[[Item], Result], items: Iterable[Item], depth: int = 1) -> Generator[Result, None, None]:
    """Yield ``work(item)`` in order, with up to ``depth`` further items under way or done.

    An error of ``work`` is raised where its result would be. Closing the iterator waits for the item under way.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        try:
            for item in items:
                pending.append(thread.submit(work, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
