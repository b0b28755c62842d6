"""From a trained network to a small file: prune, quantize, encode, and read the file again."""

from __future__ import annotations

import copy
import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin.assess.divergence import Divergence
from de_plugin.assess.guard import untouched_on_error
from de_plugin.assess.ranks import Ranks
from de_plugin.assess.teacher import Forward
from de_plugin.assess.units import Pattern
from de_plugin.encode import Info, loads, packed
from de_plugin.encode.files import whole
from de_plugin.errors import ArgumentError, FileError, TargetError
from de_plugin.prune import Report, prune
from de_plugin.prune.target import check_sparsity
from de_plugin.quantize import QuantizationReport, quantize
from de_plugin.quantize.bits import check_rounding
from de_plugin.quantize.goal import Metric

_NONE: Mapping[str, Any] = MappingProxyType({})
_SHARED = (
    "include",
    "exclude",
    "divergence",
    "forward",
    "samples",
    "batch_size",
    "holdout",
    "memory",
    "seed",
)
_GOALS = ("bits", "target_bytes", "max_divergence", "max_loss", "metric")


@dataclass(frozen=True)
class Stage:
    """What a progress callback is told when a part of the work begins.

    Attributes:
        name: "prune", "quantize" or "encode".
        sparsity: what it is done at.
        seconds: since the beginning.
    """

    name: str
    sparsity: float
    seconds: float


@dataclass(frozen=True)
class Compression:
    """The result of `compress`.

    Attributes:
        sparsity: fraction of the units that pruning was asked to zero, in the file that was kept.
        pruning: what pruning did; None without it.
        quantization: what quantizing did, its rate-distortion curve among it.
        file: what the file holds and where its bytes went.
        tried: bytes and divergence from the original, on held-back data, of each sparsity.
        path: of the file; None where none was asked for.
        seconds: wall-clock time.
    """

    sparsity: float
    pruning: Report | None
    quantization: QuantizationReport
    file: Info
    tried: tuple[tuple[float, int, float], ...]
    path: Path | None
    seconds: float

    @property
    def bytes(self) -> int:
        """Return the size of the file, every byte counted."""
        return self.file.file_bytes

    @property
    def ratio(self) -> float:
        """Return how many times smaller the file is than the tensors, floating point in 32 bits."""
        return self.file.ratio

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "sparsity": self.sparsity,
            "bytes": self.bytes,
            "ratio": self.ratio,
            "divergence": self.quantization.divergence,
            "loss": self.quantization.loss,
            "tried": [{"sparsity": s, "bytes": b, "divergence": d} for s, b, d in self.tried],
            "pruning": None if self.pruning is None else self.pruning.to_dict(),
            "quantization": self.quantization.to_dict(),
            "path": None if self.path is None else str(self.path),
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        """Return a table for people."""
        head = (
            f"{self.bytes:,} bytes, {self.ratio:.1f} times smaller, divergence "
            f"{self.quantization.divergence:.4g}, {self.seconds:.0f} s"
        )
        return f"{head}\n{self.file}"


def compress(
    model: nn.Module,
    batches: Any,
    path: str | os.PathLike[str] | None = None,
    sparsity: float | Sequence[float] | None = 0.9,
    *,
    bits: int | None = None,
    target_bytes: int | None = None,
    max_divergence: float | None = None,
    max_loss: float | None = None,
    metric: Metric | None = None,
    pruning: Mapping[str, Any] = _NONE,
    quantizing: Mapping[str, Any] = _NONE,
    progress: Callable[[Stage], None] | None = None,
    include: Sequence[Pattern] = (),
    exclude: Sequence[Pattern] = (),
    divergence: str | Divergence | Callable[[Any, Any], Any] = "kl",
    forward: Forward | None = None,
    samples: int | None = None,
    batch_size: int = 256,
    holdout: float | Tensor = 0.1,
    memory: int = 4 << 30,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Compression:
    """Make a trained network a small file, and the model what that file holds.

    The model becomes bit for bit what the file gives when it is loaded, which is tried before the file is
    written. After any exception, Ctrl-C included, the model is bit-exactly what it was.

    Args:
        model: any module, in eval mode; the original, from which divergences are measured.
        batches: calibration data as for `de_plugin.prune`; no iterator, for several passes read it.
        path: the file, ``*.de.safetensors`` by custom; None writes none.
        sparsity: fraction of the units to zero, in [0, 1); several are tried and the best kept: the
            smallest file under a loss, the least divergence under a size. None leaves the zeros as they are.
        bits: the goal: bytes of so many bits for each survivor, 2 to 8. Default where no other goal is
            given: 4.
        target_bytes: or a file of at most so many bytes.
        max_divergence: or the smallest file of at most this divergence on held-back data.
        max_loss: or the smallest file whose `metric` is at most so much above the original's.
        metric: ``fn(model) -> float``, lower is better.
        pruning: options for `de_plugin.prune`, such as ``{"recovery": "distill"}``.
        quantizing: options for `de_plugin.quantize`, such as ``{"recovery": "distill"}``.
        progress: called when a part of the work begins.
        include: name patterns and module types; default all prunable weights.
        exclude: name patterns and module types to leave alone.
        divergence: "kl", "js", "mse", "cosine", or a callable on (student outputs, teacher outputs).
        forward: ``fn(model, inputs) -> outputs`` for models that need more than a call.
        samples: read at most this many samples.
        batch_size: samples in a forward pass.
        holdout: fraction of the samples held back from the search, or which ones, bool ``(samples,)``.
        memory: bytes for the inputs, and again for the teacher's outputs.
        seed: of every draw.
        checkpoint: a folder in which pruning and levels of each sparsity are kept as they go; the same call
            goes on from there.

    Returns:
        What was done.

    Raises:
        TargetError: no sparsity that was tried keeps to the goal.
        DEError: an argument cannot work; the message says what to do.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)).eval()
    >>> found = compress(model, torch.randn(256, 64), sparsity=0.8, pruning={"criterion": "magnitude"})
    >>> found.ratio > 10
    True
    """
    started = time.monotonic()
    shared: dict[str, Any] = {
        "include": include,
        "exclude": exclude,
        "divergence": divergence,
        "forward": forward,
        "samples": samples,
        "batch_size": batch_size,
        "holdout": holdout,
        "memory": memory,
        "seed": seed,
    }
    goal: dict[str, Any] = {
        "bits": bits,
        "target_bytes": target_bytes,
        "max_divergence": max_divergence,
        "max_loss": max_loss,
        "metric": metric,
    }
    if not any(value is not None for value in goal.values()):
        goal["bits"] = 4
    taken = ("model", "batches", "teacher", "checkpoint", *_SHARED)
    _check("pruning", pruning, prune, ("sparsity", "apply", *taken))
    _check("quantizing", quantizing, quantize, (*_GOALS, *taken))
    check_rounding(quantizing.get("rounding", "nearest"), quantizing.get("recovery"))
    fractions = _fractions(sparsity)
    _check_path(path)
    if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
        raise ArgumentError(f"checkpoint={checkpoint!r}: expected the path of a folder")
    smallest = goal["bits"] is None and target_bytes is None

    def tell(name: str, fraction: float) -> None:
        if progress is not None:
            progress(Stage(name, fraction, time.monotonic() - started))

    def place(part: str, fraction: float | None) -> Path | None:
        return None if checkpoint is None else Path(checkpoint) / f"{part}-{fraction or 0.0}"

    found: list[_Found] = []
    failed: list[TargetError] = []
    with untouched_on_error(model) as original:
        teacher = copy.deepcopy(model)
        for fraction in fractions:
            original.restore()
            pruned = None
            if fraction is not None:
                tell("prune", fraction)
                pruned = prune(
                    model, batches, fraction, **pruning, **shared, checkpoint=place("prune", fraction)
                )
            tell("quantize", fraction or 0.0)
            try:
                levels = quantize(
                    model,
                    batches,
                    teacher=teacher,
                    **goal,
                    **quantizing,
                    **shared,
                    checkpoint=place("levels", fraction),
                )
            except TargetError as error:
                failed.append(error)
                continue
            found.append(_Found(fraction or 0.0, pruned, levels, _copied(model)))
        if not found:
            raise failed[0]
        best = min(found, key=lambda x: x.levels.bytes if smallest else x.levels.divergence)
        tell("encode", best.sparsity)
        model.load_state_dict(best.state)
        info = _written(model, best.levels, path)
    return Compression(
        best.sparsity,
        best.pruning,
        best.levels,
        info,
        tuple((x.sparsity, x.levels.bytes, x.levels.divergence) for x in found),
        None if path is None else Path(path),
        time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Found:
    """One sparsity's result, and the model as it then was."""

    sparsity: float
    pruning: Report | None
    levels: QuantizationReport
    state: dict[str, Tensor]


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def _written(model: nn.Module, levels: QuantizationReport, path: str | os.PathLike[str] | None) -> Info:
    """Read the file's content as anyone would, compare it with the model, and write it."""
    data, info = packed(levels.state, dtypes=levels.dtypes)
    decoded = loads(data, max_bytes=1 << 62)
    state = model.state_dict()
    wrong = [name for name, x in state.items() if not _same(x.detach().cpu(), decoded.get(name))]
    if wrong or len(decoded) != len(state):
        raise FileError(f"path={path}: {', '.join(wrong) or 'names'} would not come back; please report this")
    ranks = Ranks(torch.device("cpu"))

    def write() -> Tensor:
        if path is not None and ranks.rank == 0:
            with whole(path) as draft:
                draft.write_bytes(data)
        return torch.zeros(1, dtype=torch.float64)

    ranks.run_shared(1, write)  # where the first cannot write, none goes on
    return info


def _same(ours: Tensor, theirs: Tensor | None) -> bool:
    if theirs is None or ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return torch.equal(
        ours.contiguous().flatten().view(torch.uint8), theirs.contiguous().flatten().view(torch.uint8)
    )


def _fractions(sparsity: float | Sequence[float] | None) -> list[float | None]:
    if sparsity is None or isinstance(sparsity, Real):
        return [None if sparsity is None else check_sparsity(sparsity)]
    if isinstance(sparsity, str) or not isinstance(sparsity, Sequence) or not sparsity:
        raise ArgumentError(
            f"sparsity={sparsity!r}: expected a fraction in [0, 1), several in a list, or None"
        )
    return [check_sparsity(x) for x in sparsity]


def _check(
    argument: str, options: Mapping[str, Any], function: Callable[..., Any], taken: Sequence[str]
) -> None:
    """Refuse options that the function does not have, or that have a place of their own."""
    known = [name for name in inspect.signature(function).parameters if name not in taken]
    for name in options:
        if name == "teacher":
            raise ArgumentError(
                f"{argument}={{'teacher': ...}}: compress measures from the model as it is; call "
                "de_plugin.prune and de_plugin.quantize yourself for another teacher"
            )
        if name in taken:
            raise ArgumentError(f"{argument}={{{name!r}: ...}}: {name} is an argument of compress itself")
        if name not in known:
            raise ArgumentError(
                f"{argument}={{{name!r}: ...}}: unknown; the options are {', '.join(sorted(known))}"
            )


def _check_path(path: str | os.PathLike[str] | None) -> None:
    """Refuse a path before the work begins, not after it."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if not folder.is_dir() or Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise FileError(f"path={path}: cannot be written; give a file in an existing folder")
