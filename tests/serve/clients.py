"""A client without a socket."""

from __future__ import annotations

from tests.serve.conftest import HOME


def client_of(desk, hosts=("127.0.0.1",)):
    from fastapi.testclient import TestClient

    from tagsds.serve.app import make_app

    return TestClient(make_app(desk, hosts), base_url=HOME, raise_server_exceptions=False)


def ok(response):
    assert response.status_code == 200, response.text
    return response.json()
