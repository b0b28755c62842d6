"""Whether a model is bit-exactly as it was, after a call and after an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from de_plugin.assess.problem import Problem


class Interrupt(BaseException):
    """Raised inside a block; like KeyboardInterrupt it is no Exception."""


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).clone()


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Say whether two tensors agree in every bit, NaN payloads and signs of zero included."""
    return torch.equal(_bits(first), _bits(second))


def state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, by name."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def check_state(model: nn.Module, before: dict[str, Tensor], who: str, when: str) -> None:
    """Check that the model holds the values of `before`; `who` and `when` begin the message."""
    now = state(model)
    assert list(now) == list(before), (
        f"{who}: {when} the model has the tensors {list(now)}, expected {list(before)}"
    )
    changed = [name for name in before if not same_bits(before[name], now[name])]
    assert not changed, f"{who}: {when} {', '.join(changed)} differ; expected them bit-exact"


@contextmanager
def untouched(problem: Problem, who: str) -> Iterator[None]:
    """Check that the block leaves values, gradients, flags, modes and `kept` as they were."""
    model, kept, quota = problem.model, problem.kept.clone(), problem.quota
    parameters = list(model.parameters())
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, 3.0) if number % 2 else None
    grads = [(p.grad, p.grad.clone() if p.grad is not None else None) for p in parameters]
    flags = [p.requires_grad for p in parameters]
    modes = [m.training for m in model.modules()]
    before = state(model)
    yield
    check_state(model, before, who, "after the call")
    for (name, parameter), (grad, value) in zip(model.named_parameters(), grads, strict=True):
        same = parameter.grad is grad and (grad is None or value is None or same_bits(grad, value))
        assert same, f"{who}: {name}.grad was changed; use torch.autograd.grad"
    assert [p.requires_grad for p in parameters] == flags, f"{who}: requires_grad was changed"
    assert [m.training for m in model.modules()] == modes, f"{who}: train or eval mode was changed"
    assert torch.equal(problem.kept, kept), f"{who}: problem.kept was changed"
    assert problem.quota is quota, f"{who}: problem.quota was changed"
