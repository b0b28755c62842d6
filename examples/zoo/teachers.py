"""Trained networks, the teachers of every example: taken from the cache, or trained once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from de_plugin.errors import ArgumentError, DataError, DEWarning

from .cache import cache_folder, store
from .checkpoints import load_checkpoint
from .data import DATA, Dataset
from .models import MODELS
from .training import Progress, Recipe, train

RECIPE_VERSION = 1
"""Raised whenever a network, a recipe or the training changes, so that old weights are not used."""

RECIPES: Mapping[str, Recipe] = {
    "lenet300": Recipe(epochs=10, learning_rate=2e-3),
    "lenet5": Recipe(epochs=5, learning_rate=2e-3),
    "mlpnet": Recipe(epochs=10, learning_rate=5e-3),
    "resnet": Recipe(epochs=4, learning_rate=1e-2),
    "vit": Recipe(epochs=6, learning_rate=2e-3),
}
"""How each network of ``MODELS`` is trained; about two minutes or less on two cores."""


def teacher(
    model: str,
    data: Dataset | str,
    *,
    seed: int = 0,
    epochs: int | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> nn.Module:
    """A network trained on a data set, in eval mode on the CPU.

    Its weights come from the cache if they were trained before with the same network, data, seed,
    epochs and recipe. The caller's random state is not touched.

    Args:
        model: a name in ``MODELS``.
        data: a data set, or a name in ``DATA`` to load it by.
        seed: of the first weights and of the order of the samples, 0 or more.
        epochs: passes over the training set, at least 1; None takes the recipe's.
        cache: whether the cache is read and written.
        progress: called with (steps done, steps in all) after every step, never if the weights
            are cached.

    Raises:
        ArgumentError: ``model`` or ``data`` is no known name, or ``seed`` or ``epochs`` is too
            small.
        DataError: the data set is not to be had.
    """
    if model not in MODELS:
        raise ArgumentError(f"model is {model!r}, expected one of {', '.join(MODELS)}")
    if isinstance(data, str) and data not in DATA:
        raise ArgumentError(f"data is {data!r}, expected a Dataset or one of {', '.join(DATA)}")
    if seed < 0:
        raise ArgumentError(f"seed is {seed}, expected 0 or more")
    recipe = RECIPES[model]
    if epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=epochs)
    dataset = DATA[data]() if isinstance(data, str) else data

    path = _path(model, dataset, seed, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = MODELS[model]()
    if cache and _recalled(network, path):
        return network.eval()
    train(network, dataset.train_inputs, dataset.train_labels, recipe, seed, progress)
    if cache:
        facts = {"model": model, "data": dataset.name, "seed": seed, **dataclasses.asdict(recipe)}
        store(path, network.state_dict(), {"made_by": json.dumps(facts)})
    return network


def _recalled(network: nn.Module, path: Path) -> bool:
    """Whether trained weights were cached, and are now in the network."""
    if not path.exists():
        return False
    try:
        load_checkpoint(network, path)
    except DataError as error:
        warnings.warn(f"cached weights are damaged and are trained anew: {error}", DEWarning, stacklevel=3)
        return False
    return True


def _path(model: str, dataset: Dataset, seed: int, recipe: Recipe) -> Path:
    """The file for these weights; the data's content counts, since any data can have any name."""
    content = hashlib.sha256(repr(dataset.train_inputs.shape).encode())
    for tensor in (dataset.train_inputs, dataset.train_labels):
        content.update(tensor.detach().cpu().contiguous().numpy().data)
    digest = content.hexdigest()[:12]
    name = f"{model}-{dataset.name}-{digest}-seed{seed}-epochs{recipe.epochs}-v{RECIPE_VERSION}"
    return cache_folder() / "teachers" / f"{name}.safetensors"
