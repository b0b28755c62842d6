"""One line of a comparison: what a method was asked for, what it left, and what that cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from de_plugin.errors import ArgumentError, FileError

TASKS = ("weights", "channels", "bits")
"""What is made small: single weights, whole channels, or the bits of weights."""

Key = tuple[str, str, str, float, int]
"""What tells one row from another: task, host, method, what was asked for, seed."""


@dataclass(frozen=True)
class Row:
    """What one method left of a copy of the model.

    A row with an `error` has no measurements; one without has all that its task has.

    Attributes:
        task: "weights", "channels" or "bits".
        host: whose method it is: "de_plugin", "torch", or an installed host.
        method: its name there.
        sparsity: what was asked for: the fraction of weights, or of each layer's channels, that goes; of
            "bits" the bits a weight.
        seed: of every draw.
        density: fraction of the prunable weights that is left, in [0, 1].
        macs: multiplications a sample that are left, see `de_plugin.compare.measure`.
        params: parameters that are left.
        bits: mean bits a weight; None but in the task "bits".
        divergence: from the intact model, as the settings name it and on what they name; >= 0.
        score: higher is better: test accuracy in percent, or what the metric gave.
        seconds: wall-clock time of the method, without the measuring afterwards.
        evaluations: candidate sets that were measured; None where the method does not tell.
        error: why there is nothing to measure; empty where all went well.
        layers: sparsity by layer, in the model's order; in the task "bits" the bits a weight.
        curve: the search's best divergence after so many evaluations, on its own samples.
        bytes: of the weights; None but in the task "bits".
    """

    task: str
    host: str
    method: str
    sparsity: float
    seed: int
    density: float | None = None
    macs: float | None = None
    params: float | None = None
    bits: float | None = None
    divergence: float | None = None
    score: float | None = None
    seconds: float = 0.0
    evaluations: int | None = None
    error: str = ""
    layers: tuple[tuple[str, float], ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    bytes: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no comparison can have measured."""
        if self.task not in TASKS:
            raise ArgumentError(f"Row(task={self.task!r}): expected one of {', '.join(TASKS)}")
        names = ("sparsity", "density", "macs", "params", "bits", "divergence", "score", "seconds", "bytes")
        for name in names:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ArgumentError(f"Row({name}={value}): expected a finite number, or None with an error")

    @property
    def key(self) -> Key:
        """Return what tells this row from every other."""
        return self.task, self.host, self.method, self.sparsity, self.seed

    @property
    def failed(self) -> bool:
        """Whether the method has left nothing to measure."""
        return bool(self.error)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Row:
        """Return the row that `to_dict` made plain data of.

        Raises:
            FileError: it is no such data.
        """
        try:
            if unknown := sorted(set(plain) - {f.name for f in fields(cls)}):
                raise ArgumentError(f"unknown: {', '.join(unknown)}")
            values = dict(plain)
            values["layers"] = tuple((str(n), float(x)) for n, x in plain.get("layers", ()))
            values["curve"] = tuple((int(n), float(x)) for n, x in plain.get("curve", ()))
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise FileError(f"rows: {dict(plain)!r:.200} is no row of a comparison ({error})") from error
