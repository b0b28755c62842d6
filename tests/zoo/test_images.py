"""A raw image set accepts only what fits together, and knows the official one by its checksum."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from de_plugin.errors import DataError
from de_plugin.zoo.idx import idx_header
from de_plugin.zoo.images import RawImages


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train_images", np.zeros((30, 28, 28), np.float32), "type float32, expected uint8"),
        ("train_images", np.zeros((30, 784), np.uint8), "expected \\(images, 28, 28\\)"),
        ("test_images", np.zeros((0, 28, 28), np.uint8), "at least one image"),
        ("test_labels", np.zeros(21, np.uint8), "expected \\(20,\\)"),
        ("train_labels", np.full(30, 10, np.uint8), "hold 10, expected 0 to 9"),
    ],
)
def test_refuses_what_does_not_fit(
    raw: RawImages, field: str, value: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], message: str
) -> None:
    with pytest.raises(DataError, match=f"{field} .*{message}"):
        RawImages(**{**raw.arrays(), field: value})


def test_verify_knows_content_and_order(raw: RawImages) -> None:
    sha256 = {
        name: hashlib.sha256(idx_header(array.shape) + array.tobytes()).hexdigest()
        for name, array in raw.arrays().items()
    }
    raw.verify(sha256)
    arrays = raw.arrays()
    turned = RawImages(**{**arrays, "test_images": arrays["test_images"][::-1]})
    with pytest.raises(DataError, match="test_images .* damaged or is another set"):
        turned.verify(sha256)
