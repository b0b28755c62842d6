"""The contract of units: zeroing is seen by the model and undone bit-exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from de_plugin.assess.units import Units
from de_plugin.errors import DEError
from de_plugin.testing.state import Interrupt, check_state, same_bits, state


def check_units(units: Units, model: nn.Module | None = None) -> None:
    """Check what `Units` promises: `zeroed` changes the model and restores it bit-exactly.

    Args:
        units: what is tested.
        model: whose units they are; default ``units.model``.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    assert isinstance(units, Units), f"{units!r}: expected count and zeroed(kept)"
    who = f"units {type(units).__name__}"
    model = model if model is not None else getattr(units, "model", None)
    assert isinstance(model, nn.Module), f"{who}: have no model attribute; pass model="
    assert units.count > 0, f"{who}: count is {units.count}, expected a positive number"
    before = state(model)
    with units.zeroed(torch.ones(units.count, dtype=torch.bool)):
        check_state(model, before, who, "with every unit kept")
    rng = torch.Generator().manual_seed(0)
    for kept in (torch.zeros(units.count, dtype=torch.bool), torch.rand(units.count, generator=rng) < 0.5):
        for error in (None, ValueError(), Interrupt()):
            inside: dict[str, Tensor] = {}
            try:
                with units.zeroed(kept):
                    inside.update(state(model))
                    if error is not None:
                        raise error
            except (ValueError, Interrupt) as caught:
                if caught is not error:
                    raise AssertionError(f"{who}: zeroed raised {caught!r}") from caught
            else:
                assert error is None, f"{who}: zeroed swallowed {type(error).__name__}"
            when = "after the block" if error is None else "after an exception in the block"
            check_state(model, before, who, when)
            if not bool(kept.any()):
                same = all(same_bits(inside[n], before[n]) for n in before)
                assert not same, f"{who}: zeroing every unit changed nothing"
    for wrong in (torch.ones(units.count + 1, dtype=torch.bool), torch.ones(units.count)):
        try:
            with units.zeroed(wrong):
                pass
        except DEError:
            check_state(model, before, who, "after a refused mask")
        else:
            raise AssertionError(
                f"{who}: took a mask {wrong.dtype} {tuple(wrong.shape)}; expected a DEError unless it "
                f"is torch.bool ({units.count},)"
            )
