"""Programs as the tests call them: a script that is in no package, and a console command that refuses its options."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def script(path: str) -> ModuleType:
    """The module of a Python file of the repository that no package holds (docs/hooks.py)."""
    spec = importlib.util.spec_from_file_location(path.removesuffix(".py").replace("/", "_"), ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refusal(main: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command says on stderr that ends with status 2, one error and no traceback."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and message.count("error: ") == 1
    return message
