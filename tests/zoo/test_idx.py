"""The IDX reader: every array comes back, and no damaged file does anything but raise DataError."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from de_plugin.errors import DataError
from de_plugin.zoo.idx import idx_header, read_idx


@given(
    array=npst.arrays(np.uint8, npst.array_shapes(max_dims=3, max_side=6)),
    compressed=st.booleans(),
)
def test_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, array: NDArray[np.uint8], compressed: bool
) -> None:
    content = idx_header(array.shape) + array.tobytes()
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(content) if compressed else content)
    read = read_idx(path)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.uint8
    assert read.flags.writeable


@given(content=st.binary(max_size=64), head=st.sampled_from([b"", b"\0\0\x08", b"\x1f\x8b"]))
def test_any_other_bytes_raise_only_data_errors(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, head: bytes
) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(head + content)
    array = None
    with contextlib.suppress(DataError):
        array = read_idx(path)
    assert array is None or idx_header(array.shape) + array.tobytes() == head + content


def test_truncated_file_says_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(idx_header((3, 4)) + bytes(11))
    with pytest.raises(DataError, match=r"holds 11 bytes, expected 12 .*\(3, 4\)"):
        read_idx(path)


def test_a_size_beyond_the_file_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(idx_header((2**32 - 1, 2**32 - 1)))
    with pytest.raises(DataError, match="expected 18,446,744,065,119,617,025"):
        read_idx(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "none")
