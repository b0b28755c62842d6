"""Neural Compressor in a comparison: what its own algorithms leave, what Directed Evolution does in it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from de_plugin import compare
from de_plugin.errors import ArgumentError, MissingDependencyError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("neural_compressor.torch.quantization", reason="Neural Compressor is not installed")

from tests.adapters.neural_compressor.networks import cnn, made, mlp, unchanged, values  # isort: skip
from de_plugin.adapters.neural_compressor import builtin, counting  # isort: skip
from neural_compressor.torch.algorithms.weight_only.hqq.config import hqq_global_option  # isort: skip

HOST = "neural-compressor"
GROUP = 16 / builtin.GROUP


class Blocks(nn.Module):
    """Linear layers in blocks, as the host's AWQ looks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32)) for _ in range(3))
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        out: torch.Tensor = self.head(x)
        return out


def wide() -> nn.Module:
    """Return layers of whole groups."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)).eval()


def compared(
    model: nn.Module, x: torch.Tensor, methods: list[str], bits: tuple[float, ...], **more: Any
) -> Any:
    found: Any = compare(
        model, x[: len(x) // 2], test=x[len(x) // 2 :], task="bits", hosts=[HOST], methods=methods, bits=bits,
        **more,
    )  # fmt: skip
    return found


def samples(*shape: int) -> torch.Tensor:
    return torch.randn(256, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _as_the_host_was() -> Iterator[None]:
    before = hqq_global_option.use_half
    yield
    assert hqq_global_option.use_half == before


def test_linear_layers_take_their_bits_and_a_scale_a_group() -> None:
    found = compared(wide(), samples(32), [f"{HOST}:rtn", f"{HOST}:de*"], (4, 2))
    assert [r.error for r in found.failed] == []
    rows = {(r.method, r.sparsity): r for r in found.rows}
    assert rows["rtn", 4.0].bits == 4 + GROUP
    assert rows["rtn", 2.0].bits == 2 + GROUP
    for name in ("de", "de (compensated)"):
        assert rows[name, 2.0].divergence < rows["rtn", 2.0].divergence
        assert rows[name, 2.0].bits < rows[name, 4.0].bits < rows["rtn", 4.0].bits
        assert rows[name, 4.0].divergence < rows[name, 2.0].divergence
    assert found.versions[HOST]
    assert any("linear layers only" in note for note in found.notes)


def test_convolutions_keep_their_bits_but_in_directed_evolution() -> None:
    model, x = made("cnn")
    found = compared(model, x, [f"{HOST}:de", f"{HOST}:rtn"], (4,))
    assert [r.error for r in found.failed] == []
    de, rtn = found.rows
    parameters = dict(model.named_parameters())
    conv = sum(p.numel() for p in parameters.values() if p.dim() == 4)
    first, last = parameters["6.weight"], parameters["8.weight"]  # rows of 72 and 16 weights
    linear = first.numel() + last.numel()
    scales = 16 * (3 * len(first) + len(last))
    assert [n for n, b in rtn.layers if b != 32] == ["6.weight", "8.weight"]
    assert max(b for _, b in de.layers) < 16  # tables are much of so few weights
    assert [n for n, _ in de.layers] == [n for n, _ in rtn.layers]
    assert rtn.bytes == rtn.bits * (conv + linear) / 8
    assert rtn.bits == (32 * conv + 4 * linear + scales) / (conv + linear)
    assert de.bits < 6 < rtn.bits


@pytest.mark.parametrize("build", [cnn, mlp, wide])
@pytest.mark.parametrize(("name", "bits"), [("rtn", 3), ("nf4", 4)])
def test_plain_layers_compute_what_the_hosts_do(build: Any, name: str, bits: int) -> None:
    model = build()
    x = {cnn: samples(1, 9, 9), mlp: samples(12), wide: samples(32)}[build]
    before = values(model)
    found = builtin.quantized(name, model, bits, x)
    theirs = copy.deepcopy(found)(x)
    plain = counting.with_plain_layers(model, found)
    assert unchanged(model, before)
    assert [type(m) for m in plain.modules()] == [type(m) for m in model.modules()]
    assert not torch.allclose(theirs, model(x), atol=1e-3)
    assert torch.allclose(plain(x), theirs, atol=1e-5)


def test_groups_of_hqq_divide_all_layers_and_can_be_packed() -> None:
    found = compared(wide(), samples(32), [f"{HOST}:hqq"], (2,))
    assert [r.error for r in found.failed] == []
    assert found.rows[0].bits == 2 + 24 / 16
    group = partial(builtin.group_of, "hqq")
    odd = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 3))
    assert group(odd, 4) == 10
    assert group(odd, 2, ["0"]) == 20
    with pytest.raises(ArgumentError, match="bits=2: hqq .* exclude a layer"):
        group(odd, 2)


def test_what_cannot_be_done_is_a_row_that_says_why_and_the_others_go_on() -> None:
    model, x = made("mlp")
    found = compared(model, x, [f"{HOST}:{n}" for n in ("nf4", "awq", "rtn")], (3,))
    nf4, awq, rtn = sorted(found.rows, key=lambda r: ("nf4", "awq", "rtn").index(r.method))
    assert nf4.error.startswith("ArgumentError: bits=3: nf4 has 4 bits a weight")
    assert awq.error.startswith(
        "StructureError: awq wants a transformer whose blocks stand in an nn.ModuleList"
    )
    assert not rtn.error
    found = compared(model, x, [f"{HOST}:nf4", f"{HOST}:de", f"{HOST}:rtn"], (4, 2.5))
    assert [r.sparsity for r in found.rows if not r.failed] == [4.0] * 3
    assert all("bits=2.5" in r.error for r in found.failed)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="autoround: needs auto-round"):
        builtin.quantized("autoround", wide(), 4, samples(32))


def test_awq_quantizes_transformer_blocks() -> None:
    torch.manual_seed(0)
    found = compared(Blocks().eval(), samples(8), [f"{HOST}:awq"], (4,))
    assert [r.error for r in found.failed] == []
    entered = 32 * (8 * 4 + 16)  # its rows are shorter than a group
    rest = 3 * 32 * 32 + 5 * 32
    assert found.rows[0].bits == (entered + rest * (4 + GROUP)) / (32 * 8 + rest)


def test_what_is_excluded_is_left_alone_and_does_not_count() -> None:
    model, x = made("mlp")  # fc1 and fc10: names that begin alike
    found = compared(model, x, [f"{HOST}:rtn", f"{HOST}:de"], (2,), include=["fc1"])
    assert [r.error for r in found.failed] == []
    assert {tuple(n for n, _ in r.layers) for r in found.rows} == {("fc1.weight",)}
    rows = {r.method: r for r in found.rows}
    assert rows["rtn"].bits == pytest.approx(2 + 16 / 12)
    left = builtin.quantized("rtn", model, 2, x, layers=["fc1"])
    assert {n for n, m in left.named_modules() if "WeightOnly" in type(m).__name__} == {"fc1"}
