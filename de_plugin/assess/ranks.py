"""Several processes as one: work is shared out, numbers are put together, and the result is the same.

Every rank runs the same search on the same data. What is shared out is the measuring; which rank
does a piece of it never changes the piece, and sums are always taken in the same order, so that one,
two or three ranks choose the same units bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from de_plugin.errors import ArgumentError, RankError

T = TypeVar("T")

_GROUPS = 12
"""Parts of a sum over batches; fixed, so that the order of summation is."""


_ALONE = ContextVar("de_plugin_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Let this process search by itself inside the block: the others are busy with other searches."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


class Ranks:
    """The processes of `torch.distributed`; this one alone where that was never initialised, or in `alone`.

    Args:
        device: where collective operations on an NCCL group have their tensors.
    """

    def __init__(self, device: torch.device) -> None:
        active = dist.is_available() and dist.is_initialized() and not _ALONE.get()
        self.world = dist.get_world_size() if active else 1
        self.rank = dist.get_rank() if active else 0
        self._device = device if active and "nccl" in dist.get_backend() else torch.device("cpu")

    def total(self, values: Tensor) -> Tensor:
        """Add up what the ranks have found: each entry is nil but on one of them, so nothing is rounded."""
        if self.world == 1:
            return values
        shared = values.to(self._device)
        self._run(lambda: dist.all_reduce(shared))
        return shared.to(values.device)

    def agreed(self, decision: bool) -> bool:
        """Return the decision of the first rank: clocks differ."""
        if self.world == 1:
            return decision
        flag = torch.tensor([int(decision)], device=self._device)
        self._run(lambda: dist.broadcast(flag, 0))
        return bool(flag.item())

    def run_shared(
        self,
        size: int,
        work: Callable[[], Tensor],
        expected: Mapping[type[Exception], Callable[[], Exception]] | None = None,
    ) -> Tensor:
        """Add up what the ranks have found, each entry nil but on one of them; an error stops them all.

        Args:
            size: of the result.
            work: returns this rank's part, float64 ``(size,)``.
            expected: kinds of errors, the graver first, and what the ranks that have met none of the
                kind raise when another has. Any other kind is graver still, and theirs is a `RankError`.

        Raises:
            RankError: another rank has raised something unexpected.
            Exception: what `work` has raised, unless another rank has met something graver.
        """
        kinds = dict(expected or {})
        met: Exception | None = None
        own = torch.zeros(size, dtype=torch.float64)
        try:
            own = work()
        except Exception as error:  # the others must not wait for this rank
            met = error
        try:
            flags = torch.zeros(1 + len(kinds), dtype=torch.float64)
            kind = -1
            if met is not None:
                kind = next((n for n, x in enumerate(kinds, 1) if isinstance(met, x)), 0)
                flags[kind] = 1
            found = self.total(torch.cat((own, flags)))
            failed = found[size:].nonzero()[:, 0].tolist()
            if failed and met is not None and failed[0] == kind:
                raise met
            if failed and failed[0]:
                raise list(kinds.values())[failed[0] - 1]()
            if failed:
                raise RankError("another rank has failed: see its error")
        finally:
            del met  # its traceback holds this frame, and with it what the work held
        return found[:size]

    def sum_in_order(self, count: int, part: Callable[[Sequence[int]], list[Tensor]]) -> list[Tensor]:
        """Return the sum of `count` contributions, each computed by one rank.

        Args:
            count: how many there are.
            part: returns the sum of some of them, float tensors of the same shapes each time; for none
                of them, zeros.

        Raises:
            RankError: `part` has raised something on another rank.
        """
        groups = [range(count)[n::_GROUPS] for n in range(min(_GROUPS, count))]
        total: list[Tensor] | None = None
        for first in range(0, len(groups), self.world):  # each rank is busy with one, then they are told
            rank_groups = groups[first : first + self.world]
            mine = rank_groups[self.rank] if self.rank < len(rank_groups) else ()
            own: list[Tensor] = []

            def work(mine: Sequence[int] = mine, own: list[Tensor] = own) -> Tensor:
                own.extend(part(mine))
                return torch.empty(0, dtype=torch.float64)

            self.run_shared(0, work)
            for owner in range(len(rank_groups)):
                found = own if self.world == 1 else [self._from(owner, x) for x in own]
                total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
        return part(()) if total is None else total

    def shares(self, costs: Sequence[float]) -> list[int]:
        """Return which rank does each piece of some work: runs of pieces of about the same cost in all."""
        total = sum(costs) or 1.0
        owners, done = [], 0.0
        for cost in costs:
            owners.append(min(self.world - 1, int(self.world * (done + cost / 2) / total)))
            done += cost
        return owners

    def check_equal(self, what: str, fingerprint: int) -> None:
        """Refuse ranks that hold different things.

        Raises:
            ArgumentError: `what` has another fingerprint on another rank.
        """
        if self.world == 1:
            return
        mine = torch.zeros(self.world, dtype=torch.int64, device=self._device)
        mine[self.rank] = fingerprint
        self._run(lambda: dist.all_reduce(mine))
        other = [rank for rank, value in enumerate(mine.tolist()) if value != int(mine[0])]
        if other:
            raise ArgumentError(
                f"{what}: rank(s) {other} hold(s) something else than rank 0; give all ranks the same model, "
                "arguments, checkpoint folder and number of threads, and the same calibration data in the "
                "same order (the work is shared out later)"
            )

    def on_first(self, work: Callable[[], None]) -> None:
        """Let the first rank do something, such as writing a file; an error there stops them all.

        Raises:
            RankError: the first rank has failed.
            Exception: on the first rank, what `work` has raised.
        """
        self.all_or_none(lambda: work() if self.rank == 0 else None)

    def all_or_none(self, work: Callable[[], T]) -> T:
        """Do something on every rank and return this rank's result; an error of one stops them all.

        Raises:
            RankError: another rank has failed.
            Exception: what `work` has raised here.
        """
        found: list[T] = []

        def run() -> Tensor:
            found.append(work())
            return torch.zeros(1, dtype=torch.float64)

        self.run_shared(1, run)
        return found[0]

    def wait(self) -> None:
        """Return when every rank has come so far."""
        if self.world > 1:
            self.total(torch.zeros(1))

    def _from(self, owner: int, value: Tensor) -> Tensor:
        shared = value.to(self._device, copy=True, memory_format=torch.contiguous_format)
        self._run(lambda: dist.broadcast(shared, owner))
        return shared.to(value.device)

    @staticmethod
    def _run(collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise RankError(
                f"a rank has died or can't be reached ({str(error).splitlines()[0]}); start all of them "
                "again: with prune(checkpoint=...) the search goes on where it was"
            ) from error
