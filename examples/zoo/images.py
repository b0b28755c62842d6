"""A labelled image set as it is published: unsigned bytes, training and test part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from de_plugin.errors import DataError

from .idx import idx_header

IDX_FILES: Mapping[str, str] = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
"""The official file name of each array of a set."""

_SIDE = 28
_CLASSES = 10


@dataclass(frozen=True, eq=False)
class RawImages:
    """The four arrays of a set, uint8.

    Attributes:
        train_images: (train, 28, 28), 0 is background, 255 full ink.
        train_labels: (train,), 0 to 9.
        test_images: (test, 28, 28).
        test_labels: (test,).

    Raises:
        DataError: a type, a shape, a label or a pair of lengths is not as above.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        for field, array in self.arrays().items():
            if array.dtype != np.uint8:
                raise DataError(f"{field} are of type {array.dtype}, expected uint8")
        for part in ("train", "test"):
            images, labels = self.arrays()[f"{part}_images"], self.arrays()[f"{part}_labels"]
            if images.ndim != 3 or images.shape[1:] != (_SIDE, _SIDE) or len(images) == 0:
                raise DataError(
                    f"{part}_images have the shape {images.shape}, expected (images, 28, 28) with "
                    "at least one image: check which file was given"
                )
            if labels.shape != images.shape[:1]:
                raise DataError(
                    f"{part}_labels have the shape {labels.shape}, expected {images.shape[:1]} as "
                    f"{part}_images: check that both files are of one set"
                )
            if labels.max() >= _CLASSES:
                raise DataError(f"{part}_labels hold {labels.max()}, expected 0 to 9: check the file given")

    def arrays(self) -> dict[str, NDArray[np.uint8]]:
        """The arrays by name, in the order of ``IDX_FILES``."""
        return {field: getattr(self, field) for field in IDX_FILES}

    def verify(self, sha256: Mapping[str, str]) -> None:
        """Compare every array with the checksum of its official, uncompressed IDX file.

        Args:
            sha256: hexadecimal SHA-256 by array name.

        Raises:
            DataError: an array is not the official one, or is in another order.
        """
        for field, array in self.arrays().items():
            digest = hashlib.sha256(idx_header(array.shape))
            digest.update(np.ascontiguousarray(array).data)
            if digest.hexdigest() != sha256[field]:
                raise DataError(
                    f"{field} of the shape {array.shape} have the SHA-256 "
                    f"{digest.hexdigest()[:12]}..., expected {sha256[field][:12]}...: the copy is "
                    "damaged or is another set"
                )
