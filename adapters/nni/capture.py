"""Calibration batches out of an NNI evaluator: what its training calls the model with."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from de_plugin.errors import DataError, DEError

_STEPS = 64
"""Training steps after which no more data are waited for."""


class _Enough(BaseException):
    """Ends a training run; no Exception, so that loops that catch those let it pass."""


class Capture:
    """Keeps what a model is called with until there are enough samples.

    Args:
        samples: as many are enough.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.batches: list[Any] = []
        self._held = 0
        self._handle: Any = None
        self._withdraw: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        """Whether there are enough."""
        return self._held >= self.samples

    def watch(self, model: nn.Module) -> None:
        """Look at every call of a model from now on."""
        self.stop()
        self._handle = model.register_forward_hook(self._look, with_kwargs=True)

    def during(self, evaluator: Any, model: nn.Module) -> None:
        """Look at every call of a model while an evaluator trains the next time, however that ends."""
        self.stop()
        before = vars(evaluator).get("train")

        def withdraw() -> None:
            self._withdraw = None
            if vars(evaluator).get("train") is not train:  # another has come on top
                return
            if before is None:
                del evaluator.train
            else:
                evaluator.train = before

        def train(*args: Any, **kwargs: Any) -> Any:
            if self._withdraw is not withdraw:
                return proceed(*args, **kwargs)
            self.watch(model)
            try:
                return proceed(*args, **kwargs)
            finally:
                self.stop()

        proceed = evaluator.train
        evaluator.train = train
        self._withdraw = withdraw

    def stop(self) -> None:
        """Look no more, nor when a training begins."""
        if self._withdraw is not None:
            self._withdraw()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _look(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        inputs = _inputs(model, args, kwargs)
        tensors = [x for x in tree_flatten(inputs)[0] if isinstance(x, Tensor) and x.dim()]
        if tensors and not self.full:
            self._held += len(tensors[0])
            self.batches.append(
                tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, inputs)
            )
        if self.full:
            self.stop()


def _inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a call's arguments as the engine takes a batch: ``(inputs,)``, or a dict."""
    if args and kwargs:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
        return dict(bound.arguments)
    if kwargs:
        return kwargs
    return (args[0],) if len(args) == 1 else (args,)


def captured(evaluator: Any, model: nn.Module, samples: int) -> list[Any]:
    """Run an evaluator's training on a copy of a model until enough samples have come by.

    The evaluator itself is not bound and keeps its losses and optimizers; torch's, numpy's and Python's
    random numbers go on as if nothing had been.

    Args:
        evaluator: of NNI, already told the names of the parameters.
        model: unwrapped, trained and thrown away.
        samples: as many are enough.

    Returns:
        Batches as `de_plugin.prune` takes them; the evaluator's dummy input where its training fails.

    Raises:
        DataError: neither the training nor the dummy input gives any.
    """
    seen = Capture(samples)
    double = copy.copy(evaluator)
    for name, value in vars(evaluator).items():
        if isinstance(value, dict):
            setattr(double, name, dict(value))
    double.model = None
    failure: BaseException | None = None
    model.train()
    seen.watch(model)
    with _own_randomness():
        try:
            double.bind_model(model)
            double.revert_loss()

            def look(loss: Any, _batch: Any) -> Any:
                if seen.full:
                    raise _Enough
                return loss

            double.patch_loss(look)
            double.train(max_steps=_STEPS, max_epochs=None)
        except _Enough:
            pass
        except DEError:
            raise
        except Exception as error:  # a user's own training may raise anything
            failure = error
        finally:
            seen.stop()
    if seen.batches:
        return seen.batches
    dummy = evaluator.get_dummy_input()
    if dummy is None:
        reason = f"it raised {type(failure).__name__}: {failure}" if failure else "the model was never called"
        raise DataError(
            f"evaluator: its training gave no calibration data ({reason}) and it has no dummy_input; give "
            "DEPruner(..., batches=...)"
        ) from failure
    return [dummy]


@contextmanager
def _own_randomness() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what users' loops draw from
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
