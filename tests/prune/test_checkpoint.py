"""Checkpoints: a search that was killed goes on bit for bit, and no other search takes its place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import de_plugin
from de_plugin import KL, Budget, DirectedEvolution, version
from de_plugin.errors import CheckpointError
from de_plugin.prune import checkpoint as module
from de_plugin.prune.checkpoint import Checkpoint, described
from de_plugin.prune.recover import Distillation, resume
from tests.prune.a_search import search

SCRIPT = Path(__file__).with_name("a_search.py")
X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def expected() -> tuple[dict[str, Tensor], int]:
    torch.set_num_threads(1)
    model, _, calls = search()
    return dict(model.state_dict()), calls


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return list(ours) == list(theirs) and all(torch.equal(a, theirs[n]) for n, a in ours.items())


@pytest.mark.parametrize("moment", [0.1, 0.45, 0.62, 0.8, 0.99])
def test_a_killed_search_resumes_bit_for_bit(moment: float, expected: Any, tmp_path: Path) -> None:
    weights, calls = expected
    folder, out = tmp_path / "kept", tmp_path / "out.safetensors"
    command = [sys.executable, str(SCRIPT), str(out), "--checkpoint", str(folder)]
    died = subprocess.run([*command, "--die-at", str(int(moment * calls))], check=False)
    assert died.returncode == -9
    assert not out.exists()
    assert [p.name for p in folder.iterdir()] in ([], ["search.safetensors"])
    model, report, again = search(folder)
    assert same(dict(model.state_dict()), weights)
    assert len(report.history) == 3
    assert moment < 0.4 or again < calls, "nothing was taken from the checkpoint"


def test_the_report_of_a_resumed_search_is_whole(tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": 4, "recovery": "bias", "seed": 3}
    whole = de_plugin.prune(network(), X, 0.6, "de", **options)
    stopped: list[int] = []

    def stop(progress: de_plugin.Progress) -> None:
        stopped.append(progress.cycle)
        if progress.cycle == 2:
            raise KeyboardInterrupt

    model = network()
    with pytest.raises(KeyboardInterrupt):
        de_plugin.prune(model, X, 0.6, "de", checkpoint=tmp_path, progress=stop, **options)
    assert same(dict(model.state_dict()), dict(network().state_dict()))
    resumed = de_plugin.prune(model, X, 0.6, "de", checkpoint=tmp_path, **options)
    assert stopped == [1, 2]
    assert [h.cycle for h in resumed.history] == [1, 2, 3, 4]
    assert [h.divergence for h in resumed.history] == [h.divergence for h in whole.history]
    assert resumed.evaluations == whole.evaluations
    assert resumed.events == whole.events
    assert all(torch.equal(resumed.masks[n], m) for n, m in whole.masks.items())


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Checkpoint(tmp_path, {"seed": "0"})
    store.save({"a": torch.ones(3)}, {"done": 1})

    def broken(*_: Any) -> None:
        (tmp_path / "half").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", broken)
    with pytest.raises(KeyboardInterrupt):
        store.save({"a": torch.zeros(3)}, {"done": 2})
    found = store.load()
    assert found is not None
    assert found[1] == {"done": 1}
    assert torch.equal(found[0]["a"], torch.ones(3))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sparsity": 0.5}, "target was 48 of 80, is 40 of 80"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"criterion": DirectedEvolution(population=8)}, "criterion was .*population=24.*population=8"),
        ({"recovery": "bias"}, "recovery was .*BiasCorrection"),
        ({"schedule": 3}, "schedule was .*cycles=2.*cycles=3"),
        ({"divergence": "mse"}, "divergence was .*KL.*MSE"),
        ({"batches": X + 1}, "data was 60 samples .*, is 60 samples"),
        ({"holdout": 0.2}, "split was 54 6, is 48 12"),
    ],
)
def test_another_search_is_refused_and_told_the_difference(
    change: dict[str, Any], what: str, tmp_path: Path
) -> None:
    call: dict[str, Any] = {"batches": X, "sparsity": 0.6, "criterion": "de", "schedule": 2}
    de_plugin.prune(network(), checkpoint=tmp_path, **call)
    with pytest.raises(CheckpointError, match=what):
        de_plugin.prune(network(), checkpoint=tmp_path, **{**call, **change})


def test_another_model_or_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    de_plugin.prune(network(), X, 0.5, "magnitude", checkpoint=tmp_path)
    other = network()
    with torch.no_grad():
        other.get_parameter("0.weight")[0, 0] += 1
    with pytest.raises(CheckpointError, match="model was 4 tensors"):
        de_plugin.prune(other, X, 0.5, "magnitude", checkpoint=tmp_path)
    monkeypatch.setattr(version, "__version__", "99")
    with pytest.raises(CheckpointError, match="de_plugin was .*, is 99"):
        de_plugin.prune(network(), X, 0.5, "magnitude", checkpoint=tmp_path)


def test_a_larger_budget_may_go_on(tmp_path: Path) -> None:
    spent = de_plugin.prune(
        network(), X, 0.6, "de", schedule=3, checkpoint=tmp_path, budget=Budget(evaluations=10)
    )
    assert spent.outcome == "budget"
    again = de_plugin.prune(network(), X, 0.6, "de", schedule=3, checkpoint=tmp_path)
    assert again.sparsity == spent.sparsity


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    de_plugin.prune(network(), X, 0.5, "magnitude", checkpoint=tmp_path)
    file = tmp_path / "search.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 64):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            de_plugin.prune(network(), X, 0.5, "magnitude", checkpoint=tmp_path)
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match="is damaged"):
        de_plugin.prune(network(), X, 0.5, "magnitude", checkpoint=tmp_path)
    assert load_file(file)["a"] == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoint=.*give a folder"):
        de_plugin.prune(network(), X, 0.5, "magnitude", checkpoint=tmp_path / "file" / "folder")


def test_descriptions_hold_no_addresses() -> None:
    class Own:
        name = "own"

    assert described({"a": (1, Own(), len)}).count("0x") == 0
    assert described(Own()) == described(Own())
    assert described(torch.ones(2)) != described(torch.zeros(2))


def test_measures_are_told_apart_by_how_they_read_outputs() -> None:
    def floored(least: float) -> Any:
        return lambda p: p.clamp_min(least).log()

    ways: list[Any] = [None, F.logsigmoid, torch.Tensor.log, torch.log, floored(1e-3), floored(1e-6)]
    told = [described(KL(logits=way)) for way in ways]
    assert len(set(told)) == len(ways)
    assert "0x" not in "".join(told)
    assert told[-1] == described(KL(logits=floored(1e-6)))


def test_functions_are_told_apart_by_what_they_do() -> None:
    def shifted(by: float) -> Any:
        return lambda x, _: x + by

    @dataclass(frozen=True)
    class Scaled:
        by: float

        def __call__(self, x: Tensor, _: torch.Generator) -> Tensor:
            return x * self.by

        def method(self, x: Tensor, _: torch.Generator) -> Tensor:
            return x * self.by

    def with_default(by: float) -> Any:
        def fn(x: Tensor, _: torch.Generator, by: float = by) -> Tensor:
            return x * by

        return fn

    def nested(x: Tensor, _: torch.Generator) -> Tensor:
        return torch.stack([y for y in x if y.sum() > 0.1])

    def otherwise(x: Tensor, _: torch.Generator) -> Tensor:
        return torch.stack([y for y in x if y.sum() > 0.2])

    pairs: list[tuple[Any, Any]] = [
        (lambda x, _: x + 0.1, lambda x, _: x + 0.9),
        (shifted(0.1), shifted(0.9)),
        (Scaled(0.1), Scaled(0.9)),
        (Scaled(0.1).method, Scaled(0.9).method),
        (with_default(0.1), with_default(0.9)),
        (nested, otherwise),
    ]
    for first, second in pairs:
        one, other = (described(Distillation(augment=fn)) for fn in (first, second))
        assert one.replace("otherwise", "nested") != other.replace("otherwise", "nested")
        assert "0x" not in one
    same = described(Distillation(augment=shifted(0.1)))
    assert same == described(Distillation(augment=shifted(0.1)))


def test_an_object_that_changes_as_it_is_called_stays_the_same_search() -> None:
    class Counting:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, x: Tensor, _: torch.Generator) -> Tensor:
            self.calls += 1
            return x

    counting = Counting()
    before = described(Distillation(augment=counting))
    counting(torch.ones(1), torch.Generator())
    assert described(Distillation(augment=counting)) == before
    assert described(Distillation(augment=counting.__call__)) == described(
        Distillation(augment=Counting().__call__)
    )


class _CutOff:
    """Calls the model until it is told to stop."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls = 0
        self.stop_at = stop_at

    def __call__(self, model: nn.Module, inputs: Tensor) -> Any:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return model(inputs)


def _distilled(model: nn.Module, forward: _CutOff, **options: Any) -> de_plugin.Report:
    training = Distillation(40, batch_size=12, validate_every=4, patience=6)
    asked: dict[str, Any] = {"finish": training, **options}
    return de_plugin.prune(
        model, X, 0.6, "magnitude", schedule=2, recovery="bias", batch_size=20, forward=forward, **asked
    )


@pytest.mark.parametrize("share", [0.55, 0.8, 0.98])
def test_a_training_goes_on_bit_for_bit_where_it_was_cut_off(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    whole, all_calls = network(), _CutOff()
    _distilled(whole, all_calls)
    model, cut = network(), _CutOff(round(share * all_calls.calls))
    with pytest.raises(KeyboardInterrupt):
        _distilled(model, cut, checkpoint=tmp_path)
    assert same(dict(model.state_dict()), dict(network().state_dict()))
    part = tmp_path / "search-part-distill-0.safetensors"
    assert part.exists()
    written = json.loads(_metadata(part)["state"])["step"]
    again = _CutOff()
    _distilled(model, again, checkpoint=tmp_path)
    assert same(dict(model.state_dict()), dict(whole.state_dict()))
    steps = json.loads(_metadata(part)["state"])["step"]
    assert 0 < written <= steps
    assert again.calls < all_calls.calls - written, "the steps that were kept were done again"
    done = _CutOff()
    other = network()
    _distilled(other, done, checkpoint=tmp_path)
    assert (done.calls < again.calls) == (written < steps)
    assert same(dict(other.state_dict()), dict(whole.state_dict()))


def test_a_cycle_that_is_written_leaves_no_training_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    seen: list[list[str]] = []

    (tmp_path / "search-part-distill-7.123.tmp").write_bytes(b"of a write that was killed")

    def look(_: de_plugin.Progress) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))

    training = Distillation(8, batch_size=12, validate_every=4)
    de_plugin.prune(
        network(), X, 0.6, "magnitude", schedule=2, recovery=training, checkpoint=tmp_path, progress=look
    )
    assert seen == [["search.safetensors"]] * 2


def test_a_training_of_other_masks_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    whole = network()
    _distilled(whole, _CutOff())
    part = tmp_path / "search-part-distill-0.safetensors"
    _distilled(network(), _CutOff(), checkpoint=tmp_path)
    metadata, tensors = _metadata(part), load_file(part)
    state = json.loads(metadata["state"])
    save_file(tensors, part, {**metadata, "state": json.dumps({**state, "start": state["start"] ^ 1})})
    model = network()
    _distilled(model, _CutOff(), checkpoint=tmp_path)
    assert same(dict(model.state_dict()), dict(whole.state_dict()))
    assert json.loads(_metadata(part)["state"])["start"] == state["start"]


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())
