"""Worker processes that end with the process that started them.

Imports nothing heavy: a worker imports this module first, and watches its parent from then on.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from hfcompress.errors import HfcompressError

# Seconds that workers have to end after they were asked to.
_GRACE = 2.0


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; ended at once, with their children, where the body is interrupted.

    Raises:
        HfcompressError: the system has no room for them.
    """
    # Spawned: a forked process inherits the state of torch's thread pool, and hangs on it.
    context = multiprocessing.get_context("spawn")
    pool = None
    try:
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
        )
        yield pool
        pool.shutdown()
    except BaseException as error:
        if pool is not None:
            processes = list((getattr(pool, "_processes", None) or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            _end(processes)
        if isinstance(error, OSError):
            raise HfcompressError(
                f"worker processes cannot be started ({error.strerror or error}); use --workers 1, "
                f"or give them room (/dev/shm, open files, memory)"
            ) from error
        raise


def _end(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """End worker processes and the processes that these have started."""
    deadline = time.monotonic() + _GRACE
    for process in processes:
        _signal_group(process, signal.SIGTERM)
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))


def _signal_group(process: multiprocessing.process.BaseProcess, number: int) -> None:
    """Send a signal to a worker's group, or to a worker that has not made its group yet."""
    try:
        if hasattr(os, "killpg") and process.pid is not None:
            os.killpg(process.pid, number)
            return
    except (ProcessLookupError, PermissionError):
        pass
    if process.is_alive():
        process.terminate()


def _start_worker(parent: int) -> None:
    """Give a worker its own process group, and end the group when the parent is gone.

    The terminal's Ctrl-C reaches the parent alone, which ends its workers.
    """
    # A worker that was forked has its parent's handler, and would go on after `terminate`.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    above = multiprocessing.parent_process()
    assert above is not None
    while os.getppid() == parent:
        if multiprocessing.connection.wait([above.sentinel], timeout=1.0):
            break
    if hasattr(os, "killpg"):
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
