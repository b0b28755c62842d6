"""A model called with other weights than its own, for `torch.func`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem


def places(model: nn.Module, parameter: nn.Parameter) -> list[str]:
    """Return a name for each module that holds `parameter`, one a module.

    `functional_call` restores a module that occurs under two names to what it swapped in, so that
    every place must be named once, and without `tie_weights`.
    """
    return [
        f"{prefix}.{own}" if prefix else own
        for prefix, module in model.named_modules()
        for own, value in module._parameters.items()
        if value is parameter
    ]


class Call(nn.Module):
    """Lets `functional_call` go through the user's forward."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.model = problem.model
        self._forward = problem.forward

    def forward(self, inputs: Any) -> Any:
        """Call the user's forward on the model."""
        return self._forward(self.model, inputs)
