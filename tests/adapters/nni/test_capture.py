"""Calibration data come from an evaluator where none are given, which notices nothing of it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.adapters.nni.training import SMALL, config, evaluator, images, simple

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.compression.pruning import AGPPruner, L1NormPruner
    from nni.compression.quantization import QATQuantizer

    from de_plugin.adapters.nni import DEPruner

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nni", "ignore::UserWarning:nni")
FIRST, SECOND = ([{"op_names": [name], "sparse_ratio": 0.5}] for name in ("conv1", "fc1"))
QUANTIZED = [{"op_names": ["conv1"], "target_names": ["weight"], "quant_dtype": "int8"}]


def test_data_come_from_the_evaluator_which_stays_as_it_was() -> None:
    model, seen = simple(), list[float]()
    trainer = evaluator(model, seen)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruner = DEPruner(model, config(), trainer, criterion=SMALL, samples=60)
    known = dict(vars(trainer))
    state = torch.random.get_rng_state()
    pruner.compress()
    assert torch.equal(state, torch.random.get_rng_state())
    assert dict(vars(trainer)) == known
    assert trainer.model is None
    pruner.unwrap_model()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert pruner._read is not None
    assert [len(batch[0]) for batch in pruner._read] == [16, 16, 16, 12]
    assert len(seen) < 8


def test_the_dummy_input_helps_out_where_training_fails() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))  # the training gives images: it can't be called
    wanted = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    dummy = torch.randn(32, 4)
    pruner = DEPruner(model, wanted, evaluator(model, dummy=dummy), criterion="magnitude")
    pruner.compress()
    assert pruner.report()[0].removed == {"0.weight": (0, 4, 8)}


class Named(nn.Module):
    """Takes its inputs by name, and gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Any, scale: Any = None, labels: Any = None) -> dict[str, Any]:
        logits = self.two(self.one(x).relu()) * (1 if scale is None else scale)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"logits": logits, "loss": loss}


@pytest.mark.parametrize("mixed", [False, True])
def test_calls_by_name_are_captured_as_well(mixed: bool) -> None:
    model: Any = Named()
    wide = torch.randn(16, 6), torch.full((16, 1), 2.0), torch.arange(16) % 3

    def train(student: Any, optimizer: Any, step: Any, _: Any, max_steps: Any, __: Any) -> None:
        for _ in range(max_steps):
            x, scale, labels = wide
            found = student(x, scale=scale) if mixed else student(x=x, scale=scale, labels=labels)
            step(found["logits"].sum()).backward()
            optimizer.step()

    trainer = evaluator(model, step=lambda loss: loss)
    trainer.training_func = train
    wanted = [{"op_names": ["one"], "sparse_ratio": 0.5}]
    pruner = DEPruner(model, wanted, trainer, criterion="magnitude", samples=20)
    pruner.compress()
    assert pruner._read is not None
    inputs = pruner._read[0][0]
    assert set(inputs) == {"x", "scale"}
    assert float(inputs["scale"].max()) == 2
    assert [len(batch[0]["x"]) for batch in pruner._read] == [16, 4]


def test_data_that_can_be_read_once_are_read_once() -> None:
    pruner = DEPruner(simple(), config(), batches=iter(images(48).split(16)), criterion=SMALL)
    pruner.compress()
    pruner.compress()
    assert len(pruner.report()) == 2


def broken(logits: Any, labels: Any) -> Any:
    raise ValueError("no loss")


def scheduled(model: Any, trainer: Any) -> Any:
    return AGPPruner(DEPruner(model, FIRST, trainer, criterion=SMALL), 2, 2)


def after_another(model: Any, trainer: Any) -> Any:
    return DEPruner.from_compressor(L1NormPruner(model, FIRST, trainer), SECOND, criterion=SMALL)


def before_another(model: Any, trainer: Any) -> Any:
    return QATQuantizer.from_compressor(DEPruner(model, FIRST, trainer, criterion=SMALL), QUANTIZED)


def beside_another(model: Any, trainer: Any) -> Any:
    first = DEPruner(model, FIRST, trainer, criterion=SMALL)
    return DEPruner.from_compressor(first, SECOND, criterion=SMALL)


@pytest.mark.parametrize("build", [scheduled, after_another, before_another, beside_another])
def test_an_error_in_the_training_leaves_no_hook(build: Any) -> None:
    model = simple()
    trainer = evaluator(model, step=broken)
    with pytest.raises(ValueError, match="no loss"):
        build(model, trainer).compress(4, None)
    assert not model._forward_hooks
    assert "train" not in vars(trainer)


def test_an_error_before_the_training_leaves_the_next_one_as_it_is() -> None:
    model, seen = simple(), list[float]()
    trainer = evaluator(model, seen)
    pruner = after_another(model, trainer)
    last = QATQuantizer.from_compressor(pruner, QUANTIZED)

    def fails(_: Any) -> None:
        raise ValueError("no start")

    last.fused_compressors[-1]._fuse_preprocess = fails
    with pytest.raises(ValueError, match="no start"):
        last.compress(4, None)
    assert not model._forward_hooks
    trainer.train(3)
    assert len(seen) == 3
    assert not model._forward_hooks
    assert "train" not in vars(trainer)
