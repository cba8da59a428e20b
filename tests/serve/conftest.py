"""A tiny encoder and a tiny matcher on the drawn world, behind a client without a socket and behind a real one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

import tagsds
from tagsds.data.vocabulary import load_tokenizer
from tagsds.formats.manifest import read_manifest
from tagsds.models.matchers import MATCHERS
from tests.browser import browser
from tests.trained import save_run

HOME = "http://127.0.0.1"


@pytest.fixture(scope="session")
def encoder_run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tagsdc"
    save_run(folder, world)
    return folder


@pytest.fixture(scope="session")
def matcher_run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "vsrn"
    torch.manual_seed(4)
    tokenizer = load_tokenizer(world / "tokenizer")
    sizes = {"vocab_size": len(tokenizer), "region_dim": read_manifest(world).feature_dim, "word_size": 8, "embed_size": 12}
    kind = MATCHERS["vsrn"]
    kind.model(kind.config(**sizes)).eval().save_pretrained(folder / "export")
    tokenizer.save_pretrained(folder / "export")
    return folder


@pytest.fixture(scope="session")
def encoder(encoder_run: Path, world: Path) -> tagsds.Retriever:
    return tagsds.load(encoder_run, world, "cpu")


@pytest.fixture(scope="session")
def matcher(matcher_run: Path, encoder: tagsds.Retriever) -> tagsds.Retriever:
    return tagsds.load(matcher_run, encoder)


@contextmanager
def listening(app) -> Iterator[str]:
    """The address of a server that runs in a thread as long as the context."""
    import uvicorn

    from tagsds.serve.command import address_of, listen

    with listen("127.0.0.1", 0) as socket:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        end = time.monotonic() + 30
        while not server.started and time.monotonic() < end:
            time.sleep(0.02)
        assert server.started
        try:
            yield address_of(socket)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def live() -> Callable[..., AbstractContextManager[str]]:
    return listening


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where screenshots are kept: the folder TAGSDS_ARTEFACTS, else the test's own."""
    folder = Path(os.environ.get("TAGSDS_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def page(encoder, matcher, live):
    from tagsds.serve.app import make_app
    from tagsds.serve.desk import Desk
    from tagsds.serve.guard import hosts_of
    from tagsds.serve.limits import Limits

    desk = Desk(encoder, matcher, "test", None, Limits(shortlist=8))
    desk.warm()
    with live(make_app(desk, hosts_of("127.0.0.1"))) as address:
        yield address


@pytest.fixture(scope="module")
def driver():
    with browser(1400) as driver:
        yield driver
