"""One run a folder: a lock that a process holds as long as it lives, and no longer."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO

from tagsds.errors import UserError, reason
from tagsds.ranks import World

LOCK = ".lock"


def lock_output(output: Path, world: World) -> IO[str] | None:
    """Claim an output folder for this run until the process of rank 0 ends, however it ends; keep what is returned. UserError, on
    all ranks, where another living run has it. A POSIX record lock, which NFS knows between machines; on a file system without
    locks the run goes on and says so. Collective."""
    stream, why = None, ""
    if world.is_main:
        path = output / LOCK
        try:
            output.mkdir(parents=True, exist_ok=True)
            stream = open(path, "a+", encoding="utf-8")
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stream.truncate(0)
            job = os.environ.get("SLURM_JOB_ID", "")
            stream.write(json.dumps({"host": os.uname().nodename, "pid": os.getpid(), **({"job": job} if job else {})}))
            stream.flush()
        except (BlockingIOError, PermissionError) as error:
            if stream is None:
                why = f"{output} cannot be written ({error.strerror}); name another --output."
            else:
                why = f"{output} belongs to a run that is going on ({holder(path)}); wait for its end, or name another --output."
        except OSError as error:
            if stream is None:
                why = f"{output} cannot be written ({reason(error)}); name another --output."
            else:
                print(f"{output}: its file system has no locks ({error.strerror}); see to it that one run at a time writes there.")
    if why := world.agree_on_text(why):
        raise UserError(why)
    return stream


def holder(path: Path) -> str:
    """Who holds a lock, in words."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']}" + (f", job {who['job']}" if "job" in who else "")
    except (OSError, ValueError, KeyError, TypeError):
        return "its process has not said which it is"
