"""The pickle reader: mnist.pkl.gz comes back, and nothing that a pickle carries is ever run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from de_plugin.errors import DataError
from de_plugin.zoo.images import RawImages
from de_plugin.zoo.pickles import read_mnist_pickle


class Payload:
    """Runs a command when it is unpickled by an ordinary unpickler."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.target}",)


def packed(value: Any, protocol: int = 4) -> io.BytesIO:
    return io.BytesIO(gzip.compress(pickle.dumps(value, protocol=protocol)))


@pytest.mark.parametrize("scale", [256.0, 255.0])
def test_reads_both_scales_bit_exactly(
    tmp_path: Path, raw: RawImages, write_pickle: Callable[..., Path], scale: float
) -> None:
    path = write_pickle(tmp_path / "mnist.pkl.gz", raw, scale)
    with path.open("rb") as stream:
        read = read_mnist_pickle(stream, str(path))
    for name, array in raw.arrays().items():
        np.testing.assert_array_equal(read.arrays()[name], array)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_payload_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    ran = tmp_path / "ran"
    with pytest.raises(DataError, match=r"asks for (posix|nt)\.system, expected numpy arrays only"):
        read_mnist_pickle(packed(Payload(ran), protocol), "payload")
    assert not ran.exists()


@pytest.mark.parametrize("name", ["builtins eval", "numpy load", "numpy.lib._npyio_impl load", "torch load"])
def test_other_globals_are_refused(name: str) -> None:
    content = gzip.compress(f"c{name.replace(' ', chr(10))}\n.".encode())
    with pytest.raises(DataError, match=f"asks for {name.replace(' ', '.')}"):
        read_mnist_pickle(io.BytesIO(content), "pickle")


def pair(images: Any, labels: Any) -> tuple[Any, Any]:
    return images, labels


GOOD = pair(np.zeros((2, 784), np.float32), np.zeros(2, np.int64))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (pair([[0.0] * 784], GOOD[1]), "holds a list, expected a numpy array"),
        (pair(np.zeros((2, 783), np.float32), GOOD[1]), "783 pixels, expected 784"),
        (pair(np.zeros((2, 784), np.int64), GOOD[1]), "holds int64"),
        (pair(np.full((2, 784), 0.123, np.float32), GOOD[1]), "not n/256 or n/255"),
        (pair(np.full((2, 784), np.nan, np.float32), GOOD[1]), "not n/256 or n/255"),
        (pair(GOOD[0], np.full(2, 10)), "labels hold values outside 0 to 9"),
        (pair(GOOD[0], np.zeros(3, np.int64)), "expected \\(4,\\)"),
        ((GOOD[0],), "ValueError"),
    ],
)
def test_other_content_is_refused(bad: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"origin is not mnist.pkl.gz.*{message}"):
        read_mnist_pickle(packed((bad, GOOD, GOOD)), "origin")


@given(content=st.binary(max_size=200), compressed=st.booleans())
def test_any_bytes_raise_only_data_errors(content: bytes, compressed: bool) -> None:
    stream = io.BytesIO(gzip.compress(content) if compressed else content)
    with pytest.raises(DataError, match="origin is not mnist.pkl.gz"):
        read_mnist_pickle(stream, "origin")


def test_a_truncated_file_is_refused(
    tmp_path: Path, raw: RawImages, write_pickle: Callable[..., Path]
) -> None:
    content = write_pickle(tmp_path / "mnist.pkl.gz", raw).read_bytes()
    with pytest.raises(DataError, match="EOFError"):
        read_mnist_pickle(io.BytesIO(content[:-100]), "origin")
