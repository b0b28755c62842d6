"""Loads trained weights from a safetensors file into a model that fits them exactly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from torch import nn

from de_plugin.errors import DataError

from .cache import recall

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
