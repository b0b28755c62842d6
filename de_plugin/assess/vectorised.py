"""Whether a model can be run for many candidates at once, and what to say where it can't."""

from __future__ import annotations

from types import TracebackType

from torch import nn

FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, LookupError)
"""What a model may raise that cannot be run for many candidates at once."""


class BatchingError(Exception):
    """A model failed in a run for many candidates; the cause is attached."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


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
