"""Accuracy: right for any batch size, and the model is as it was, also after an exception."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from de_plugin.errors import ArgumentError, DataError
from de_plugin.zoo import Dataset, accuracy, resnet


@pytest.mark.parametrize("batch_size", [1, 3, 4, 1000])
def test_percent_of_the_right_ones(batch_size: int) -> None:
    logits = torch.eye(4).repeat(2, 1)
    labels = torch.tensor([0, 1, 2, 3, 0, 0, 0, 0])
    assert accuracy(nn.Identity(), logits, labels, batch_size) == 62.5


def test_every_module_keeps_its_mode_and_its_statistics(tiny: Dataset) -> None:
    model = resnet().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accuracy(model, tiny.test_inputs, tiny.test_labels)
    assert model.training
    assert not model.norm.training
    assert model.block1.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_mode_is_restored_after_an_exception() -> None:
    class Failing(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            assert not self.training
            raise KeyboardInterrupt

    model = Failing().train()
    with pytest.raises(KeyboardInterrupt):
        accuracy(model, torch.zeros(2, 3), torch.zeros(2).long())
    assert model.training


def test_mistakes_are_named() -> None:
    with pytest.raises(ArgumentError, match="batch_size is 0"):
        accuracy(nn.Identity(), torch.zeros(2, 3), torch.zeros(2).long(), 0)
    for inputs, labels in [
        (torch.zeros(0, 3), torch.zeros(0)),
        (torch.zeros(2, 3), torch.zeros(3)),
    ]:
        with pytest.raises(DataError, match="at least one input and labels"):
            accuracy(nn.Identity(), inputs, labels.long())
