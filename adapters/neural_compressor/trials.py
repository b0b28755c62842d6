"""What a tuner has tried: trials, when one passes, and the file in which they outlive a crash."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from torch import nn

from de_plugin.adapters.neural_compressor.settings import Choice
from de_plugin.encode.files import whole
from de_plugin.errors import ArgumentError, CheckpointError

_FORMAT = 2
"""Counts up where the same choices give other levels than before."""


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried.

    Attributes:
        choices: the levels of each layer, by name.
        mean_bits: over the weights of these layers.
        bytes: of the whole file; 0 where the trial failed before. Expected for networks of more than four
            million weights, but counted for the cheapest.
        score: what the user's function gave; NaN where it failed.
        loss: how much worse than the baseline, see `Tolerance`; infinite where it failed.
        ok: whether that is within tolerance.
        seconds: it took.
        error: why it failed; None where it did not.
    """

    choices: Mapping[str, Choice]
    mean_bits: float
    bytes: int
    score: float
    loss: float
    ok: bool
    seconds: float
    error: str | None = None

    @property
    def bits(self) -> dict[str, int]:
        """Bits by layer."""
        return {name: choice.bits for name, choice in self.choices.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; None stands for numbers that are not finite."""
        plain = {k: v for k, v in self.__dict__.items() if k != "choices"}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}
        return {**finite, "choices": {name: asdict(choice) for name, choice in self.choices.items()}}


@dataclass(frozen=True)
class Tolerance:
    """When a trial passes.

    The loss is ``(baseline - score) / abs(baseline)``, with the sign turned where lower is better. Where
    the baseline is 0 it is not divided, and the tolerance is absolute.

    Attributes:
        tolerable_loss: the largest loss that passes; negative: the score must rise.
        higher_is_better: which way the score goes.
    """

    tolerable_loss: float
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        value = self.tolerable_loss
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(float(value)):
            raise ArgumentError(f"tolerable_loss={value!r}: expected a finite number, such as 0.01 for 1 %")
        if not isinstance(self.higher_is_better, bool):
            raise ArgumentError(f"higher_is_better={self.higher_is_better!r}: expected True or False")

    def loss(self, score: float, baseline: float) -> float:
        """Return by how much a score is worse than the baseline."""
        worse = baseline - score if self.higher_is_better else score - baseline
        return worse / abs(baseline) if baseline else worse

    def accepts(self, loss: float) -> bool:
        """Tell whether a loss is within tolerance; rounding errors are."""
        return loss <= self.tolerable_loss + 1e-12


def scored(evaluate: Callable[[nn.Module], Any], model: nn.Module) -> float:
    """Return the user's score of a model.

    Raises:
        ArgumentError: it is no finite number.
    """
    value = evaluate(model)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"eval_fn: returned {value!r}, expected a number") from error
    if not math.isfinite(number):
        raise ArgumentError(f"eval_fn: returned {number}, expected a finite number")
    return number


class Journal:
    """Trials by what they tried, in memory and, where a path is given, on disk after each of them.

    Args:
        path: the file; None keeps nothing.
        identity: what makes scores comparable.

    Raises:
        CheckpointError: the file is damaged or belongs to another search.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: Mapping[str, str]) -> None:
        self._path = None if path is None else Path(path)
        self._identity = dict(identity)
        self.baseline: float | None = None
        self._trials: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def _read(self, path: Path) -> None:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            number, known, trials = document["format"], document["identity"], document["trials"]
            self.baseline = None if document["baseline"] is None else float(document["baseline"])
            self._trials = {key_of(_choices(t)): t for t in trials}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"checkpoint={str(path)!r}: cannot be read ({error}); give another file, or remove it"
            ) from error
        if number != _FORMAT:
            raise CheckpointError(
                f"checkpoint={str(path)!r}: has format {number!r}, expected {_FORMAT}: another version of "
                "de_plugin wrote it, whose levels are others; give another file, or remove it"
            )
        differing = [n for n in (*self._identity, *known) if self._identity.get(n) != known.get(n)]
        if differing:
            name = differing[0]
            raise CheckpointError(
                f"checkpoint={str(path)!r}: belongs to another search, its {name} is {known.get(name)}, here "
                f"it is {self._identity.get(name)}; give another file"
            )

    def get(self, choices: Mapping[str, Choice], tolerance: Tolerance) -> Trial | None:
        """Return the trial of these choices if there was one, judged anew."""
        found = self._trials.get(key_of(choices))
        if found is None:
            return None
        score = math.nan if found["score"] is None else float(found["score"])
        failed = found["error"] is not None or self.baseline is None
        loss = math.inf if failed or self.baseline is None else tolerance.loss(score, self.baseline)
        return Trial(
            choices=dict(choices),
            mean_bits=float(found["mean_bits"]),
            bytes=int(found["bytes"]),
            score=score,
            loss=loss,
            ok=not failed and tolerance.accepts(loss),
            seconds=float(found["seconds"]),
            error=found["error"],
        )

    def start(self, baseline: float) -> None:
        """Keep the score of the original model."""
        self.baseline = baseline
        self._write()

    def add(self, trial: Trial) -> None:
        """Keep a trial."""
        self._trials[key_of(trial.choices)] = trial.to_dict()
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        document = {
            "format": _FORMAT,
            "identity": self._identity,
            "baseline": self.baseline,
            "trials": list(self._trials.values()),
        }
        with whole(self._path) as draft:
            draft.write_text(json.dumps(document, indent=1), encoding="utf-8")


def key_of(choices: Mapping[str, Choice]) -> str:
    """Return a text that tells choices apart, whatever their order."""
    return json.dumps({name: asdict(choice) for name, choice in choices.items()}, sort_keys=True)


def _choices(trial: Mapping[str, Any]) -> dict[str, Choice]:
    return {name: Choice(**values) for name, values in trial["choices"].items()}
