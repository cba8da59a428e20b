"""The files of a checkpoint, written by a thread while training goes on: the loop waits for a copy of the state, not for
the disk."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from tagsds.errors import reason
from tagsds.files import sha256_of


class BackgroundWriter(CheckpointEngine):
    """DeepSpeed's interface for storing a checkpoint. `save` copies the state to the host, `commit` starts the thread that writes
    what was saved since the last one, and `result` waits for it. One checkpoint is written at a time.

    background: False writes in `commit` itself; it needs no memory for a copy.
    """

    def __init__(self, background: bool = True) -> None:
        super().__init__()
        self.name = "background"
        self.background = background
        self._jobs: list[tuple[Any, Path]] = []
        self._thread: threading.Thread | None = None
        self._files: dict[str, list[Any]] = {}
        self._error = ""

    def create(self, info: CheckpointCommitInfo) -> None:
        self._jobs, self._files, self._error = [], {}, ""

    def save(self, state_dict: Any, path: str) -> None:
        self._jobs.append((on_host(state_dict) if self.background else state_dict, Path(path)))

    def load(self, path: str, map_location: Any = None) -> Any:
        """Whoever loads has compared checksums before: a pickle can run code."""
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        if self.background:
            self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self._write()
        return True

    def preserves_storage_sharing(self) -> bool:
        """`save` stores each tensor by itself: nothing has to be cloned before."""
        return False

    @property
    def writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def result(self) -> tuple[dict[str, list[Any]], str]:
        """({name of a file: [bytes, sha256]}, what went wrong or "") of this rank's files; waits for the thread."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self._files, self._error

    def _write(self) -> None:
        try:
            for state, path in self._jobs:
                with open(path, "wb") as stream:
                    torch.save(state, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                self._files[path.name] = [path.stat().st_size, sha256_of(path)]
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            self._error = reason(error)
        finally:
            self._jobs = []


def on_host(state: Any) -> Any:
    """The same nested dicts, lists and tuples with a copy of each tensor on the CPU."""
    if torch.is_tensor(state):
        copied = state.detach().to("cpu", copy=True)
        return copied.clone() if copied.untyped_storage().nbytes() > copied.nbytes else copied
    if isinstance(state, dict):
        return type(state)((key, on_host(value)) for key, value in state.items())
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*map(on_host, state))
    if isinstance(state, list | tuple):
        return type(state)(map(on_host, state))
    return state
