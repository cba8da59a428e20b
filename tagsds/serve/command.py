"""A page in the browser on a trained checkpoint: find pictures by a sentence and sentences by a picture, proofread, write
negatives, and see which regions a word stands for. The same answers as JSON under /api.

    tagsds-serve --checkpoint RUN --data SHARDS [--split test] [--matcher RUN --shortlist 50]
    tagsds-serve --checkpoint RUN --data SHARDS --pictures FOLDER --port 8080

It listens on this machine alone unless --host says otherwise, and loads nothing from other hosts. It needs
`pip install 'tagsds[serve]'`.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tagsds.errors import UserError, command, reason
from tagsds.serve.limits import Limits

if TYPE_CHECKING:
    from tagsds.serve.desk import Desk

PACKAGES = ("fastapi", "uvicorn")
CONNECTIONS = 1000  # at once


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    first = Limits()
    parser = argparse.ArgumentParser(prog="tagsds-serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a training run or its export, best a TAGS-DC encoder's")
    parser.add_argument("--data", type=Path, required=True, help="folder of packed shards")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--matcher", type=Path, metavar="RUN", help="a run of VSRN, SCAN or BFAN, whose shortlist the encoder reads"
    )
    parser.add_argument("--shortlist", type=int, default=first.shortlist, metavar="K", help="images or captions of that list")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="picture files named by key (otherwise those of the shards)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: every machine can reach it")
    parser.add_argument("--port", type=int, default=8000, help="0: one that is free")
    parser.add_argument("--device", help="cpu, cuda ... (otherwise a GPU where there is one)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the model on a CPU (otherwise all)")
    parser.add_argument("--timeout", type=float, default=first.seconds, metavar="S", help="seconds in which a request is answered")
    parser.add_argument(
        "--queue", type=int, default=first.waiting, metavar="N", help="requests that wait for the model; one more gets 503"
    )
    parser.add_argument("--cache-mib", type=int, default=first.cache_mib, metavar="N", help="pictures kept in memory")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    options = parser.parse_args(arguments)
    for name in ("shortlist", "threads", "queue"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; give a whole number of at least 1.")
    if not 0 < options.timeout < float("inf"):
        raise UserError(f"--timeout is {options.timeout:g}; give seconds above zero.")
    if options.cache_mib < 0:
        raise UserError(f"--cache-mib is {options.cache_mib}; give 0 or more.")
    if not 0 <= options.port < 1 << 16:
        raise UserError(f"--port is {options.port}; give a number from 0 to 65535.")
    return options


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, or UserError: before the model is loaded, which takes a while."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise UserError(f"--host {host} is no address of this machine ({reason(error)}); give 127.0.0.1 or one that is.") from error
    listening = socket.socket(family, kind, number)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UserError(
            f"port {port} of {host} cannot be used ({reason(error)}); give another --port, or 0 for a free one."
        ) from error
    return listening


def address_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"tagsds-serve needs {' and '.join(missing)}; install with `pip install 'tagsds[serve]'`.")


def open_desk(options: argparse.Namespace) -> Desk:
    """The models and the corpus, loaded."""
    import torch

    import tagsds
    from tagsds.serve.desk import Desk

    if options.threads:
        torch.set_num_threads(options.threads)
    encoder = tagsds.load(options.checkpoint, options.data, options.device, split=options.split)
    matcher = tagsds.load(options.matcher, encoder) if options.matcher else None
    if matcher is not None and matcher.encodings is None:
        raise UserError(f"--matcher {options.matcher} is {matcher.model.kind}; give a run of VSRN, SCAN or BFAN.")
    limits = Limits(options.timeout, options.queue, options.shortlist, options.cache_mib)
    desk = Desk(encoder, matcher, options.split, options.pictures, limits)
    desk.warm()
    return desk


def has_display() -> bool:
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def run(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    check_packages()
    listening = listen(options.host, options.port)
    with listening:
        desk = open_desk(options)

        import uvicorn

        from tagsds.serve.app import make_app
        from tagsds.serve.guard import hosts_of

        settings = uvicorn.Config(
            make_app(desk, hosts_of(options.host)), log_level="warning", access_log=False, limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=5, server_header=False, lifespan="on",
        )  # fmt: skip
        about, address = desk.about(), address_of(listening)
        print(f"{about.images} images and {about.captions} captions of {options.data}, read by {options.checkpoint}", flush=True)
        print(f"open {address} (API: {address}api); Ctrl+C ends it", flush=True)
        if not options.no_browser and has_display():
            webbrowser.open(address)
        try:
            uvicorn.Server(settings).run(sockets=[listening])
        except KeyboardInterrupt:
            pass


main = command(run)

if __name__ == "__main__":
    main()
