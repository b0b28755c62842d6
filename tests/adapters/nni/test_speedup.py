"""The smaller network gives what the masked one gives, and the user's own stays as it was."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from tests.adapters.torch_pruning.architectures import CASES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.compression.pruning import L1NormPruner

    from de_plugin.adapters.nni.alignment import aligned
    from de_plugin.adapters.nni.speedup import speedup

from de_plugin.errors import DEError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:nni")
NAMES = ["mlp", "plain", "normed", "flattened", "depthwise", "grouped", "transposed", "residual", "concat"]


def masked(model: Any, ratio: float = 0.5) -> tuple[Any, dict[str, Any]]:
    last = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    config = [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": ratio, "exclude_op_names": [last]}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = L1NormPruner(model, config)
        _, masks = pruner.compress()
        pruner.unwrap_model()
    return model, masks


@pytest.mark.filterwarnings("ignore:speedup. nothing became smaller")
@pytest.mark.parametrize("name", NAMES)
def test_it_gives_what_the_masked_model_gives(name: str) -> None:
    case = CASES[name]
    model, masks = masked(case.build())
    x = case.inputs(5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = speedup(model, masks, x)
    with torch.no_grad():
        expected = aligned(model, masks, x)(x)
        found = small(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if name in ("mlp", "plain", "normed", "flattened", "transposed", "concat"):
        assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        out: torch.Tensor = self.last(x if bool(x.sum() > 0) else -x)
        return out


def test_what_cannot_be_traced_is_an_error_that_says_where() -> None:
    model, masks = masked(Branching().eval())
    with pytest.raises(DEError, match="Branching"):
        speedup(model, masks, torch.randn(2, 6))
    with pytest.raises(DEError, match="nowhere"):
        speedup(model, {"nowhere": masks["first"]}, torch.randn(2, 6))
