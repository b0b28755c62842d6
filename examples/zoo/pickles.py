"""Reads mnist.pkl.gz, a pickle of numpy arrays, without ever running what a pickle may carry."""

from __future__ import annotations

import gzip
import io
import pickle
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from de_plugin.errors import DataError

from .images import RawImages

_MAX_BYTES = 1 << 29
_PIXELS = 784
# Every array names this function; its private module is not the same in all versions of numpy.
_RECONSTRUCT: Any = np.zeros(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows numpy arrays and plain containers, and refuses everything else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What a pickle may name.

        Raises:
            DataError: it names anything but what a numpy array needs.
        """
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise DataError(
                f"the pickle asks for {module_name}.{global_name}, expected numpy arrays only: it "
                "was not read; get the file from a source you trust"
            ) from None


def read_mnist_pickle(stream: IO[bytes], origin: str) -> RawImages:
    """The images in a gzip-compressed pickle of ((train), (validation), (test)) pairs.

    Args:
        stream: the compressed bytes.
        origin: what they were read from, for messages.

    Returns:
        The images; training is the pickle's training and validation part, one after the other,
        which is the official order.

    Raises:
        DataError: the pickle is damaged, larger than 512 MiB, asks for anything but arrays, or
            holds other arrays than (n, 784) floats from 0 to 1 and (n,) integers.
    """
    try:
        with gzip.open(stream) as unpacked:
            content = unpacked.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise DataError(f"it holds more than {_MAX_BYTES:,} bytes")
        parts = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        (train, train_labels), (more, more_labels), (test, test_labels) = parts
        return RawImages(
            np.concatenate([_pixels(train), _pixels(more)]),
            np.concatenate([_labels(train_labels), _labels(more_labels)]),
            _pixels(test),
            _labels(test_labels),
        )
    except DataError as error:
        raise DataError(f"{origin} is not mnist.pkl.gz: {error}") from error
    except Exception as error:  # a damaged pickle can make its reader raise anything
        raise DataError(
            f"{origin} is not mnist.pkl.gz ({type(error).__name__}: {error}): expected a gzip-"
            "compressed pickle of three pairs of arrays; get the file again"
        ) from error


def _pixels(values: object) -> NDArray[np.uint8]:
    """Pixels as bytes; the copies in circulation divide them by 256, some by 255."""
    array = _array(values, "f", 2)
    if array.shape[1] != _PIXELS:
        raise DataError(f"images have {array.shape[1]} pixels, expected {_PIXELS}")
    for scale in (256.0, 255.0):
        scaled = array * array.dtype.type(scale)
        rounded = np.rint(scaled)
        if _within(np.abs(scaled - rounded), 0, 1e-2) and _within(rounded, 0, 255):
            pixels: NDArray[np.uint8] = rounded.astype(np.uint8)
            return pixels.reshape(-1, 28, 28)
    raise DataError("images hold values that are not n/256 or n/255 with n from 0 to 255")


def _labels(values: object) -> NDArray[np.uint8]:
    array = _array(values, "iu", 1)
    if not _within(array, 0, 9):
        raise DataError("labels hold values outside 0 to 9")
    return array.astype(np.uint8)


def _array(values: object, kinds: str, dimensions: int) -> NDArray[Any]:
    if not isinstance(values, np.ndarray):
        raise DataError(f"it holds a {type(values).__name__}, expected a numpy array")
    if values.dtype.kind not in kinds or values.ndim != dimensions:
        raise DataError(
            f"it holds {values.dtype} of the shape {values.shape}, expected {dimensions} "
            f"dimensions of a type of the kind {' or '.join(kinds)}"
        )
    return values


def _within(array: NDArray[Any], low: float, high: float) -> bool:
    """Whether all values lie in [low, high]; false for NaN, true for no values."""
    return bool(((array >= low) & (array <= high)).all())
