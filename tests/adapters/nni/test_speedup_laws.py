"""Whatever the masks: the smaller model computes what the masked one does, and the user's stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin.adapters.nni.alignment import aligned
from de_plugin.adapters.nni.speedup import speedup
from de_plugin.errors import ArgumentError

Build = Callable[[], nn.Module]
IMAGE = (3, 3, 6, 6)


class Two(nn.Module):
    """Convolution, batch norm and linear, with a branch that `mix` joins."""

    def __init__(self, mix: str, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.mix = mix
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.na = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=bias)
        self.nb = nn.BatchNorm2d(8)
        self.fc = nn.Linear((16 if mix == "concat" else 8) * 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.na(self.a(x)))
        z = self.nb(self.b(y))
        z = y + z if self.mix == "sum" else torch.cat((y, z), 1) if self.mix == "concat" else z
        out: Tensor = self.fc(nn.functional.max_pool2d(z.relu(), 2).flatten(1))
        return out


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 8, 1)
        self.again = self.b
        self.fc = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.again(self.b(self.a(x).relu()).relu()).relu())
        return out


BUILDS: dict[str, Build] = {
    "plain": lambda: Two("none"),
    "residual": lambda: Two("sum"),
    "concat": lambda: Two("concat"),
    "grouped": lambda: Two("none", groups=2),
    "grouped residual": lambda: Two("sum", groups=4),
    "depthwise": lambda: Two("none", groups=8, bias=False),
    "depthwise with bias": lambda: Two("none", groups=8),
    "depthwise residual": lambda: Two("sum", groups=8),
    "shared": Shared,
}


def built(build: Build, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model


def rows(model: nn.Module, kept: dict[str, list[int]], bias: bool = True) -> dict[str, dict[str, Any]]:
    masks: dict[str, dict[str, Any]] = {}
    for name, keep in kept.items():
        layer: Any = model.get_submodule(name)
        mask = torch.zeros_like(layer.weight)
        mask[keep] = 1
        masks[name] = {"weight": mask}
        if layer.bias is not None and bias:
            masks[name]["bias"] = torch.zeros_like(layer.bias)
            masks[name]["bias"][keep] = 1
    return masks


def images(seed: int = 0) -> Tensor:
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(seed))


def difference(model: nn.Module, masks: Any, example: Any, *others: Any) -> float:
    small, same = speedup(model, masks, example).eval(), aligned(model, masks, example).eval()
    with torch.no_grad():
        return max(float((small(*x) - same(*x)).abs().max()) for x in others)


KEPT = st.lists(st.integers(0, 7), min_size=1, max_size=7, unique=True)


@pytest.mark.filterwarnings("ignore:speedup. nothing became smaller")
@pytest.mark.parametrize("name", BUILDS)
@settings(deadline=None, max_examples=12)
@given(first=KEPT, second=st.none() | KEPT, bias=st.booleans(), seed=st.integers(0, 99))
def test_it_computes_what_the_masked_model_does(
    name: str, first: list[int], second: list[int] | None, bias: bool, seed: int
) -> None:
    model = built(BUILDS[name], seed)
    second = first if name == "shared" else second
    masks = rows(model, {"a": first} if second is None else {"a": first, "b": second}, bias)
    assert difference(model, masks, images(seed), (images(seed + 1),), (images(seed)[:1],)) < 1e-5


@pytest.mark.filterwarnings("ignore:speedup. nothing became smaller")
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), rate=st.floats(0.2, 0.95))
def test_masks_of_single_weights_and_inputs_are_kept_too(seed: int, rate: float) -> None:
    model = built(BUILDS["residual"], seed)
    generator = torch.Generator().manual_seed(seed)
    masks = {
        n: {
            "weight": (
                torch.rand(model.get_parameter(f"{n}.weight").shape, generator=generator) > rate
            ).float()
        }
        for n in "ab"
    }
    masks["b"]["weight"][:, [1, 3]] = 0
    for mask in masks.values():
        mask["weight"][0, 0] = 1
    assert difference(model, masks, images(seed), (images(seed + 1),)) < 1e-5


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "grouped", "concat", "shared"])
def test_it_is_smaller(name: str) -> None:
    model = built(BUILDS[name])
    keep = [0, 1, 4, 5]
    small = speedup(model, rows(model, {"a": keep, "b": keep}), images())
    assert small.get_submodule("a").out_channels == small.get_submodule("b").out_channels == 4
    assert type(small) is type(model)


def test_a_depthwise_layer_follows_the_one_before_it() -> None:
    model = built(BUILDS["depthwise"])
    assert speedup(model, rows(model, {"a": [0, 2, 5]}), images()).get_submodule("b").groups == 3


def test_masked_batch_norms_take_the_layer_before_along() -> None:
    model = built(BUILDS["plain"])
    masks = rows(model, {"na": [1, 2, 3]})
    assert speedup(model, masks, images()).get_submodule("a").out_channels == 3
    assert difference(model, masks, images(), (images(1),)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    model = built(BUILDS["residual"]).to(dtype)
    small = speedup(model, rows(model, {"a": [0, 1], "b": [0, 1]}), images().to(dtype))
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert torch.get_default_dtype() == torch.float32


def test_modes_gradients_and_shared_modules_stay() -> None:
    model = built(BUILDS["shared"]).train()
    model.get_submodule("fc").eval()
    model.get_parameter("a.bias").requires_grad_(False)
    small: Any = speedup(model, rows(model, {"a": [0, 1], "b": [0, 1]}), images())
    assert small.training
    assert small.a.training
    assert not small.fc.training
    assert not small.a.bias.requires_grad
    assert small.b is small.again


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor, scale: Tensor | None = None, flip: bool = False) -> Tensor:
        y = self.a(x)
        if scale is not None:
            y = y * scale
        out: Tensor = self.fc(y.relu())
        return -out if flip else out


def test_examples_are_tensors_tuples_or_dicts() -> None:
    model = built(Optional)
    masks = rows(model, {"a": [0, 3, 4]})
    x, scale = torch.randn(5, 4), torch.rand(5, 1)
    for example, given_ in (
        (x, (x,)),
        ([x], (x,)),
        ((x, scale), (x, scale)),
        ({"scale": scale, "x": x}, (x, scale)),
    ):
        assert difference(model, masks, example, given_) < 1e-5
    with pytest.raises(ArgumentError, match="example: keys y"):
        speedup(model, masks, {"y": x})


def wrapped(model: nn.Module) -> Any:
    pruning = pytest.importorskip("nni.compression.pruning")
    pruner = pruning.L1NormPruner(model, [{"op_names": ["a", "b"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    model(images())  # the wrappers leave masked weights that are no leaves
    return pruner, masks


def test_a_wrapped_model_is_unwrapped_in_a_copy_only() -> None:
    model = built(BUILDS["plain"])
    plain = copy.deepcopy(model)
    pruner, masks = wrapped(model)
    before = {k: v.detach().clone() for k, v in model.state_dict().items()}
    small = speedup(model, masks, images())
    assert hasattr(model.get_submodule("a"), "_nni_wrapper")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(hasattr(m, "_nni_wrapper") for m in small.modules())
    with torch.no_grad():
        torch.testing.assert_close(small(images(1)), speedup(plain, masks, images())(images(1)))
    pruner.unwrap_model()
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())
