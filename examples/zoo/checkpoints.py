"""Loads trained weights from a safetensors file into a model that fits them exactly."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from de_plugin.errors import DataError, DEWarning

from .cache import recall, store

ModelT = TypeVar("ModelT", bound=nn.Module)


def load_checkpoint(model: ModelT, path: str | os.PathLike[str]) -> ModelT:
    """Copy the tensors of a safetensors file into a model's parameters and buffers.

    Args:
        model: its state must have exactly the file's names and shapes; values are converted to
            its types and moved to its devices.
        path: the file.

    Returns:
        The same model, in the mode in which it was.

    Raises:
        DataError: the file is missing or damaged, or names or shapes differ; all differences are
            listed, and the model is as before.
    """
    tensors = recall(Path(path).expanduser())
    expected = model.state_dict()
    problems = []
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append(f"missing: {', '.join(missing)}")
    if unexpected := sorted(tensors.keys() - expected.keys()):
        problems.append(f"unexpected: {', '.join(unexpected)}")
    problems += [
        f"{key} has the shape {tuple(tensors[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    if problems:
        raise DataError(
            f"path {path} does not fit {type(model).__name__}: {'; '.join(problems)}. Give the "
            "checkpoint of this architecture, or build the model that it was made with"
        )
    model.load_state_dict(tensors)
    return model


def cached_or_made(
    model: ModelT, path: Path, make: Callable[[], Mapping[str, Tensor]], cache: bool, content: str
) -> ModelT:
    """Give a model its weights from the cache, or what is made for it, which then is kept there.

    Args:
        model: its state must have exactly the names and shapes of what it gets.
        path: of the cached file; one that is damaged is told by a warning and replaced.
        make: returns the state.
        cache: whether the file is read and written.
        content: what the file holds, for people.
    """
    if cache and path.exists():
        try:
            return load_checkpoint(model, path)
        except DataError as error:
            warnings.warn(
                f"cached weights are damaged and are looked for elsewhere: {error}", DEWarning, stacklevel=3
            )
    model.load_state_dict(make())
    if cache:
        store(path, model.state_dict(), {"content": content})
    return model
