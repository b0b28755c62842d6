"""Seconds of a benchmark's work, those before it was killed among them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.scripts import benchmark


def test_seconds_of_a_try_that_was_cut_off_count(tmp_path: Path) -> None:
    clock, path = benchmark("clock"), tmp_path / "work.seconds"
    with pytest.raises(KeyboardInterrupt), clock.Clock(path):
        raise KeyboardInterrupt
    assert float(path.read_text()) >= 0
    path.write_text("1000.0")
    with clock.Clock(path) as again:
        assert again.seconds >= 1000
    assert float(path.read_text()) >= 1000
    again.forget()
    assert not path.exists()


def test_seconds_are_written_while_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, path = benchmark("clock"), tmp_path / "work.seconds"
    monkeypatch.setattr(clock, "EVERY", 0.01)
    with clock.Clock(path):
        for _ in range(1000):
            if path.exists() and float(path.read_text()) > 0.02:
                break
            time.sleep(0.01)
        assert float(path.read_text()) > 0.02
