"""Data sets: normalised, typed and checked; the real ones where they can be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from de_plugin.errors import DataError
from de_plugin.zoo import DATA, Dataset, fashion_mnist, mnist
from de_plugin.zoo.images import RawImages
from tests.zoo.shared_data import published


@pytest.mark.parametrize(
    ("load", "mean", "deviation"), [(mnist, 0.1307, 0.3081), (fashion_mnist, 0.2860, 0.3530)]
)
def test_values_are_normalised_as_published(
    tmp_path: Path,
    raw: RawImages,
    write_idx: Callable[..., Path],
    load: Callable[[Path], Dataset],
    mean: float,
    deviation: float,
) -> None:
    data = load(write_idx(tmp_path / "given", raw))
    pixels = torch.from_numpy(raw.train_images).double().unsqueeze(1) / 255
    expected = ((pixels - mean) / deviation).float()
    torch.testing.assert_close(data.train_inputs, expected)
    assert data.train_inputs.dtype == data.test_inputs.dtype == torch.float32
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert data.test_labels.tolist() == raw.test_labels.tolist()
    assert data.test_inputs.shape == (20, 1, 28, 28)
    assert DATA[data.name] is load


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "../up", "name is '../up'"),
        ("train_inputs", torch.zeros(150, 784), r"train_inputs .* \(150, 784\)"),
        ("test_inputs", torch.zeros(50, 1, 28, 28).double(), "test_inputs are torch.float64"),
        ("train_labels", torch.zeros(150), "train_labels are torch.float32"),
        ("test_labels", torch.zeros(49).long(), r"test_labels .* \(49,\), expected .*\(50,\)"),
    ],
)
def test_a_dataset_refuses_what_does_not_fit(tiny: Dataset, field: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(**{**vars(tiny), field: value})


def test_an_empty_part_is_refused(tiny: Dataset) -> None:
    with pytest.raises(DataError, match="test_inputs are empty"):
        Dataset(
            **{
                **vars(tiny),
                "test_inputs": tiny.test_inputs[:0],
                "test_labels": tiny.test_labels[:0],
            }
        )


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "train_labels", "test_labels"),
    [
        ("mnist", [5, 0, 4, 1, 9], [7, 2, 1, 0, 4]),
        ("fashion-mnist", [9, 0, 0, 3, 0], [9, 2, 1, 1, 6]),
    ],
)
def test_real_data(name: str, train_labels: list[int], test_labels: list[int]) -> None:
    data = published(name)
    assert data.train_inputs.shape == (60_000, 1, 28, 28)
    assert data.test_inputs.shape == (10_000, 1, 28, 28)
    assert data.train_labels[:5].tolist() == train_labels
    assert data.test_labels[:5].tolist() == test_labels
    assert abs(float(data.train_inputs.mean())) < 1e-3
    assert abs(float(data.train_inputs.std()) - 1) < 1e-3
