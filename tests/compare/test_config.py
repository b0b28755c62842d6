"""Options as TOML: what is written is read again."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from de_plugin.compare.config import read, written
from de_plugin.errors import ArgumentError, FileError

TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = TEXTS | st.integers(-(2**60), 2**60) | st.booleans() | st.floats(-1e9, 1e9) | st.lists(TEXTS)


@given(st.dictionaries(st.sampled_from(["model", "data", "seeds", "budget"]), VALUES))
def test_what_is_written_is_read_again(options: dict[str, object]) -> None:

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.toml"
        path.write_text(written(options), encoding="utf-8", newline="")
        assert read(path, ["model", "data", "seeds", "budget"]) == options


def test_what_is_no_option_or_no_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    with pytest.raises(FileError, match="cannot be read"):
        read(path, ["model"])
    path.write_text("model =")
    with pytest.raises(FileError, match="cannot be read"):
        read(path, ["model"])
    path.write_text('modle = "lenet5"')
    with pytest.raises(ArgumentError, match="'modle' is no option; there are data, model"):
        read(path, ["model", "data"])
    path.write_text("batch-size = 3")
    assert read(path, ["batch_size"]) == {"batch_size": 3}
