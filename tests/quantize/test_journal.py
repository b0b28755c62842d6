"""Searches for levels that were cut off: they go on bit for bit, and measure and code nothing again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from de_plugin import Budget, Problem
from de_plugin.assess.ranks import Ranks
from de_plugin.errors import CheckpointError
from de_plugin.prune.recover import Distillation, resume
from de_plugin.quantize import QuantizationReport, Quantized, StraightThrough, quantize
from de_plugin.quantize.journal import Journal, digest
from tests.quantize.small import BOOKS, QUICK, QUICK_LEVELS, data, problem, pruned, quick, same, state

TRAINING = Distillation(steps=30, lr=1e-3, batch_size=64, validate_every=5)


class Work:
    """Counts what takes long, and stops it after a while.

    Attributes:
        measured: networks.
        coded: tensors.
        validated: looks of a training at the held-back data.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.measured = self.coded = self.validated = 0
        self.last: int | None = None
        self._patch = patch
        measure, validate = Problem.measure, Distillation.validate
        save = sys.modules["de_plugin.encode.save"]
        code = save.encode_symbols

        def measuring(problem: Problem, batches: Any) -> Tensor:
            self.measured += 1
            return measure(problem, batches)

        def coding(symbols: Tensor) -> bytes:
            self.coded += 1
            return bytes(code(symbols))

        def validating(rule: Distillation, problem: Problem, batches: Any) -> float:
            self.validated += 1
            if self.validated == self.last:
                raise KeyboardInterrupt
            return validate(rule, problem, batches)

        patch.setattr(Problem, "measure", measuring)
        patch.setattr(save, "encode_symbols", coding)
        patch.setattr(Distillation, "validate", validating)


def whole(report: QuantizationReport) -> list[Any]:
    """Return what two reports of the same search have in common."""
    levels = {n: (q.symbols.tolist(), q.levels.tolist()) for n, q in report.quantization.items()}
    points = [(p.name, p.bytes, p.divergence) for p in report.curve]
    return [levels, report.bytes, report.divergence, report.start, report.winner, report.evaluations, points]


@pytest.mark.parametrize("stop", [1, 5, 12])
@pytest.mark.parametrize("goal", [{"bits": 3}, {"max_divergence": 0.05}], ids=["bits", "divergence"])
def test_a_search_goes_on_where_it_was_cut_off(
    stop: int, goal: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, expected = pruned(), pruned()
    work = Work(monkeypatch)
    report = quick(expected, **goal)
    alone, coded = work.measured, work.coded
    told: list[str] = []

    def tell(point: Any) -> None:
        told.append(point.name)
        if len(told) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(model, checkpoint=tmp_path, progress=tell, **goal)
    assert same(state(model), state(pruned()))
    before = work.measured - alone
    work.measured = work.coded = 0
    assert whole(quick(model, checkpoint=tmp_path, **goal)) == whole(report)
    assert same(state(model), state(expected))
    after, coded_after = work.measured, work.coded
    work.measured = work.coded = 0
    assert whole(quick(pruned(), checkpoint=tmp_path, **goal)) == whole(report)
    assert work.coded == len(report.quantization)  # what the report tells of each
    first = work.measured  # to set up the problem, before there is a search
    assert before + after == alone + first
    assert first < 10
    assert stop == 1 or coded_after < coded


@pytest.mark.parametrize("last", [4, 7, 8, 9, 10, 12, 14])
def test_trainings_go_on_where_they_were_cut_off(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are two of seven looks each: in the first, between them, in the second."""
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    work = Work(monkeypatch)
    expected, model = pruned(), pruned()
    options: dict[str, Any] = {"bits": 3, "recovery": TRAINING}
    report = quick(expected, **options)
    looks, work.validated, work.last = work.validated, 0, last
    assert looks == 14
    with pytest.raises(KeyboardInterrupt):
        quick(model, checkpoint=tmp_path, **options)
    assert same(state(model), state(pruned()))
    work.validated, work.last = 0, None
    assert whole(quick(model, checkpoint=tmp_path, **options)) == whole(report)
    assert same(state(model), state(expected))
    assert work.validated <= looks - last + 3  # the first of each is made again
    work.validated = work.coded = 0
    assert whole(quick(pruned(), checkpoint=tmp_path, **options)) == whole(report)
    assert work.validated == 2
    assert work.coded == len(report.quantization)


def test_the_users_metric_is_not_asked_again(tmp_path: Path) -> None:
    asked: list[int] = []
    x, y = data()

    def error(model: nn.Module) -> float:
        asked.append(1)
        with torch.no_grad():
            return 100.0 * float((model(x).argmax(1) != y).float().mean())

    options: dict[str, Any] = {"max_loss": 2.0, "metric": error, "checkpoint": tmp_path}
    report = quick(pruned(), **options)
    first = len(asked)
    assert whole(quick(pruned(), **options)) == whole(report)
    assert first > 3
    assert len(asked) - first <= 3


def test_what_no_argument_tells_is_noticed(tmp_path: Path) -> None:
    weights = {"scale": 1.0}

    class Hidden:
        __slots__ = ()
        name, differentiable = "hidden", True

        def __call__(self, ours: Tensor, theirs: Tensor, labels: Any = None) -> Tensor:
            return (ours - theirs).square().mean() * weights["scale"]

    options: dict[str, Any] = {"bits": 3, "divergence": Hidden(), "checkpoint": tmp_path}
    quick(pruned(), **options)
    weights["scale"] = 2.0
    model = pruned()
    with pytest.raises(CheckpointError, match="what the arguments don't tell has changed"):
        quick(model, **options)
    assert same(state(model), state(pruned()))


def test_a_problem_is_left_as_it_was_where_its_search_is_cut_off(tmp_path: Path) -> None:
    options: dict[str, Any] = {"bits": 3, "search": QUICK, "levels": QUICK_LEVELS, "codebooks": BOOKS}
    whole_report = quantize(problem(), **options)
    once = problem()
    told: list[Any] = []

    def tell(point: Any) -> None:
        told.append(point)
        if len(told) == 9:
            raise KeyboardInterrupt

    before = once.evaluations
    with pytest.raises(KeyboardInterrupt):
        quantize(once, checkpoint=tmp_path, progress=tell, **options)
    assert once.evaluations == before
    assert whole(quantize(once, checkpoint=tmp_path, **options)) == whole(whole_report)
    with pytest.raises(CheckpointError, match="searches before was"):
        quantize(once, checkpoint=tmp_path, **options)


def test_a_larger_budget_takes_up_no_training_of_other_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    work = Work(monkeypatch)
    options: dict[str, Any] = {"bits": 3, "recovery": StraightThrough(TRAINING)}
    expected = quick(pruned(), **options)
    work.validated, work.last = 0, 4
    with pytest.raises(KeyboardInterrupt):
        quick(pruned(), checkpoint=tmp_path, budget=Budget(evaluations=12), **options)
    work.last = None
    assert whole(quick(pruned(), checkpoint=tmp_path, **options)) == whole(expected)


def test_seconds_of_a_budget_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = quick(pruned(), bits=3, checkpoint=tmp_path)
    again = quick(pruned(), bits=3, checkpoint=tmp_path)
    last = json.loads((tmp_path / "levels.jsonl").read_text().splitlines()[-1])[2]
    assert last <= again.seconds
    assert last <= report.seconds


def test_the_clock_of_a_search_goes_on_over_answers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first = Journal(tmp_path / "j", {}, Ranks(torch.device("cpu")), 90.0)
    assert first.seconds == 10
    for _ in range(2):
        now[0] += 5
        assert first.pure(["x"], lambda: 1) == 1
    assert first.seconds == 20
    now[0] += 7
    again = Journal(tmp_path / "j", {}, Ranks(torch.device("cpu")), now[0])
    assert again.seconds == 0
    assert again.pure(["x"], lambda: 2) == 1
    assert again.seconds == 15
    now[0] += 3
    assert again.seconds == 18


def test_a_problems_teacher_is_what_a_loss_is_measured_from() -> None:
    asked: list[nn.Module] = []
    given = problem()

    def error(model: nn.Module) -> float:
        asked.append(model)
        return 1.0

    quantize(given, max_loss=1.0, metric=error, search=QUICK, levels=None, codebooks=BOOKS)
    assert asked[0] is given.teacher
    assert given.teacher is not given.model


ROOT = Path(__file__).parents[2]


def on_two_ranks(folder: Path, name: str, *more: tuple[str, ...]) -> list[tuple[int, str]]:
    processes = []
    for rank in range(2):
        command = [sys.executable, "-m", "tests.quantize.a_level_search", str(folder / f"{name}-{rank}")]
        command += [str(folder / "kept"), "--store", str(folder / f"{name}-store"), "--rank", str(rank)]
        command += more[rank] if more else ()
        processes.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    errors = [p.communicate(timeout=300)[1] for p in processes]
    return [(p.returncode, error) for p, error in zip(processes, errors, strict=True)]


@pytest.mark.usefixtures("real_coder")
def test_ranks_go_on_together(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = pruned()
    quick(expected, bits=3, recovery=TRAINING)
    torch.set_num_threads(threads)
    stopped = on_two_ranks(tmp_path, "first", ("--stop", "9"), ("--stop", "9"))
    assert all("KeyboardInterrupt" in error for _, error in stopped), stopped
    assert (tmp_path / "kept" / "levels.jsonl").exists()
    found = on_two_ranks(tmp_path, "second")
    assert [code for code, _ in found] == [0, 0], found
    for rank in range(2):
        network = load_file(tmp_path / f"second-{rank}")
        assert all(torch.equal(network[name], x) for name, x in state(expected).items())
    other = on_two_ranks(tmp_path, "third", (), ("--bits", "4"))
    assert all("ArgumentError: arguments: rank(s) [1] hold(s) something else" in error for _, error in other)
    (tmp_path / "kept" / "levels.jsonl").write_text("none\n")
    damaged = on_two_ranks(tmp_path, "fourth")
    assert all("levels.jsonl is damaged" in error for _, error in damaged), damaged


def test_what_is_kept_changes_nothing(tmp_path: Path) -> None:
    first, second = pruned(), pruned()
    options: dict[str, Any] = {"bits": 3, "rounding": "compensated", "recovery": "bias"}
    assert whole(quick(first, **options)) == whole(quick(second, checkpoint=tmp_path, **options))
    assert same(state(first), state(second))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"bits": 4}, "goal was .*bits=3.*bits=4"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"biases": "exact"}, "biases was 8, is 'exact'"),
        ({"rounding": "compensated"}, "rounding was None, is Compensated"),
        ({"recovery": "bias"}, "recovery was .*BiasCorrection"),
        ({"weighting": "none"}, "weighting was 'fisher', is 'none'"),
        ({"codebooks": ()}, "codebooks was"),
        ({"teacher": None}, "teacher was"),
    ],
)
def test_another_search_is_refused(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    quick(pruned(), bits=3, checkpoint=tmp_path)
    model = pruned()
    with pytest.raises(CheckpointError, match=what):
        quick(model, checkpoint=tmp_path, **{"bits": 3, **change})
    assert same(state(model), state(pruned()))


def test_a_line_that_was_cut_short_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = quick(pruned(), bits=3, checkpoint=tmp_path)
    path = tmp_path / "levels.jsonl"
    lines = path.read_bytes()
    path.write_bytes(lines[:-5])
    asked = [json.loads(x)[:2] for x in lines.splitlines()[1:]]
    work = Work(monkeypatch)
    assert whole(quick(pruned(), bits=3, checkpoint=tmp_path)) == whole(report)
    assert work.measured + work.coded > 0
    assert [json.loads(x)[:2] for x in path.read_bytes().splitlines()[1:]] == asked


@pytest.mark.parametrize(
    "text",
    ["[1, 2]\n", '{"a": "b"}\n[1]\n', '{"a": "b"}\n["c", "d", 1]\n', "no json\n", "\xff\n", "precious"],
)
def test_damaged_journals_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "levels.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"levels\.jsonl is .*delete it"):
        quick(pruned(), bits=3, checkpoint=tmp_path)


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "levels.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"levels\.jsonl"):
        quick(pruned(), bits=3, checkpoint=tmp_path)


def test_the_journal_is_text_that_holds_no_pickle(tmp_path: Path) -> None:
    quick(pruned(), bits=3, checkpoint=tmp_path)
    first, *others = [json.loads(x) for x in (tmp_path / "levels.jsonl").read_text().splitlines()]
    assert {"goal", "model", "data", "seed"} <= set(first)
    assert all(isinstance(x, int | float) for _, *answer in others for x in answer)


parts = st.recursive(
    st.integers(-3, 3) | st.text("ab", max_size=3) | st.booleans() | st.none(),
    lambda inner: st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=4,
)


@given(st.lists(parts, max_size=3), st.lists(parts, max_size=3))
def test_digests_are_equal_where_what_they_tell_of_is(first: list[Any], second: list[Any]) -> None:
    assert (digest(first) == digest(second)) == (repr(first) == repr(second))


def test_digests_tell_tensors_apart() -> None:
    levels = torch.tensor([[-0.5, 0.0, 0.25]])
    symbols = torch.tensor([[0, 1], [-1, 0]], dtype=torch.int32)
    some = [
        *(torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.ones(4)),
        *(torch.tensor(0.0), torch.zeros(4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.bool)),
        *(
            Quantized(symbols, levels, -1),
            Quantized(symbols, 2 * levels, -1),
            Quantized(symbols.T, levels, -1),
        ),
        *({"a": symbols}, {"b": symbols}, "a", 1, True, None),
    ]
    assert len({digest([x]) for x in some}) == len(some)
    assert digest([symbols.T]) == digest([symbols.T.contiguous()])
