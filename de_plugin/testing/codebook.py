"""The contract of codebooks: zero is exact, what was pruned stays so, levels fit in two bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from de_plugin.encode.quantized import Quantized
from de_plugin.errors import ArgumentError
from de_plugin.quantize import Codebook
from de_plugin.testing.state import same_bits


def check_codebook(codebook: Codebook, *, levels: int | None = None) -> None:
    """Check what `de_plugin.quantize.Codebook` promises.

    Pruned weights and exact zeros get symbol 0, survivors only where `zeroes` says so; levels are finite
    and either fit in two bytes or are multiples of a step; nothing is changed in place; the same arguments
    give the same result; only ratios of the importance count; what cannot be quantized is refused.

    Args:
        codebook: what is tested.
        levels: the most that a group may use, zero among them; None is not checked.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    assert isinstance(codebook, Codebook), (
        f"{codebook!r}: expected name, zeroes and fit(weight, kept, importance)"
    )
    assert isinstance(codebook.name, str), f"{codebook!r}: its name is no string"
    assert codebook.name, f"{codebook!r}: its name is empty"
    assert isinstance(codebook.zeroes, bool), f"codebook {codebook.name!r}: zeroes is no bool"
    for what, weight, kept in _weights():
        who = f"codebook {codebook.name!r}, {what}"
        cost = torch.rand(weight.shape, generator=torch.Generator().manual_seed(3))
        for importance in (None, cost, torch.zeros_like(cost)):
            before = weight.clone(), kept.clone(), None if importance is None else importance.clone()
            found = codebook.fit(weight, kept, importance)
            _check_result(found, weight, kept, codebook.zeroes, who, levels)
            again = codebook.fit(weight, kept, None if importance is None else 4 * importance)
            same = torch.equal(found.symbols, again.symbols) and same_bits(found.levels, again.levels)
            assert same, f"{who}: gave another result the second time, with the importance times four"
            assert same_bits(weight, before[0]), f"{who}: changed the weight"
            assert torch.equal(kept, before[1]), f"{who}: changed what is kept"
            if importance is not None and before[2] is not None:
                assert same_bits(importance, before[2]), f"{who}: changed the importance"
    _check_refusals(codebook)


def _weights() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield weights with what is kept of them, by what they are."""
    rng = torch.Generator().manual_seed(5)
    for shape in ((6, 20), (4, 3, 3, 3), (3, 1)):
        weight = torch.randn(shape, generator=rng) * 0.1
        yield f"normal {shape}", weight, torch.rand(shape, generator=rng) < 0.4
        yield f"all kept {shape}", weight, torch.ones(shape, dtype=torch.bool)
    some = torch.randn(5, 40, generator=rng)
    kept = torch.rand(5, 40, generator=rng) < 0.3
    yield "half precision", some.half(), kept
    yield "bfloat16", some.bfloat16(), kept
    yield "double precision", some.double(), kept
    yield "positive", some.abs() + 0.01, kept
    yield "one far away", torch.where(torch.arange(200).reshape(5, 40) == 7, 50.0, some), kept
    yield "large", some * 1e30, kept
    yield "small", some * 1e-30, kept
    yield "nothing kept", some, torch.zeros_like(kept)
    yield "zeros that count as kept", torch.zeros(4, 5), torch.ones(4, 5, dtype=torch.bool)
    yield "one value", torch.full((4, 5), -0.3), torch.ones(4, 5, dtype=torch.bool)
    yield "one survivor", some, torch.arange(200).reshape(5, 40) == 11
    yield "empty", torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)


def _check_result(
    found: Quantized, weight: Tensor, kept: Tensor, zeroes: bool, who: str, levels: int | None
) -> None:
    assert isinstance(found, Quantized), f"{who}: returned {type(found).__name__}, expected Quantized"
    shape = tuple(found.symbols.shape)
    assert shape == tuple(weight.shape), f"{who}: symbols {shape}, expected {tuple(weight.shape)}"
    alive = kept & (weight != 0)
    revived = int((found.symbols[~alive] != 0).sum())
    assert not revived, f"{who}: {revived} pruned weights have a level other than zero"
    lost = int((found.symbols[alive] == 0).sum())
    assert zeroes or not lost, f"{who}: {lost} survivors became zero, and zeroes is False"
    values = found.dequantize()
    nil = int((values[found.symbols != 0] == 0).sum())
    assert not nil, f"{who}: {nil} survivors have another symbol than 0, whose level is zero"
    if levels is not None:
        groups = [found.symbols] if found.axis is None else found.symbols.unbind(found.axis)
        most = max((len(torch.unique(torch.cat([g.reshape(-1), g.new_zeros(1)]))) for g in groups), default=0)
        assert most <= levels, f"{who}: a group uses {most} levels, expected at most {levels}"
    assert _stepped(found) or all(_short(row) for row in found.levels), (
        f"{who}: levels are neither exact in two bytes nor multiples of a step"
    )


def _stepped(found: Quantized) -> bool:
    multiples = torch.arange(found.lowest, found.lowest + found.levels.shape[1]).float()
    columns = (multiples != 0).nonzero()[:, 0]
    return any(
        torch.equal((found.levels[:, n] / multiples[n])[:, None] * multiples, found.levels) for n in columns
    )


def _short(row: Tensor) -> bool:
    return any(torch.equal(row.to(d).float(), row) for d in (torch.float16, torch.bfloat16))


def _check_refusals(codebook: Codebook) -> None:
    who = f"codebook {codebook.name!r}"
    weight, kept = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    broken = [
        ("an infinite weight", (torch.full_like(weight, float("inf")), kept, None)),
        ("a weight with NaN", (weight * float("nan"), kept, None)),
        ("a mask of another shape", (weight, kept[:1], None)),
        ("a mask of numbers", (weight, kept.int(), None)),
        ("importance of another shape", (weight, kept, torch.ones(3))),
        ("negative importance", (weight, kept, -weight)),
    ]
    for what, arguments in broken:
        try:
            codebook.fit(*arguments)
        except ArgumentError:
            continue
        raise AssertionError(f"{who}: took {what}; expected an ArgumentError")
