"""Compressed files: what is saved is loaded, whole, tied, lazily, or into a model."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import de_plugin
from de_plugin.encode import Info, Quantized, dumps, inspect, load, loads, open_file, save
from de_plugin.errors import ArgumentError, FileError
from tests.encode.networks import Network, dense, quantize, same, state

BIG = 40_000  # values that take more than the 4 KiB that the common checksum covers


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.de.safetensors"


def large() -> dict[str, Tensor | Quantized]:
    torch.manual_seed(0)
    return {"a": torch.randn(BIG), "b": quantize(torch.empty(200, 300)), "c": torch.ones(3)}


def test_what_is_saved_is_loaded_in_its_order(path: Path) -> None:
    saved = state()
    save(path, saved)
    loaded = load(path)
    assert list(loaded) == list(saved)
    assert all(same(loaded[name], dense(value)) for name, value in saved.items())


def test_a_network_that_nothing_was_done_to_comes_back_bit_for_bit(path: Path) -> None:
    network = Network()
    network.state_dict()["norm.running_mean"][:2] = torch.tensor([torch.nan, -torch.inf])
    save(path, network.state_dict())
    loaded = load(path)
    assert all(same(loaded[name], value) for name, value in network.state_dict().items())


def test_the_file_is_a_safetensors_file_with_one_tensor(path: Path) -> None:
    save(path, state(), {"made by": "a test, with ünïcode"})
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["de1"]
        assert file.metadata() == {"made by": "a test, with ünïcode"}
    [(name, tensor)] = load_file(path).items()
    assert (name, tensor.dtype, tensor.dim()) == ("de1", torch.uint8, 1)
    with open_file(path) as file:
        assert file.metadata == {"made by": "a test, with ünïcode"}


def test_a_file_that_others_wrote_again_is_still_read(path: Path) -> None:
    save(path, state(), {"b": "1", "a": "2"})
    save_file(load_file(path), path, {"a": "2", "b": "1"})
    assert load(path).keys() == state().keys()
    save_file(load_file(path), path, {"a": "other", "b": "1"})
    with pytest.raises(FileError, match="checksum"):
        load(path)


def test_tied_tensors_are_written_once_and_share_their_memory_again(path: Path) -> None:
    network = Network(64)
    info = save(path, network.state_dict())
    kinds = {layer.name: (layer.kind, layer.bytes) for layer in info.layers}
    assert kinds["again.weight"] == ("tied", 0)
    loaded = load(path)
    assert loaded["again.weight"].data_ptr() == loaded["fc.weight"].data_ptr()
    views = {"a": network.fc.weight[:4], "b": network.fc.weight[4:], "c": network.fc.weight.T}
    again = loads(dumps(views))
    assert all(same(again[name], view.detach()) for name, view in views.items())
    tied = quantize(torch.empty(50, 50))
    one, other = loads(dumps({"a": tied, "b": tied})).values()
    assert one.data_ptr() == other.data_ptr()


def test_the_same_symbols_with_other_levels_are_not_tied() -> None:
    one = quantize(torch.empty(5, 5))
    other = Quantized(one.symbols, one.levels * 2, one.lowest)
    loaded = loads(dumps({"a": one, "b": other}))
    assert torch.equal(loaded["b"], 2 * loaded["a"])


def test_nothing_and_empty_tensors(path: Path) -> None:
    assert save(path, {}).file_bytes == path.stat().st_size
    assert load(path) == {}
    saved: dict[str, Tensor | Quantized] = {
        "": torch.empty(0),
        "rows": torch.empty(3, 0, 2),
        "none": quantize(torch.empty(0, 4), axis=0),
        "quantized": quantize(torch.empty(0, 4), axis=1),
    }
    loaded = loads(dumps(saved))
    assert all(same(loaded[name], dense(value)) for name, value in saved.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_quantized_tensors_come_back_in_the_type_that_was_asked_for(dtype: torch.dtype) -> None:
    made = quantize(torch.empty(6, 5))
    exact = Quantized(made.symbols, made.levels.half().bfloat16().float(), made.lowest)
    loaded = loads(dumps({"w": exact}, dtypes={"w": dtype}))["w"]
    assert same(loaded, exact.dequantize().to(dtype))


@pytest.mark.parametrize(
    ("dtypes", "match"),
    [
        ({"w": torch.float16}, "not exact"),
        ({"w": torch.int8}, "expected one of"),
        ({"other": torch.float16}, "no quantized tensor"),
    ],
)
def test_types_that_cannot_be_are_refused(dtypes: dict[str, torch.dtype], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        dumps({"w": quantize(torch.empty(6, 5))}, dtypes=dtypes)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.eye(3).to_sparse(), "to_dense"),
        (torch.empty(3, device="meta"), "to_empty"),
        (3, "expected a tensor or Quantized"),
    ],
)
def test_what_is_no_dense_tensor_is_refused(value: Tensor, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        dumps({"w": value})


def test_what_is_no_state_dict_is_refused_and_nothing_written(path: Path) -> None:
    net = nn.Linear(4, 4).eval()
    report = de_plugin.quantize(net, torch.randn(8, 4), bits=3)
    wrong: list[Any] = [net, "net.de.safetensors", [torch.ones(2)], report]
    for given in wrong:
        told = rf"state: is a {type(given).__name__}, .*model.state_dict\(\) or the .state of what `quantize`"
        with pytest.raises(ArgumentError, match=told):
            save(path, given)
        with pytest.raises(ArgumentError, match=told):
            dumps(given)
    assert not path.exists()
    _ = save(path, report.state, dtypes=report.dtypes)
    assert list(load(path)) == list(report.state)


def test_a_state_where_the_path_should_be_is_told(path: Path) -> None:
    first: Any = nn.Linear(2, 2).state_dict()
    second: Any = path
    with pytest.raises(ArgumentError, match="path: is a dict.*the path comes first"):
        save(first, second)


@pytest.mark.parametrize("metadata", [{"a": 1}, {2: "a"}, {"a": "\ud800"}])
def test_metadata_that_cannot_be_written_are_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(ArgumentError, match="metadata"):
        dumps({}, metadata)


def test_tensors_are_decoded_one_at_a_time(path: Path) -> None:
    saved = large()
    save(path, saved)
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1  # the last large stream is that of "b"
    path.write_bytes(damaged)
    with open_file(path) as file:
        assert list(file) == ["a", "b", "c"]
        assert len(file) == 3
        assert same(file["a"], dense(saved["a"]))
        assert same(file["c"], dense(saved["c"]))
        with pytest.raises(FileError, match="checksum of entry 'b'"):
            file["b"]
        with pytest.raises(KeyError):
            file["d"]
    with pytest.raises(FileError, match="cannot be read"):
        file["a"]
    with pytest.raises(FileError, match="checksum of entry 'b'"):
        load(path)


def test_threads_share_a_file(path: Path) -> None:
    saved = large()
    save(path, saved)
    wrong = []
    with open_file(path) as file:

        def read() -> None:
            for name, value in saved.items():
                if not same(file[name], dense(value)):
                    wrong.append(name)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_model_gets_the_values(path: Path) -> None:
    saved = state()
    save(path, saved)
    network = Network()
    pointer = network.fc.weight.data_ptr()
    loaded = load(path, into=network)
    assert all(same(network.state_dict()[name], loaded[name]) for name in saved)
    assert network.fc.weight is network.again.weight
    assert network.fc.weight.data_ptr() == pointer
    assert network.fc.weight.requires_grad


class Other(Network):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.extra = nn.Linear(1, 1)
        self.small = nn.Parameter(torch.zeros(2).half())
        del self.again


def test_another_model_is_left_as_it_was_and_all_differences_are_told(path: Path) -> None:
    save(path, {**state(), "small": torch.zeros(2)})
    other = Other()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(FileError, match="does not fit Other") as caught:
        load(path, into=other)
    told = str(caught.value)
    assert "missing: extra.bias, extra.weight" in told
    assert "unexpected: again.bias, again.weight" in told
    assert "fc.weight is torch.float32 (8, 8), the model's torch.float32 (4, 8)" in told
    assert "small is torch.float32 (2,), the model's torch.float16 (2,)" in told
    assert all(same(other.state_dict()[name], value) for name, value in before.items())


def test_a_model_without_values_is_refused(path: Path) -> None:
    save(path, nn.Linear(1, 1).state_dict())
    with pytest.raises(FileError, match="to_empty"):
        load(path, into=nn.Linear(1, 1, device="meta"))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_model_that_refuses_a_value_is_left_as_it_was(path: Path, error: type[BaseException]) -> None:
    class Refusing(Network):
        calls = 0

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            super().load_state_dict(*args, **kwargs)
            self.calls += 1
            if self.calls == 1:
                raise error("no")

    network = Refusing()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    save(path, state())
    with pytest.raises(FileError if error is RuntimeError else error, match="no"):
        load(path, into=network)
    assert all(same(network.state_dict()[name], value) for name, value in before.items())


def test_inspecting_tells_what_saving_told(path: Path) -> None:
    saved = state()
    info = save(path, saved, {"a": "b"})
    assert inspect(path) == info
    layers = {layer.name: layer for layer in info.layers}
    weight = saved["fc.weight"]
    assert isinstance(weight, Quantized)
    fc = layers["fc.weight"]
    assert fc.sparsity == float((weight.symbols == 0).float().mean())
    assert fc.levels == len(weight.symbols.unique())
    assert fc.kind == "quantized"
    assert layers["norm.num_batches_tracked"].levels is None
    assert layers["norm.num_batches_tracked"].dense_bytes == 8
    assert layers["again.weight"].kind == "tied"
    assert info.overhead + sum(layer.bytes for layer in info.layers) == info.file_bytes
    assert info.file_bytes == path.stat().st_size
    assert info.dense_bytes == sum(
        dense(value).nbytes for name, value in saved.items() if name != "again.weight"
    )


def test_the_table_has_a_line_a_layer_and_one_for_the_file(path: Path) -> None:
    info = save(path, state())
    lines = str(info).splitlines()
    assert len(lines) == 1 + len(info.layers) + 1
    assert lines[0].split()[0] == "name"
    assert f"{info.file_bytes:,} bytes" in lines[-1]
    assert isinstance(info, Info)


def test_a_small_network_has_little_overhead(path: Path) -> None:
    names = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}
    saved: dict[str, Tensor | Quantized] = {}
    for name, shape in names.items():
        saved[f"{name}.weight"] = quantize(torch.empty(shape), density=0.01, highest=1)
        saved[f"{name}.bias"] = quantize(torch.empty(shape[0]), density=0.1, highest=1)
    assert save(path, saved).overhead <= 220
