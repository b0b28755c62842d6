"""The zoo's networks: their sizes, their outputs, and nothing hidden in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from de_plugin.zoo import MODELS, lenet5, lenet300, mlpnet, resnet
from de_plugin.zoo.models import ResidualBlock

PARAMETERS = {"lenet300": 266_610, "lenet5": 431_080, "mlpnet": 32_360, "resnet": 96_314}


def test_names_are_sorted_and_lead_to_the_constructors() -> None:
    assert list(MODELS) == sorted(MODELS)
    assert set(MODELS.values()) == {lenet300, lenet5, mlpnet, resnet}


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
