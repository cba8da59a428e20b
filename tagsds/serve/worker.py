"""One request at the model at a time: a thread of its own, a bounded queue before it, and a time after which nobody waits. Memory
that the answers have freed goes back to the system while it works."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tagsds.malloc import give_back_freed_memory

T = TypeVar("T")
TIDY_S = 5.0  # of answers between two times that freed memory is given back


class RefusedError(Exception):
    """A request that is not answered: an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Job:
    """One request's work. `waited`: seconds in the queue."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.begun, self.waited = seconds, time.monotonic(), 0.0

    def check(self) -> None:
        """RefusedError where the time is over: called between the parts of long work, so that the model is free for the next."""
        if time.monotonic() - self.begun > self.seconds:
            raise RefusedError(
                504, f"the answer took longer than {self.seconds:g} seconds; ask for less, or start with a longer --timeout."
            )


class Worker:
    """`seconds` of a request, the queue included; `most` requests at the model and before it."""

    def __init__(self, seconds: float, most: int) -> None:
        self.seconds, self.most, self.count = seconds, most, 0
        self._tidied = time.monotonic()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def run(self, work: Callable[[Job], T]) -> T:
        """What `work` returns. RefusedError with 503 where too many wait, with 504 where the time is over."""
        with self._lock:
            if self.count >= self.most:
                raise RefusedError(503, f"{self.count} requests are waiting for the model already; try again in a moment.")
            self.count += 1
        job = Job(self.seconds)
        try:
            future = self._pool.submit(self._do, job, work)
        except RuntimeError as error:  # closed
            self._done(None)
            raise RefusedError(503, "the server is being shut down.") from error
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.seconds + 0.05)
        except TimeoutError:
            job.seconds = 0.0  # what still runs ends at its next check
            raise RefusedError(
                504, f"the answer took longer than {self.seconds:g} seconds; ask for less, or start with a longer --timeout."
            ) from None

    def _do(self, job: Job, work: Callable[[Job], T]) -> T:
        job.waited = time.monotonic() - job.begun
        job.check()
        try:
            return work(job)
        finally:
            if time.monotonic() - self._tidied > TIDY_S:
                give_back_freed_memory()
                self._tidied = time.monotonic()

    def _done(self, _: Future | None) -> None:
        with self._lock:
            self.count -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
