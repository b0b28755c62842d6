"""Darknet networks: the numbers of the C program, every layer's meaning, and errors that tell the line."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.errors import ArgumentError, DataError
from de_plugin.zoo import Darknet, Detection, Head, darknet, decode, detections, letterbox
from de_plugin.zoo.darknet_layers import Convolutional, MaxPool, Route, Upsample
from tests.zoo.shared_data import shared

IMAGES = 12
COCO_IDS = [number for number in range(1, 91) if number not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}]

NET = "[net]\nwidth=32\nheight=32\nchannels=3\n"
CONV = "[convolutional]\nfilters=8\nsize=3\nstride=1\npad=1\nactivation=leaky\n"
LAST = "[convolutional]\nfilters=12\nsize=1\nactivation=linear\n"
YOLO = "[yolo]\nanchors=4,6, 10,8, 20,20\nmask=0,1\nclasses=1\nnum=3\njitter=.3\n"
SMALL = f"""{NET}
# the backbone
{CONV}batch_normalize=1
[maxpool]
size=2
stride=2
{CONV}batch_normalize=1
[shortcut]
from=-2
activation=linear
[maxpool]
size=2
stride=1
{LAST}{YOLO}
[route]
layers = -3 ; the pooled features
[upsample]
stride=2
[route]
layers=-1, 0
groups=2
group_id=1
{LAST}{YOLO}"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "net.cfg"
    path.write_text(text)
    return path


def contents(path: Path) -> tuple[list[np.ndarray], Darknet]:
    """Numbers that fit a cfg, tensor by tensor in the order of the file, and a network to put them in."""
    model = darknet(path, seed=0)
    draw = np.random.default_rng(0)
    arrays = []
    for layer in model.layers:
        if isinstance(layer, Convolutional):
            count = layer.conv.out_channels
            arrays.append(draw.normal(size=count))
            if isinstance(layer.norm, nn.BatchNorm2d):
                arrays += [draw.normal(size=count), draw.normal(size=count), draw.uniform(0.5, 2, count)]
            arrays.append(draw.normal(size=tuple(layer.conv.weight.shape)))
    return [array.astype("<f4") for array in arrays], model


def header(major: int = 0, minor: int = 2, seen: str = "<Q") -> bytes:
    return struct.pack("<3i", major, minor, 0) + struct.pack(seen, 32013312)


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.real_data
def test_detections_are_those_of_the_c_program() -> None:
    image_module = pytest.importorskip("PIL.Image")
    folder = shared("yolov3-tiny")
    expected = json.loads((folder / "darknet-detections-coco-calib.json").read_text())
    paths = sorted(shared("coco-calib").glob("*.jpg"))[:IMAGES]
    pictures = [torch.from_numpy(np.array(image_module.open(path).convert("RGB"))) for path in paths]
    batch = [picture.permute(2, 0, 1) / 255 for picture in pictures]
    sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
    # As the C program adds on a GPU, and what comes closest to the CPU that these were found on.
    for eps, precision in [(1e-5, 1e-4), (1e-12, 2e-5)]:
        model = darknet(folder / "yolov3-tiny.cfg", folder / "yolov3-tiny.weights", eps=eps)
        inputs = torch.stack([letterbox(picture, model.size) for picture in batch])
        with torch.no_grad():
            decoded = decode(model(inputs), model.heads, model.size)
        found = detections(decoded, sizes, model.size, threshold=0.05)
        for path, objects in zip(paths, found, strict=True):
            wanted = [
                Detection(COCO_IDS.index(one["category_id"]), one["score"], (x, y, x + width, y + height))
                for one in expected
                if one["image_id"] == int(path.stem)
                for x, y, width, height in [one["bbox"]]
            ]
            assert len(objects) == len(wanted)
            for one in wanted:
                box = pytest.approx(one.box, abs=0.05)
                score = pytest.approx(one.score, abs=precision)
                assert any(
                    other.label == one.label and other.score == score and other.box == box
                    for other in objects
                )


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "count"), [("yolov3/yolov3.cfg", 61_949_149), ("yolov3-tiny/yolov3-tiny.cfg", 8_852_366)]
)
def test_published_sizes(name: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in Darknet(shared(name)).parameters()) == count


@pytest.mark.parametrize(
    "start", [header(), header(0, 1, "<I"), header(1, 0), header(0, 2000, "<I")], ids=len
)
def test_numbers_come_in_the_order_of_the_file(tmp_path: Path, start: bytes) -> None:
    cfg = write(tmp_path, SMALL)
    arrays, model = contents(cfg)
    (tmp_path / "net.weights").write_bytes(start + b"".join(array.tobytes() for array in arrays))
    loaded = darknet(cfg, tmp_path / "net.weights")
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    bias, weight, mean, variance, conv = (torch.from_numpy(array) for array in arrays[:5])
    first = F.conv2d(images(), conv, padding=1)
    normal = (first - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    expected = F.leaky_relu(normal * weight[:, None, None] + bias[:, None, None], 0.1)
    with torch.no_grad():
        torch.testing.assert_close(loaded.layers[0](images()), expected, rtol=1e-4, atol=1e-4)
    state = loaded.state_dict()
    assert torch.equal(state["layers.5.conv.bias"], torch.from_numpy(arrays[10]))
    assert torch.equal(state["layers.10.conv.weight"], torch.from_numpy(arrays[-1]))
    assert int(state["layers.0.norm.num_batches_tracked"]) == 0
    assert all(bool(output.isfinite().all()) for output in loaded(images()))


def test_outputs_are_raw_and_layers_read_what_the_cfg_says(tmp_path: Path) -> None:
    model = darknet(write(tmp_path, SMALL), seed=0)
    assert model.size == (32, 32)
    assert model.heads == (Head(((4.0, 6.0), (10.0, 8.0)), 1),) * 2
    layers = model.layers
    with torch.no_grad():
        first = layers[0](images())
        half = layers[1](first)
        pooled = layers[4](half + layers[2](half))
        large = torch.cat([pooled[:, 4:].repeat_interleave(2, 2).repeat_interleave(2, 3), first[:, 4:]], 1)
        small_output, large_output = model(images())
        torch.testing.assert_close(small_output, layers[5](pooled))
        torch.testing.assert_close(large_output, layers[10](large))
        assert [tuple(output.shape) for output in model(images(3, 64))] == [(3, 12, 32, 32), (3, 12, 64, 64)]


@pytest.mark.parametrize("size", range(1, 7))
def test_pooling_as_the_c_program_pads_it(size: int) -> None:
    """Its loop, written out: window i begins at i * stride - padding // 2."""
    for stride, padding, side in itertools.product(range(1, 4), range(size), (7, 8)):
        inputs = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(side))
        count = (side + padding - size) // stride + 1
        starts = [index * stride - padding // 2 for index in range(count)]
        windows = [slice(max(start, 0), start + size) for start in starts]
        expected = torch.stack([torch.stack([inputs[0, 0, y, x].max() for x in windows]) for y in windows])
        assert torch.equal(MaxPool(size, stride, padding)(inputs)[0, 0], expected)


def test_pooling_of_size_2_and_stride_1_keeps_the_size_and_the_gradient_finite() -> None:
    inputs = torch.full((1, 1, 3, 3), -5.0, requires_grad=True)
    pooled = MaxPool(2, 1, 1)(inputs)
    assert torch.equal(pooled, torch.full((1, 1, 3, 3), -5.0))
    pooled.sum().backward()
    assert inputs.grad is not None
    assert float(inputs.grad.sum()) == 9


def test_routes_and_upsampling() -> None:
    one, other = images(2, 4), images(2, 4) + 1
    assert torch.equal(Route(1, 0)(one), one)
    assert torch.equal(Route(3, 2)(one, other), torch.cat([one[:, 2:], other[:, 2:]], 1))
    assert torch.equal(Upsample(3)(one)[:, :, 5, 7], one[:, :, 1, 2])


def test_seeds(tmp_path: Path) -> None:
    cfg = write(tmp_path, SMALL)
    before = torch.get_rng_state()
    one, again, other = (darknet(cfg, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, again[key]) for key, tensor in one.items())
    weight = "layers.0.conv.weight"
    assert not torch.equal(one[weight], other[weight])
    assert torch.equal(one["layers.0.norm.running_var"], torch.ones(8))
    assert not torch.equal(darknet(cfg).state_dict()[weight], darknet(cfg).state_dict()[weight])


def test_many_shortcuts_do_not_blow_up_new_networks(tmp_path: Path) -> None:
    block = f"{CONV}batch_normalize=1\n[shortcut]\nfrom=-2\n"
    model = darknet(write(tmp_path, f"{NET}{CONV}{block * 30}{LAST}{YOLO}"), seed=0)
    with torch.no_grad():
        assert 0.1 < float(model(images())[0].std()) < 20


def test_runs_under_vmap_tracing_and_in_channels_last(tmp_path: Path) -> None:
    model = darknet(write(tmp_path, SMALL), seed=0)
    batches = torch.stack([images(), 1 - images()])
    with torch.no_grad():
        expected = model(images())
        mapped = torch.vmap(model)(batches)
        traced = torch.fx.symbolic_trace(model)(images())
        plain = images().to(memory_format=torch.channels_last)
        relaid: Any = model  # torch declares no `to` with a memory format alone
        last = relaid.to(memory_format=torch.channels_last)(plain)
    for index, output in enumerate(expected):
        torch.testing.assert_close(mapped[index][0], output, rtol=1e-4, atol=1e-5)
        assert torch.equal(traced[index], output)
        torch.testing.assert_close(last[index], output, rtol=1e-4, atol=1e-5)


def test_every_parameter_has_a_gradient(tmp_path: Path) -> None:
    model = darknet(write(tmp_path, SMALL), seed=0).train()
    sum(output.square().mean() for output in model(images())).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "doesn't start with the section \\[net\\]"),
        (f"{CONV}{NET}", "doesn't start with the section \\[net\\]"),
        ("width=3\n[net]", "line 1: 'width=3' is neither"),
        (f"{NET}what is this\n", "line 5: 'whatisthis' is neither"),
        (f"{NET}{CONV}", "has no section \\[yolo\\]"),
        ("[net]\nwidth=32\n", "line 1, \\[net\\]: the option height is missing: add 'height=...'"),
        ("[net]\nwidth=32\nheight=1e3\n", "line 3, \\[net\\]: height is '1e3', expected whole numbers"),
        ("[net]\nheight=32\nwidth=0\n", "line 3, \\[net\\]: width is 0, expected one whole number from 1 to"),
        (f"{NET}[lstm]\n", "line 5, \\[lstm\\]: the layer is not known, expected one of conv,"),
        (f"{NET}{CONV}dilation=2\n", "line 11, \\[convolutional\\]: the option 'dilation' is not supported"),
        (f"{NET}{CONV}groups=2\n", "line 11.*groups is 2, expected a divisor of 3 channels and 8 filters"),
        (f"{NET}[conv]\nactivation=elu\n", "line 6, \\[conv\\]: activation is 'elu', expected one of leaky,"),
        (f"{NET}[conv]\nsize=64\n", "line 5.*its output has 1 channels of -31 x -31"),
        (f"{NET}[conv]\nfilters=999999999\n", "line 6.*filters is 999999999, expected one whole number"),
        (
            f"{NET}[maxpool]\nsize=3\npadding=4\n",
            "line 7.*padding is 4, expected one whole number from 0 to 2",
        ),
        (f"{NET}" + "[upsample]\nstride=255\n" * 9, "line 7.*its output has 3 channels of"),
        (
            f"{NET}[route]\nlayers=-1\n",
            "line 6, \\[route\\]: layers has -1 in layer 0, expected a layer in front",
        ),
        (
            f"{NET}{CONV}[route]\nlayers=0,1\n",
            "line 12.*layers has 1 in layer 1, expected 0 to 0, or -1 to -1",
        ),
        (f"{NET}{CONV}[route]\nlayers=-2\n", "line 12.*layers has -2 in layer 1"),
        (f"{NET}{CONV}[route]\nlayers=a\n", "line 12.*layers is 'a', expected whole numbers with commas"),
        (f"{NET}{CONV}[route]\nlayers=0\ngroups=3\n", "line 13.*groups is 3, expected a divisor of the 8"),
        (f"{NET}{CONV}[route]\nlayers=0\ngroups=2\ngroup_id=2\n", "line 14.*group_id is 2, expected one"),
        (f"{NET}{CONV}[upsample]\n[route]\nlayers=0,1\n", "line 13.*layer 1 has 64 x 64 outputs a channel"),
        (f"{NET}{CONV}{LAST}[shortcut]\nfrom=-2\n", "line 16.*layer 0 has the shape \\(8, 32, 32\\) and the"),
        (
            f"{NET}{LAST}{YOLO}{CONV}",
            "line 15.*it reads layer 1, which is a \\[yolo\\] layer: put a \\[route\\]",
        ),
        (f"{NET}{LAST}{YOLO}[route]\nlayers=1\n", "line 15.*it reads layer 1, which is a \\[yolo\\] layer"),
        (f"{NET}{CONV}{YOLO}", "line 11, \\[yolo\\]: the layer in front has 8 channels, expected 12"),
        (f"{NET}{LAST}[yolo]\nanchors=1,2,3\n", "line 10.*anchors has 3 numbers, expected two for each"),
        (f"{NET}{LAST}[yolo]\nanchors=1,-2\n", "line 10.*anchors is '1,-2', expected numbers above 0"),
        (f"{NET}{LAST}[yolo]\nanchors=1,2\nmask=1\n", "line 11.*mask has 1, expected 0 to 0"),
        (f"{NET}{LAST}{YOLO}new_coords=1\n", "line 15.*new_coords is not supported"),
    ],
)
def test_malformed_cfg_files_tell_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        darknet(write(tmp_path, text))
    assert "net.cfg" in str(caught.value)


def test_files_that_ask_for_too_much_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    greedy = "[conv]\nfilters=1000000\nsize=255\n" * 2
    cfg = write(tmp_path, f"[net]\nwidth=1024\nheight=1024\n{greedy}{LAST}{YOLO}")
    with pytest.raises(DataError, match="asks for 65,0.* parameters, expected at most 268,435,456"):
        darknet(cfg)
    (tmp_path / "net.weights").write_bytes(header())
    with pytest.raises(DataError, match="net.weights holds 0 bytes behind its header of 20, expected 260,"):
        darknet(cfg, tmp_path / "net.weights")
    (tmp_path / "large.cfg").write_bytes(b"#" * 300_000)
    with pytest.raises(DataError, match="large.cfg has more than 262,144 bytes"):
        darknet(tmp_path / "large.cfg")


def test_malformed_weights_files(tmp_path: Path) -> None:
    cfg, path = write(tmp_path, SMALL), tmp_path / "net.weights"
    arrays, _ = contents(cfg)
    whole = header() + b"".join(array.tobytes() for array in arrays)
    size = len(whole) - 20

    def load(content: bytes) -> None:
        path.write_bytes(content)
        darknet(cfg, path)

    load(whole)
    for content in (whole[:-4], whole[:-1], whole[:20]):
        with pytest.raises(
            DataError, match=f"net.weights holds .* expected {size:,} .* truncated, or belongs"
        ):
            load(content)
    with pytest.raises(
        DataError, match="too long, or belongs to another cfg; download it again, or give its"
    ):
        load(whole + b"\0\0\0\0")
    for content in (b"", b"short", struct.pack("<5i", -1, 2, 0, 0, 0)):
        with pytest.raises(DataError, match="net.weights starts with .*: give a Darknet weights file"):
            load(content)
    arrays[-1].reshape(-1)[0] = np.nan
    with pytest.raises(DataError, match="not finite in convolutional layer 4 of 4: download the file again"):
        load(header() + b"".join(array.tobytes() for array in arrays))
    arrays[3][0] = -1
    with pytest.raises(DataError, match="variance below 0 in convolutional layer 1 of 4"):
        load(header() + b"".join(array.tobytes() for array in arrays))


def test_missing_files_and_wrong_arguments(tmp_path: Path) -> None:
    cfg = write(tmp_path, SMALL)
    with pytest.raises(DataError, match="none.cfg cannot be read"):
        darknet(tmp_path / "none.cfg")
    with pytest.raises(DataError, match="none.weights cannot be read"):
        darknet(cfg, tmp_path / "none.weights")
    with pytest.raises(ArgumentError, match="seed is -1"):
        darknet(cfg, seed=-1)
    with pytest.raises(ArgumentError, match="eps is 0"):
        darknet(cfg, eps=0)
