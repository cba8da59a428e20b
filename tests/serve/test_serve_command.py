"""The queue before the model, what the command line refuses, and the command as a process."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.request import urlopen

import pytest

from tagsds.commands_page import COMMANDS
from tagsds.errors import UserError
from tagsds.serve import command
from tagsds.serve.desk import Desk
from tagsds.serve.guard import Guard, hosts_of, name_of
from tagsds.serve.limits import Limits
from tagsds.serve.worker import RefusedError, Worker
from tests.launch import ROOT


def test_one_at_a_time_and_no_more_than_the_queue_holds():
    running, most, gate = 0, 0, threading.Event()

    def work(job):
        nonlocal running, most
        running += 1
        most = max(most, running)
        gate.wait(10)
        running -= 1
        return job.waited

    async def ask():
        worker = Worker(seconds=20, most=3)
        asked = [asyncio.create_task(worker.run(work)) for _ in range(5)]
        await asyncio.sleep(0.1)
        assert worker.count == 3
        gate.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert worker.count == 0
        return answers, await worker.run(lambda job: "free again")

    answers, last = asyncio.run(ask())
    refused = [answer for answer in answers if isinstance(answer, RefusedError)]
    assert most == 1 and last == "free again"
    assert len(refused) == 2 and all(one.status == 503 and "waiting for the model" in one.sentence for one in refused)
    assert sorted(answer for answer in answers if isinstance(answer, float))[-1] > 0.05  # seconds in the queue


def test_nobody_waits_longer_than_the_limit_and_long_work_ends():
    answered, ended = threading.Event(), []

    def work(job):
        answered.wait(10)
        try:
            job.check()
        except RefusedError as error:
            ended.append(error.status)
            raise

    async def ask():
        worker = Worker(seconds=1, most=4)
        asked = [worker.run(work), worker.run(lambda job: ended.append("never begun"))]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        answered.set()
        assert await worker.run(lambda job: 3) == 3
        assert worker.count == 0
        worker.close()
        with pytest.raises(RefusedError, match="shut down"):
            await worker.run(lambda job: 3)
        return answers

    answers = asyncio.run(ask())
    assert all(isinstance(answer, RefusedError) and answer.status == 504 for answer in answers)
    assert "took longer than 1 seconds" in str(answers[0]) and ended == [504]


def test_a_search_looks_at_the_clock(encoder):
    """A search that takes too long is refused between its parts, and the next request is answered."""
    from fastapi.testclient import TestClient

    from tagsds.serve.app import make_app

    desk = Desk(encoder, None, "test", None, Limits(seconds=0.3))
    asked, known = {"sentence": "a red circle", "k": 1}, encoder.search
    with TestClient(make_app(desk), base_url="http://127.0.0.1") as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr("tagsds.serve.desk.BLOCK", 1)
        patch.setattr(encoder, "search", lambda *a, **b: (time.sleep(0.1), known(*a, **b))[1])
        refused = client.post("/api/find/images", json=asked)
        assert refused.status_code == 504 and refused.json()["error"].startswith("the answer took longer than 0.3 seconds")
        patch.undo()
        time.sleep(0.2)
        assert client.post("/api/find/images", json=asked).status_code == 200


def test_a_body_that_does_not_arrive():
    async def ask():
        sent = []

        async def receive():
            await asyncio.sleep(10)

        async def send(message):
            sent.append(message)

        async def app(*_):
            raise AssertionError("not asked")

        scope = {"type": "http", "method": "POST", "headers": [(b"host", b"localhost")]}
        await Guard(app, hosts_of("127.0.0.1"), 100, 0.05)(scope, receive, send)
        return sent

    begin, body = asyncio.run(ask())
    assert begin["status"] == 408 and "did not arrive within 0.05 seconds" in json.loads(body["body"])["error"]


def test_hosts_by_hand():
    assert hosts_of("127.0.0.1")[:3] == ("localhost", "127.0.0.1", "::1") and "127.0.0.5" in hosts_of("127.0.0.5")
    assert hosts_of("localhost") and hosts_of("::1") and not hosts_of("0.0.0.0") and not hosts_of("lab.example")
    assert [name_of(host) for host in ("Localhost:80", "127.0.0.1", "[::1]:8000", "")] == ["localhost", "127.0.0.1", "::1", ""]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--shortlist", "0"], "--shortlist is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--queue", "0"], "--queue is 0"),
        (["--timeout", "0"], "--timeout is 0"),
        (["--timeout", "inf"], "--timeout is inf"),
        (["--cache-mib", "-1"], "--cache-mib is -1"),
        (["--port", "70000"], "--port is 70000"),
        (["--host", "no.such.host.invalid"], "is no address of this machine"),
        (["--port", "0"], "none does not exist"),
    ],
)
def test_what_the_command_refuses(words, says, tmp_path):
    with pytest.raises(UserError, match=re.escape(says)):
        command.run(["--checkpoint", str(tmp_path / "none"), "--data", str(tmp_path), *words])


def test_a_port_in_use_and_packages_that_are_missing(tmp_path, monkeypatch):
    common = ["--checkpoint", str(tmp_path), "--data", str(tmp_path)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port {port} of 127.0.0.1 cannot be used \(.*\); give another --port"):
            command.run([*common, "--port", str(port)])
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "fastapi" else object())
    with pytest.raises(UserError, match=r"^tagsds-serve needs fastapi; install with `pip install 'tagsds\[serve\]'`.$"):
        command.run(common)
    assert COMMANDS["tagsds-serve"] == "tagsds.serve.command"


def test_a_matcher_must_be_one(encoder_run, world):
    words = ["--checkpoint", str(encoder_run), "--data", str(world), "--matcher", str(encoder_run), "--port", "0"]
    with pytest.raises(UserError, match="is the pair encoder; give a run of VSRN, SCAN or BFAN"):
        command.run(words)


def test_the_command_serves_until_it_is_interrupted(encoder_run, world):
    words = ["--checkpoint", encoder_run, "--data", world, "--port", "0", "--no-browser", "--threads", "1", "--device", "cpu"]
    started = subprocess.Popen(
        [sys.executable, "-m", "tagsds.serve.command", *map(str, words)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        assert started.stdout.readline().startswith("20 images and 100 captions of ")
        line = started.stdout.readline()
        found = re.fullmatch(r"open (http://127\.0\.0\.1:\d+/) \(API: .*api\); Ctrl\+C ends it\n", line)
        assert found, line
        with urlopen(f"{found[1]}api/about", timeout=20) as answer:
            assert json.load(answer)["images"] == 20
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=30)
        assert started.returncode == 0 and "Traceback" not in said
    finally:
        if started.poll() is None:
            started.kill()
            started.wait()
