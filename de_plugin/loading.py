"""What the command line reads: models and data by zoo name or from the user's own modules."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

import torch.distributed as dist
from torch import nn

from de_plugin.errors import ArgumentError, MissingDependencyError

T = TypeVar("T")


class Tell(Protocol):
    """Is told what is being done, and how much of it is done where that is known."""

    def __call__(self, what: str, done: float = 0, total: float | None = None) -> None:
        """Show it."""
        ...


def untold(what: str, done: float = 0, total: float | None = None) -> None:
    """Show nothing."""


def found_zoos() -> list[ModuleType]:
    """Return the installed zoos."""
    found = sorted(entry_points(group="de_plugin.zoo"), key=lambda e: e.name)
    return [e.load() for e in found]


def _imported(spec: str, argument: str) -> Any:
    module, _, name = spec.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise ArgumentError(
            f"--{argument} {spec}: {error}; expected package.module:function, importable from here"
        ) from error
    finally:
        sys.path.pop(0)


def load_data(spec: str) -> tuple[Any, Any]:
    """Return ``(calibration batches, test batches or None)`` for a zoo name or ``module:function``."""
    if ":" in spec:
        return _imported(spec, "data"), None
    zoos = found_zoos()
    for zoo in zoos:
        if spec in zoo.DATA:
            data = zoo.DATA[spec]()
            return (
                (data.train_inputs, data.train_labels),
                (data.test_inputs, data.test_labels),
            )
    names = sorted(n for z in zoos for n in z.DATA)
    raise ArgumentError(
        f"--data {spec}: expected one of {', '.join(names)} or package.module:function that returns batches"
    )


def load_model(spec: str, data: str, checkpoint: Path | None, tell: Tell = untold) -> nn.Module:
    """Return a model for a zoo name (trained on `data`, or from `checkpoint`) or ``module:function``."""
    tell(f"reading {spec}")
    zoos = found_zoos()
    if ":" in spec:
        model = _imported(spec, "model")
        if not isinstance(model, nn.Module):
            raise ArgumentError(
                f"--model {spec}: returned {type(model).__name__}, expected a torch.nn.Module"
            )
        if checkpoint is not None:
            zoo_of(zoos).load_checkpoint(model, checkpoint)
        return model.eval()
    for zoo in zoos:
        if spec in zoo.MODELS:
            if checkpoint is None:
                trained: nn.Module = zoo.teacher(
                    spec, data, progress=lambda done, total: tell(f"training {spec} on {data}", done, total)
                )
                return trained.eval()
            model = zoo.MODELS[spec]()
            zoo.load_checkpoint(model, checkpoint)
            fresh: nn.Module = model.eval()
            return fresh
    names = sorted(n for z in zoos for n in z.MODELS)
    raise ArgumentError(
        f"--model {spec}: expected one of {', '.join(names)} or package.module:function that returns a model"
    )


def check_writable(path: Path, option: str = "--output") -> None:
    """Refuse a path to write to before the work begins, not after it.

    Raises:
        ArgumentError: its folder does not exist or cannot be written, or it is no file.
    """
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise ArgumentError(f"{option} {path}: there is no folder {path.parent}; create it first")
    if (path.exists() and not path.is_file()) or not os.access(folder, os.W_OK):
        raise ArgumentError(f"{option} {path}: cannot be written; choose another file")


def check_apart(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Refuse to write two files under one name, or one over what is read, before the work begins.

    Args:
        outputs: by option; what is None is not asked for.
        inputs: the same of what is read.

    Raises:
        ArgumentError: one of them cannot be written, or is another.
    """
    seen = {os.path.realpath(path): option for option, path in inputs.items() if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        check_writable(path, option)
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise ArgumentError(f"{option} {path}: is the file of {other}; choose another file")


def first_alone(rank: int, load: Callable[[], T]) -> T:
    """Let the first process load, download and train what is missing, and the others after it."""
    if not dist.is_available() or not dist.is_initialized():
        return load()
    result = load() if rank == 0 else None
    dist.barrier()
    return load() if result is None else result


def loaded(model: str, data: str, checkpoint: Path | None, tell: Tell = untold) -> tuple[nn.Module, Any, Any]:
    """Return the model, calibration batches, and test batches or None."""
    network = load_model(model, data, checkpoint, tell)
    tell(f"reading {data}")
    return (network, *load_data(data))


def zoo_of(zoos: list[ModuleType]) -> ModuleType:
    """Return the zoo that trains and measures."""
    if not zoos:
        raise MissingDependencyError("no zoo is installed: pip install 'de_plugin[examples]'")
    return zoos[0]
