"""What a comparison was asked for: the grid of rows, and all that a row's numbers depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from de_plugin.compare.row import TASKS
from de_plugin.errors import ArgumentError, FileError
from de_plugin.prune.target import check_sparsity

_GRID = ("task", "hosts", "methods", "sparsities", "ratios", "bits", "seeds", "threads", "score")
"""What may differ between two runs whose rows can stand in one table."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `compare`, as plain data.

    Attributes:
        task: "weights", "channels", "bits"; one or several.
        hosts: names of what was compared, "de_plugin" and "torch" among them.
        methods: of which only these; empty means all.
        sparsities: fractions of weights that go, in [0, 1).
        ratios: fractions of each layer's channels that go, in [0, 1).
        bits: bits a weight, above 0.
        seeds: of every draw, 0 or more.
        evaluations: budget of a search in candidate sets, or None.
        seconds: budget of a search in seconds, or None.
        granularity: what is zeroed together in the task "weights".
        include: what is pruned; empty means all.
        exclude: what is left alone.
        keep: layers that keep all their channels.
        divergence: how far outputs are from the intact model's.
        score: what is better the higher it is; empty where there is none.
        measured_on: "test data" or "calibration data".
        samples: calibration samples.
        batch_size: samples in a forward pass.
        model: tells one model from another.
        data: tells one set of calibration data from another.
        test: the same of test data; empty where there are none.
        threads: of torch.
    """

    task: tuple[str, ...]
    hosts: tuple[str, ...]
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    ratios: tuple[float, ...]
    bits: tuple[float, ...]
    seeds: tuple[int, ...]
    evaluations: int | None
    seconds: float | None
    granularity: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    keep: tuple[str, ...]
    divergence: str
    score: str
    measured_on: str
    samples: int
    batch_size: int
    model: str
    data: str
    test: str
    threads: int

    def __post_init__(self) -> None:
        """Refuse grids that have no cells."""
        for name in self.task:
            if name not in TASKS:
                raise ArgumentError(f"task={name!r}: expected some of {', '.join(TASKS)}")
        for name in ("task", "sparsities", "ratios", "bits", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ArgumentError(f"{name}={list(values)}: expected at least one, none of them twice")
        for argument in ("sparsities", "ratios"):
            for value in getattr(self, argument):
                check_sparsity(value, argument)
        if bad := [b for b in self.bits if isinstance(b, bool) or not b > 0]:
            raise ArgumentError(f"bits={bad}: expected bits a weight above 0")
        if wrong := [s for s in self.seeds if isinstance(s, bool) or not isinstance(s, int) or s < 0]:
            raise ArgumentError(f"seeds={wrong}: expected whole numbers, 0 or more")

    def amounts(self, task: str) -> tuple[float, ...]:
        """Return what is asked for in a task."""
        return {"weights": self.sparsities, "channels": self.ratios, "bits": self.bits}[task]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Settings:
        """Return what `to_dict` made plain data of.

        Raises:
            FileError: it is no such data.
        """
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise FileError(f"settings: are none of a comparison ({error})") from error

    def differences(self, other: Settings) -> list[str]:
        """Return what would make rows of the two incomparable, in words."""
        names = [f.name for f in fields(self) if f.name not in _GRID]
        pairs = [(n, getattr(self, n), getattr(other, n)) for n in names]
        found = [f"{n} was {theirs!r}, is {ours!r}" for n, ours, theirs in pairs if ours != theirs]
        if self.score and other.score and self.score != other.score:
            found.append(f"score was {other.score!r}, is {self.score!r}")
        return found
