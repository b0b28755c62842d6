"""The divergence of detectors: objects count, background doesn't, and a layout that is wrong is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin import Detector, Head, Problem, prune
from de_plugin.errors import ArgumentError, OutputError
from de_plugin.testing import check_divergence

HEADS = (Head(2, 3), Head(1, 3))


def outputs(seed: int = 0, samples: int = 4) -> tuple[Tensor, Tensor]:
    """Return two heads' answers, an object at the first place of each sample."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.randn(samples, 2, 8, 5, 5, generator=draw)
    second = torch.randn(samples, 1, 8, 3, 3, generator=draw)
    for x in (first, second):
        x[:, :, 4] = -8.0
        x[:, 0, 4, 0, 0] = 4.0
    return first.flatten(1, 2), second.flatten(1, 2)


def changed(fields: slice, row: int, by: float = 1.0) -> tuple[Tensor, Tensor]:
    first, second = outputs()
    first.reshape(4, 2, 8, 5, 5)[:, 0, fields, row, 0] += by
    return first, second


def test_the_contract() -> None:
    check_divergence(Detector(HEADS), outputs())


@pytest.mark.parametrize("fields", [slice(0, 2), slice(2, 4), slice(5, 8)])
def test_classes_and_boxes_count_where_there_is_an_object(fields: slice) -> None:
    measure = Detector(HEADS)
    here, there = (float(measure(changed(fields, row), outputs())) for row in (0, 3))
    assert here > 1000 * there > 0


def test_a_lost_and_an_invented_object() -> None:
    measure = Detector(HEADS)
    lost = float(measure(changed(slice(4, 5), 0, -8.0), outputs()))
    invented = float(measure(changed(slice(4, 5), 3, 12.0), outputs()))
    assert lost > 2
    assert invented > 2
    assert float(measure(changed(slice(4, 5), 3, -8.0), outputs())) < 0.01


def test_objects_that_count_more_leave_background_as_it_was() -> None:
    plain, more = Detector(HEADS), Detector(HEADS, objects=3.0)
    lost, invented = changed(slice(4, 5), 0, -8.0), changed(slice(4, 5), 3, 12.0)
    assert float(more(lost, outputs())) == pytest.approx(4 * float(plain(lost, outputs())), rel=0.03)
    assert float(more(invented, outputs())) == pytest.approx(float(plain(invented, outputs())), rel=0.01)


def test_a_mean_over_samples_and_a_sum_over_heads() -> None:
    measure = Detector(HEADS)
    ours, theirs = outputs(1), outputs(2)
    whole = float(measure(ours, theirs))
    rows = [float(measure([x[n : n + 1] for x in ours], [x[n : n + 1] for x in theirs])) for n in range(4)]
    assert whole == pytest.approx(sum(rows) / 4)
    alone = [float(Detector((h,))(a, b)) for h, a, b in zip(HEADS, ours, theirs, strict=True)]
    assert whole == pytest.approx(sum(alone))


def test_a_head_without_objectness() -> None:
    head = Head(1, 3, objectness=None, first_class=4)
    x = torch.randn(2, 7, 6)
    measure = Detector((head,))
    assert float(measure(x, x)) == pytest.approx(0, abs=1e-6)
    assert float(measure(x + 1, x)) > 0


class Tiny(nn.Module):
    """Two heads on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Conv2d(3, 12, 3, padding=1)
        self.heads = nn.ModuleList([nn.Conv2d(12, 16, 1), nn.Conv2d(12, 8, 1, stride=2)])

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.trunk(x))
        return tuple(head(y) for head in self.heads)


def test_pruning_a_detector() -> None:
    model = Tiny().eval()
    x = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    asked = Problem(model, x, divergence=Detector(HEADS))
    masks = torch.rand(5, asked.units.count, generator=torch.Generator().manual_seed(0)) < 0.7
    serial = Problem(model, x, divergence=Detector(HEADS), evaluate="serial")
    torch.testing.assert_close(
        asked.assess(masks, asked.search), serial.assess(masks, serial.search), rtol=1e-5, atol=1e-7
    )
    report = prune(model, x, 0.5, divergence=Detector(HEADS))
    magnitude = prune(Tiny().eval(), x, 0.5, "magnitude", divergence=Detector(HEADS))
    assert report.divergence <= magnitude.divergence


def test_layouts_that_cannot_be() -> None:
    wrong: Any = (3,)
    with pytest.raises(ArgumentError, match="don't overlap"):
        Head(3, 80, objectness=0)
    with pytest.raises(ArgumentError, match="fields 0 to 84, expected 0 to 9"):
        Head(3, 80, fields=10)
    with pytest.raises(ArgumentError, match="anchors and classes >= 1"):
        Head(0, 80)
    with pytest.raises(ArgumentError, match="expected a tuple of Head"):
        Detector(())
    with pytest.raises(ArgumentError, match="boxes=-1"):
        Detector(HEADS, boxes=-1)
    with pytest.raises(ArgumentError, match="objects=nan"):
        Detector(HEADS, objects=float("nan"))
    with pytest.raises(ArgumentError, match="no head has objectness"):
        Detector((Head(1, 3, objectness=None, first_class=4),), objects=1.0)
    with pytest.raises(OutputError, match=r"channels \[16, 8\]"):
        Detector(HEADS)(outputs()[::-1], outputs()[::-1])
    with pytest.raises(OutputError, match="expected the same"):
        Detector(HEADS)([x[:1] for x in outputs()], outputs())
    with pytest.raises(ArgumentError, match="expected a tuple of Head"):
        Detector(wrong)
    with pytest.raises(OutputError, match="one Head an output"):
        Detector(HEADS)(outputs()[:1], outputs()[:1])
