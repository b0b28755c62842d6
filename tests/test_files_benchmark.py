"""The parts of the benchmark of files: shifted copies, the margin of errors, and rows of other settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from de_plugin.zoo import lenet5
from tests.scripts import benchmark


@pytest.fixture(scope="module")
def files() -> Any:
    return benchmark("files")


def test_copies_are_shifted_by_every_distance_and_lose_nothing_but_the_border(files: Any) -> None:
    images = torch.zeros(400, 1, 9, 11)
    images[:, 0, 4, 5] = 1 + torch.arange(400)
    moved = files.shifted(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert torch.equal(moved.amax((1, 2, 3)), images.amax((1, 2, 3)))
    places = {tuple(place) for place in (moved[:, 0] > 0).nonzero()[:, 1:].tolist()}
    assert places == {(4 + down, 5 + right) for down in range(-2, 3) for right in range(-2, 3)}
    again = files.shifted(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)
    assert float(files.shifted(images - 3, torch.Generator().manual_seed(0)).amin()) == -3  # the background


class Fixed(nn.Module):
    """Says what it is told to, whatever it sees."""

    def __init__(self, said: torch.Tensor) -> None:
        super().__init__()
        self.said = said

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.one_hot(self.said[inputs[:, 0].long()], 3).float()


def test_the_margin_is_half_a_standard_error_of_the_difference(files: Any) -> None:
    labels, images = torch.zeros(3000, dtype=torch.long), torch.arange(3000.0)[:, None]
    worse = labels.clone()
    worse[:300] = 1
    margin = files.Worse(Fixed(labels), images, labels)
    assert margin(Fixed(labels)) == 0
    spread = (0.1 * 0.9) ** 0.5 / 3000**0.5
    assert margin(Fixed(worse)) == pytest.approx(100 * (0.1 + spread / 2), rel=1e-3)


def test_what_is_cut_computes_the_same_and_a_file_tells_its_shapes(files: Any) -> None:
    torch.manual_seed(0)
    model = lenet5().eval()
    with torch.no_grad():
        for name, gone in (("conv1", 12), ("conv2", 30), ("fc1", 420)):
            layer = model.get_submodule(name)
            layer.get_parameter("weight")[:gone] = 0
            layer.get_parameter("bias")[:gone] = 0
    narrow = files.cut(model)
    images = torch.randn(5, 1, 28, 28)
    assert torch.allclose(narrow(images), model(images), atol=1e-6)
    assert [tuple(p.shape) for p in narrow.parameters() if p.dim() > 1] == [
        (8, 1, 5, 5),
        (20, 8, 5, 5),
        (80, 320),
        (10, 80),
    ]
    again = files.shaped(model, narrow.state_dict())
    again.load_state_dict(narrow.state_dict())
    assert torch.equal(again(images), narrow(images))


def test_steps_are_those_to_one_file(files: Any) -> None:
    assert files.steps_of("lenet5", "post-training") == 0
    assert files.steps_of("lenet300", "recovered") == 12 * 500 + 10_000 + 2 * 3000
    assert files.steps_of("lenet5", "recovered") == 4 * 300 + 3000 + files.steps_of("lenet300", "recovered")


def test_rows_of_other_settings_are_refused(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "files.json"
    document = files.document_of(place, 1)
    assert document["rows"] == []
    kinds = [(network, recipe) for network in files.TARGETS for recipe in ("post-training", "recovered")]
    assert len({files.settings(network, "mnist", recipe) for network, recipe in kinds}) == len(kinds)
    told = {"network": "lenet5", "data": "mnist", "recipe": "recovered"}
    document["rows"].append({**told, "settings": files.settings("lenet5", "mnist", "recovered")})
    place.write_text(json.dumps(document))
    assert files.document_of(place, 1) == document
    with pytest.raises(SystemExit, match="its threads is 1, here it is 2; .* give another file"):
        files.document_of(place, 2)
    monkeypatch.setitem(files.CHANNELS, "lenet5", {"conv1": 0.5})
    with pytest.raises(SystemExit, match="other settings of the recipe"):
        files.document_of(place, 1)


def test_the_points_of_the_command_line_are_part_of_the_settings(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "POINTS", dict(files.POINTS))
    before = files.settings("lenet300", "mnist", "post-training")
    met = []

    def row(network: str, _data: Any, recipe: str) -> dict[str, Any]:
        met.append((network, recipe))
        return {}

    monkeypatch.setattr(files, "row", row)
    monkeypatch.setattr(files, "line", lambda row: "")
    monkeypatch.setattr(files, "DATA", {"mnist": lambda: None})
    place = str(tmp_path / "files.json")
    command = ["files.py", "--json", place, "--networks", "lenet300", "--data", "mnist", "--points", "0.5"]
    monkeypatch.setattr("sys.argv", [*command, "--recipes", "post-training"])
    files.main()
    assert met == [("lenet300", "post-training")]
    assert files.POINTS["lenet300", "mnist"] == 0.5
    assert files.settings("lenet300", "mnist", "post-training") != before
