"""Worker processes that end with the process that started them, whatever ended it.

A killed command leaves nothing behind.
"""

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable


def pool(workers: int, initializer: Callable | None = None, *arguments) -> concurrent.futures.ProcessPoolExecutor:
    """An executor of so many fresh processes, each of which calls the initializer first.

    All of it must travel to another process.
    """
    return concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, (initializer, arguments)
    )


def _start(initializer: Callable | None, arguments: tuple):
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer:
        initializer(*arguments)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)  # the executor's own loop would wait for work for ever
