"""Options as TOML: what is written is read again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from de_plugin.config import read, save, written
from de_plugin.errors import ArgumentError, FileError

TEXTS = st.text(st.characters(codec="utf-8"))
KINDS: dict[str, Any] = {
    "model": str,
    "checkpoint": Path | None,
    "seeds": list[str] | None,
    "sparsity": list[float],
    "budget": int,
    "seconds": float | None,
    "plain": bool,
}
OPTIONS = {
    "model": TEXTS,
    "seeds": st.lists(TEXTS),
    "sparsity": st.lists(st.floats(allow_nan=False)),
    "budget": st.integers(-(2**60), 2**60),
    "seconds": st.floats(allow_nan=False),
    "plain": st.booleans(),
}


@given(st.fixed_dictionaries({}, optional=OPTIONS))
def test_what_is_written_is_read_again(options: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.toml"
        save(path, options)
        assert read(path, KINDS) == options


def test_what_is_no_option_or_no_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    with pytest.raises(FileError, match="cannot be read .*expected TOML"):
        read(path, KINDS)
    with pytest.raises(FileError, match="cannot be read"):
        read(tmp_path, KINDS)
    path.write_text("model =")
    with pytest.raises(FileError, match="cannot be read"):
        read(path, KINDS)
    path.write_bytes(b"\xff")
    with pytest.raises(FileError, match="cannot be read"):
        read(path, KINDS)
    path.write_text('modle = "lenet5"')
    with pytest.raises(ArgumentError, match="'modle' is no option; there are data, model"):
        read(path, {"model": str, "data": str})
    path.write_text("batch-size = 3")
    assert read(path, {"batch_size": int}) == {"batch_size": 3}
    path.write_text("batch-size = 3\nbatch_size = 4")
    with pytest.raises(ArgumentError, match="twice"):
        read(path, {"batch_size": int})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model = 3", "x.toml: model = 3: expected text in quotes"),
        ("checkpoint = 3", "checkpoint = 3: expected a path in quotes"),
        ("budget = 1.5", "budget = 1.5: expected a whole number"),
        ("budget = true", "budget = true: expected a whole number"),
        ('seconds = "few"', "seconds = 'few': expected a number"),
        ("plain = 1", "plain = 1: expected true or false"),
        ('sparsity = [0.5, "half"]', "expected a list, each of it a number"),
        ("seeds = [[1]]", "expected a list, each of it text in quotes"),
        ("model = 1979-05-27", "expected text in quotes"),
        ("[budget]", "budget = {}: expected a whole number"),
    ],
)
def test_a_value_of_another_type_is_refused(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(line)
    with pytest.raises(ArgumentError) as caught:
        read(path, KINDS)
    assert message in str(caught.value)


def test_what_means_the_same_may_be_written_shorter(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("seeds = 1\nsparsity = 1\nseconds = 2")
    assert read(path, KINDS) == {"seeds": ["1"], "sparsity": [1.0], "seconds": 2.0}
    path.write_text('seeds = [0, 0.5, "2,3"]')
    assert read(path, KINDS) == {"seeds": ["0", "0.5", "2,3"]}


def test_a_file_that_cannot_be_written_is_told_and_the_old_one_stays(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be written"):
        save(tmp_path / "missing" / "x.toml", {"seed": 1})
    path = tmp_path / "x.toml"
    path.write_text("seed = 0\n")
    with pytest.raises(FileError, match="UTF-8"):
        save(path, {"model": "\udc80"})
    assert path.read_text() == "seed = 0\n"
    assert written({"model": "a", "output": Path("b"), "none": None}) == 'model = "a"\noutput = "b"'
