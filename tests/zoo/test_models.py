"""The zoo's networks: their sizes, their outputs, and nothing hidden in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from de_plugin.zoo import MODELS, lenet5, lenet300, mlpnet, resnet, vit
from de_plugin.zoo.models import ResidualBlock
from de_plugin.zoo.transformer import Attention

PARAMETERS = {"lenet300": 266_610, "lenet5": 431_080, "mlpnet": 32_360, "resnet": 96_314, "vit": 154_954}


def test_names_are_sorted_and_lead_to_the_constructors() -> None:
    assert list(MODELS) == sorted(MODELS)
    assert set(MODELS.values()) == {lenet300, lenet5, mlpnet, resnet, vit}


@pytest.mark.parametrize("name", MODELS)
def test_size_and_output(name: str) -> None:
    model = MODELS[name]()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    logits = model(torch.zeros(3, 1, 28, 28))
    assert logits.shape == (3, 10)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_outputs_in_eval_mode_do_not_depend_on_the_batch(name: str) -> None:
    model = MODELS[name]().eval()
    inputs = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = model(inputs)
        alone = torch.cat([model(one[None]) for one in inputs])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_can_be_traced_symbolically(name: str) -> None:
    model = MODELS[name]().eval()
    traced = torch.fx.symbolic_trace(model)
    inputs = torch.ones(2, 1, 28, 28)
    torch.testing.assert_close(traced(inputs), model(inputs))


def test_mlpnet_has_the_published_names_and_shapes() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in mlpnet().state_dict().items()}
    assert shapes == {"fc1.weight": (40, 784), "fc2.weight": (20, 40), "fc3.weight": (10, 20)}


def test_a_block_without_its_convolutions_is_its_shortcut() -> None:
    block = ResidualBlock(4, 4).eval()
    assert isinstance(block.norm2.weight, nn.Parameter)
    nn.init.zeros_(block.norm2.weight)
    inputs = torch.rand(2, 4, 6, 6)
    torch.testing.assert_close(block(inputs), inputs)


def test_attention_is_that_of_torch() -> None:
    ours, theirs = Attention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    tokens = torch.randn(3, 5, 8)
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens, need_weights=False)[0])


@pytest.mark.parametrize("heads", [2, 1])
def test_attention_without_channels_is_attention_with_zeroed_ones(heads: int) -> None:
    """With two heads each is narrower by one channel, with one a whole head is gone."""
    whole, small = Attention(8, 2), Attention(8, 2)
    kept = torch.tensor([0, 1, 3, 4, 5, 7] if heads == 2 else [0, 1, 2, 3])
    rows = torch.cat([kept + 8 * part for part in range(3)])
    gone = torch.ones(24, dtype=torch.bool).index_fill(0, rows, False)
    small.num_heads, small.qkv, small.proj = heads, nn.Linear(8, len(rows)), nn.Linear(len(kept), 8)
    with torch.no_grad():
        small.qkv.weight.copy_(whole.qkv.weight[rows])
        small.qkv.bias.copy_(whole.qkv.bias[rows])
        small.proj.weight.copy_(whole.proj.weight[:, kept])
        small.proj.bias.copy_(whole.proj.bias)
        whole.qkv.weight[gone] = 0
        whole.qkv.bias[gone] = 0
    tokens = torch.randn(3, 5, 8)
    torch.testing.assert_close(small(tokens), whole(tokens))
