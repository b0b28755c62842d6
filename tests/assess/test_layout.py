"""Layout: images lie as models take them fastest, where these answer the same, and values never change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from de_plugin.assess import Problem
from de_plugin.assess.layout import channels_last, is_channels_last

COUNTS, SIDES = st.integers(1, 5), st.integers(2, 5)


class Viewing(nn.Module):
    """Cuts its features by ``view``, which channels at the end of memory don't allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.fc = nn.Linear(3 * 36, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.fc(y.view(len(y), -1))


class Striding(Viewing):
    """Reads memory as if it knew how features lie there."""

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.fc(y.as_strided((len(y), 108), (108, 1)))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 4)).eval()


@settings(deadline=None)
@given(COUNTS, COUNTS, SIDES, SIDES)
def test_values_stay_and_the_layout_is_seen(samples: int, channels: int, height: int, width: int) -> None:
    count = samples * channels * height * width
    images = torch.arange(float(count)).reshape(samples, channels, height, width)
    laid = channels_last(images)
    assert torch.equal(laid, images)
    assert laid.stride() == (height * width * channels, 1, width * channels, channels)
    assert is_channels_last(laid)


def test_one_channel_costs_no_copy() -> None:
    images = torch.randn(4, 1, 6, 6)
    assert channels_last(images).data_ptr() == images.data_ptr()


@pytest.mark.parametrize("channels", [1, 2])
def test_batches_of_a_convolutional_network_have_their_channels_last(channels: int) -> None:
    images = torch.randn(40, channels, 8, 8)
    model = nn.Sequential(nn.Conv2d(channels, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)).eval()
    problem = Problem(model, images, batch_size=16)
    batches = problem.pool.take(problem.search)
    assert all(is_channels_last(batch.inputs) for batch in batches)
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), images[problem.search])


@pytest.mark.parametrize("kind", [Viewing, Striding])
def test_a_model_that_does_not_take_them_gets_its_images_as_they_were(kind: type[nn.Module]) -> None:
    model = kind().eval()
    problem = Problem(model, torch.randn(40, 2, 8, 8), evaluate="serial")
    [batch] = problem.pool.take(problem.search)
    assert batch.inputs.is_contiguous()
    assert torch.allclose(model(batch.inputs), batch.teacher, atol=1e-6)


def test_a_network_without_convolutions_gets_its_images_as_they_were() -> None:
    problem = Problem(nn.Sequential(nn.Flatten(), nn.Linear(128, 4)).eval(), torch.randn(40, 2, 8, 8))
    assert problem.pool.take(problem.search)[0].inputs.is_contiguous()


@pytest.mark.parametrize(("width", "stride", "laid"), [(7, 2, False), (7, 1, True), (32, 2, True)])
def test_narrow_pointwise_convolutions_with_a_stride_keep_the_plain_layout(
    width: int, stride: int, laid: bool
) -> None:
    """The gradient of their weights would corrupt memory: see `layout`."""
    model = nn.Sequential(
        nn.Conv2d(2, width, 3), nn.Conv2d(width, 40, 1, stride=stride), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    problem = Problem(model, torch.randn(40, 2, 10, 10), divergence="mse", evaluate="serial")
    assert is_channels_last(problem.pool.take(problem.search)[0].inputs) == laid


class Insisting(Viewing):
    """Refuses what it does not expect in a way of its own."""

    def forward(self, x: Tensor) -> Any:
        assert x.is_contiguous()
        return super().forward(x)


def test_a_model_that_insists_on_its_layout_gets_it() -> None:
    problem = Problem(Insisting().eval(), torch.randn(40, 2, 8, 8), evaluate="serial")
    assert problem.pool.take(problem.search)[0].inputs.is_contiguous()


def test_a_student_that_does_not_take_what_its_teacher_takes_decides() -> None:
    problem = Problem(Viewing().eval(), torch.randn(40, 2, 8, 8), teacher=net(), evaluate="serial")
    assert problem.pool.take(problem.search)[0].inputs.is_contiguous()
    assert problem(problem.kept) > 0


def test_measures_of_the_users_get_outputs_that_can_be_viewed() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3)).eval()
    problem = Problem(
        model,
        torch.randn(40, 2, 8, 8),
        divergence=lambda s, t: (s.view(len(s), -1) - t.view(len(t), -1)).square().mean(),
        evaluate="serial",
    )
    assert problem(torch.zeros_like(problem.kept)) > 0


def test_images_of_several_sizes_are_laid_out_each() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
    problem = Problem(model, [torch.randn(8, 2, 8, 8), torch.randn(8, 2, 9, 10)], holdout=0)
    assert all(is_channels_last(batch.inputs) for batch in problem.pool.take(problem.search))


def test_the_divergence_is_that_of_images_as_they_were() -> None:
    torch.manual_seed(0)
    model, images = net(), torch.randn(60, 2, 8, 8)
    problem = Problem(model, images, divergence="mse")
    kept = torch.rand(problem.units.count) < 0.5
    with torch.no_grad():
        teacher = model(images)
        with problem.units.zeroed(kept):
            student = model(images)
    expected = float((student - teacher)[problem.search].square().mean())
    assert problem(kept) == pytest.approx(expected, rel=1e-5)
