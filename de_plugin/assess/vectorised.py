"""Whether a model can be run for many candidates at once, and what to say where it can't."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import nn

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)
"""What a model may raise that cannot be run for many candidates at once."""


class BatchingError(Exception):
    """A model failed in a run for many candidates; the cause is attached."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class RoomError(Exception):
    """A run for many candidates takes more memory than there is."""


@contextmanager
def failures() -> Iterator[None]:
    """Turn what a model raises that cannot be run for many candidates into the error that says so.

    Raises:
        RoomError: the memory is not enough.
        BatchingError: anything else.
    """
    try:
        yield
    except FAILURES as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RoomError(str(error)) from error
        raise BatchingError(error) from error


@contextmanager
def buffers_stay(model: nn.Module) -> Iterator[None]:
    """Refuse a run that puts another tensor in a buffer's place: it would hold all candidates at once.

    Raises:
        RuntimeError: a buffer was replaced; the old ones are back.
    """
    before = [(module, name, x) for module in model.modules() for name, x in module._buffers.items()]
    replaced = ""
    try:
        yield
    finally:
        for module, name, x in before:
            if module._buffers.get(name) is not x:
                module._buffers[name] = x
                replaced = name
    if replaced:
        raise RuntimeError(f"the forward replaces the buffer {replaced!r}")


def reason(model: nn.Module, error: BaseException) -> str:
    """Say in which module of the model an error comes up."""
    names = {id(m): name or type(m).__name__ for name, m in model.named_modules()}
    where = type(model).__name__
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        where = names.get(id(trace.tb_frame.f_locals.get("self")), where)
        trace = trace.tb_next
    text = str(error).strip().splitlines()
    return f"{where}: {text[0] if text else type(error).__name__}"
