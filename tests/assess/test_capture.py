"""Inputs of every prunable weight: design matrices that repeat the layer, Gram matrices, energies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from de_plugin.assess.capture import Call, grams, input_energy, observe
from de_plugin.assess.problem import Problem


class Attention(nn.Module):
    def __init__(self, **options: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        k, v = x[..., : self.options.get("kdim", 8)], x[..., : self.options.get("vdim", 8)]
        y: Tensor = self.attention(x, k, v)[0]
        return y


Make = Callable[[], nn.Module]
MODELS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear on sequences": (lambda: nn.Linear(5, 4), (3, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), (4, 8, 7)),
    "same": (lambda: nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)), (4, 6, 7)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 6, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 4, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 6)),
    "transposed2d": (
        lambda: nn.ConvTranspose2d(
            4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2, dilation=(1, 2)
        ),
        (4, 4, 3),
    ),
    "attention": (Attention, (5, 8)),
    "cross": (lambda: Attention(kdim=4, vdim=6), (5, 8)),
}


def problem_of(name: str) -> Problem:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    return Problem(make().eval(), torch.randn(12, *shape), divergence="mse", batch_size=5)


def calls_of(problem: Problem) -> list[Call]:
    found: list[Call] = []
    observe(problem, problem.pool.take(problem.search), found.append)
    return found


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", MODELS)
def test_the_design_repeats_the_product(name: str) -> None:
    problem = problem_of(name)
    calls = calls_of(problem)
    assert {c.layer for c in calls} == set(range(len(problem.units.layers)))
    for call in calls:
        layer = problem.units.layers[call.layer]
        design = call.design(layer)
        assert design is not None
        weight = layer.parameter.detach()
        direct = call.linear(call.inputs, weight[call.rows])
        rows = layer.canonical(weight)[call.rows].flatten(1)
        product = design @ rows.reshape(len(design), -1, rows.shape[1]).transpose(1, 2)
        flat = product.permute(0, 2, 1).flatten(0, 1)  # (outputs, positions)
        axis = -1 if call.kind == "linear" else 1
        torch.testing.assert_close(flat, direct.movedim(axis, 0).flatten(1), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", MODELS)
def test_the_energy_is_the_diagonal_of_the_gram_matrix(name: str) -> None:
    problem = problem_of(name)
    energy = input_energy(problem, problem.search)
    found = grams(problem, problem.search, range(len(problem.units.layers)), positions=10**6)
    samples = len(problem.search)
    positions: dict[tuple[int, int | None], int] = {}
    for call in calls_of(problem):
        design = call.design(problem.units.layers[call.layer])
        assert design is not None
        key = (call.layer, call.rows.start)
        positions[key] = positions.get(key, 0) + design.shape[1]
    for number, parts in found.items():
        layer = problem.units.layers[number]
        rows = layer.canonical(energy[number]).flatten(1)
        for part, gram in parts:
            key = (number, None) if (number, None) in positions else (number, part.start)
            total = gram.diagonal() * positions[key] / samples
            for row in rows[part]:
                torch.testing.assert_close(row, total, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(gram, gram.T)
            assert float(torch.linalg.eigvalsh(gram).min()) > -1e-4


def test_a_linear_layer_sees_what_a_hook_sees() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    problem = Problem(model, torch.randn(30, 6))
    seen: list[Tensor] = []
    with model[2].register_forward_hook(lambda _m, args, _y: seen.append(args[0].detach())):
        designs = [c.design(problem.units.layers[1]) for c in calls_of(problem) if c.layer == 1]
    assert designs[0] is not None
    assert torch.equal(designs[0][0], seen[0])
    ((rows, gram),) = grams(problem, problem.search, [1])[1]
    assert rows == slice(0, 3)
    torch.testing.assert_close(gram, seen[0].T @ seen[0] / len(seen[0]))


def test_a_convolution_sees_what_unfold_gives() -> None:
    problem = problem_of("conv2d")
    (call, *_) = calls_of(problem)
    design = call.design(problem.units.layers[0])
    assert design is not None
    expected = F.unfold(call.inputs, (3, 2), dilation=(2, 1), padding=(1, 0), stride=(1, 2))
    torch.testing.assert_close(design[0], expected.transpose(1, 2).flatten(0, 1))


def test_the_last_projection_of_attention_sees_the_heads_outputs() -> None:
    problem = problem_of("attention")
    module = problem.model.attention
    assert isinstance(module, nn.MultiheadAttention)
    number = [x.name for x in problem.units.layers].index("attention.out_proj.weight")
    call = next(c for c in calls_of(problem) if c.layer == number)
    x = problem.pool.take(problem.search)[0].inputs
    q, k, v = (
        F.linear(x, module.in_proj_weight, module.in_proj_bias)
        .unflatten(-1, (3, 2, 4))
        .permute(2, 0, 3, 1, 4)
    )
    heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(call.inputs.transpose(0, 1), heads, rtol=1e-4, atol=1e-5)


def test_embeddings_count_their_words() -> None:
    model = nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(6, 2)).eval()
    words = torch.randint(0, 6, (20, 2))
    problem = Problem(model, words, divergence="mse", holdout=0)
    energy = input_energy(problem, problem.search)[0]
    counts = torch.bincount(words.flatten(), minlength=6).float() / 20
    torch.testing.assert_close(energy, counts[:, None].expand(6, 3))
    assert 0 not in grams(problem, problem.search, [0, 1])


def test_positions_are_a_spaced_part() -> None:
    problem = problem_of("conv2d")
    (call, *_) = calls_of(problem)
    layer = problem.units.layers[0]
    every, some = call.design(layer), call.design(layer, 7)
    assert every is not None
    assert some is not None
    assert some.shape == (1, 7, every.shape[2])
    assert torch.equal(some[0, 0], every[0, 0])
    assert torch.equal(some[0, -1], every[0, -1])


def test_the_student_is_asked_and_nothing_stays_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    problem = Problem(model, torch.randn(20, 4))
    before = [p.detach().clone() for p in model.parameters()]
    dense = input_energy(problem, problem.search)
    problem.kept = torch.arange(problem.units.count) >= 16  # all of the first layer is gone
    cut = input_energy(problem, problem.search)
    torch.testing.assert_close(cut[0], dense[0])
    bias = model[0].bias
    assert isinstance(bias, Tensor)
    torch.testing.assert_close(cut[1][0], bias.detach().square())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
