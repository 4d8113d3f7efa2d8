"""Runs of studies: one that was stopped goes on, and only with the settings that it had."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_of_other_settings_is_none_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    training, trained = import_module("training"), []

    def train(words: Sequence[str], folder: Path) -> Any:
        trained.append([*words])
        folder.mkdir(exist_ok=True)
        (folder / "result.json").write_text('{"score": 1.0}')
        return training.result(folder)

    monkeypatch.setattr(training, "train", train)
    for words in (["seed=0"], ["seed=0"], ["seed=1"]):
        assert training.resumed(words, tmp_path / "run") == {"score": 1.0}
    del sys.modules["training"]
    assert trained == [["seed=0"], ["seed=1"]]
