"""The benchmark of the detector from its first to its last stage, on a network and images of a few pixels."""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from de_plugin.prune.recover import resume
from de_plugin.zoo import Impressions, darknet
from tests.scripts import benchmark
from tests.zoo.test_darknet import SMALL, contents, header, write

STAGES = ["original", "distilled", "settled", "file"]


def photographs(folder: Path, seed: int, count: int) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(seed)
    for n in range(count):
        coarse = draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 40)).save(folder / f"{n}.png")
    return folder


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    cfg = write(tmp_path, SMALL)
    arrays, _ = contents(cfg)
    weights = tmp_path / "net.weights"
    scaled = [a * np.float32(0.1) if a.ndim > 1 else a for a in arrays]  # boxes lie within the image
    weights.write_bytes(header() + b"".join(a.tobytes() for a in scaled))
    return [
        "yolo.py",
        *("--cfg", str(cfg), "--weights", str(weights)),
        *("--images", str(photographs(tmp_path / "images", 0, 8))),
        *("--eval-images", str(photographs(tmp_path / "others", 1, 3))),
        *("--json", str(tmp_path / "rows.json"), "--work", str(tmp_path / "work")),
        *("--stages", *STAGES, "--sparsity", "0.5", "--plain", "8", "--variations", "1", "--mosaics", "1"),
        *("--cycles", "2", "--start", "0.3", "--steps-between", "2", "--steps", "3", "--no-evolve"),
        *("--steps-settled", "3", "--steps-levels", "2", "--level-samples", "16", "--holdout", "0.25"),
        *("--hints", "1", "--threads", "1"),
    ]


def run(command: list[str], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", command)
    benchmark("yolo").main()
    path = Path([after for name, after in pairwise(command) if name == "--json"][-1])
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


@pytest.mark.parametrize("train_size", [None, 64])
def test_every_stage_follows_the_one_before(
    command: list[str], train_size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized = command if train_size is None else [*command, "--train-size", str(train_size)]
    rows = run(sized, monkeypatch)
    assert [row["stage"] for row in rows] == STAGES
    assert rows[0]["retained_05"] == rows[0]["retained_08"] == 1.0
    assert rows[0]["sparsity"] == 0.0
    assert rows[1]["sparsity"] == pytest.approx(0.5, abs=0.01)
    states = [load_file(tmp_path / "work" / f"{stage}.safetensors") for stage in ("distilled", "settled")]
    weights = [n for n, x in states[0].items() if x.dim() > 1]
    zeros = [{n: state[n] == 0 for n in weights} for state in states]
    assert all(bool((zeros[1][n] | ~zeros[0][n]).all()) for n in weights)
    assert any(bool((states[0][n] != states[1][n]).any()) for n in weights)
    assert rows[3]["sparsity"] >= rows[2]["sparsity"]
    path = tmp_path / "work" / "yolo.de.safetensors"
    assert rows[3]["bytes"] == path.stat().st_size
    original = darknet(sized[sized.index("--cfg") + 1], seed=0)
    whole = 4 * sum(x.numel() for n, x in original.state_dict().items() if "num_batches" not in n)
    assert rows[3]["ratio"] == pytest.approx(whole / rows[3]["bytes"], rel=0.02)
    assert run(sized, monkeypatch) == rows


def test_a_network_of_drawn_weights_tells_what_each_stage_takes(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = command.index("--weights")
    drawn = [*command[:at], *command[at + 2 :], "--size", "96", "--seed", "3"]
    rows = run(drawn, monkeypatch)
    assert [row["stage"] for row in rows] == STAGES
    assert all(row["seconds"] > 0 for row in rows[1:])
    assert not any("retained_08" in row for row in rows)
    assert all((row["peak_gib"] or 0) > 0 for row in rows[1:]) or not benchmark("memory").KNOWN
    assert rows[-1]["bytes"] == (tmp_path / "work" / "yolo.de.safetensors").stat().st_size
    with pytest.raises(SystemExit, match="belongs to other seed"):
        run([*drawn[:-1], "4"], monkeypatch)


@pytest.mark.skipif(not benchmark("memory").KNOWN, reason="this system does not tell what a process takes")
def test_the_peak_is_that_of_what_came_last() -> None:
    memory = benchmark("memory")
    size = 1 << 26
    with pages(2 * size):
        assert memory.peak() >= 2 * size
    memory.forget_peak()
    before = memory.peak()
    with pages(size):
        assert before + size // 2 < memory.peak() < before + 2 * size
    assert memory.resident() < before + size // 2


@contextmanager
def pages(size: int) -> Iterator[None]:
    """Take fresh memory, which no allocator has kept."""
    with mmap.mmap(-1, size) as taken:
        taken.write(b"\x01" * size)
        yield


def test_training_on_fresh_views_at_the_networks_own_size(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = command.index("--steps-settled")
    fresh = [*command[:at], "--steps-settled", "0", "--fresh", "--batch", "4", *command[at + 2 :]]
    with pytest.raises(SystemExit, match="--steps-settled 0 leaves that stage out"):
        run(fresh, monkeypatch)
    fresh += ["--stages", "original", "distilled", "file"]
    rows = run(fresh, monkeypatch)
    assert [row["stage"] for row in rows] == ["original", "distilled", "file"]
    assert [row.get("device") for row in rows] == [None, "cpu", "cpu"]

    def again(name: str, *options: str) -> list[dict[str, Any]]:
        places = ["--work", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json")]
        found = run([*fresh, *places, *options], monkeypatch)
        return [{**row, "seconds": 0, "peak_gib": 0} for row in found]

    assert again("again") == [{**row, "seconds": 0, "peak_gib": 0} for row in rows]
    _ = again("same", "--no-fresh")
    _ = again("blended", "--blends", "0.5")
    monkeypatch.setattr(Impressions, "__init__", partialmethod(Impressions.__init__, steps=2))
    _ = again("more", "--impressions", "5", "--blends", "0.5")
    _ = again("one", "--impressions", "1")
    assert load_file(tmp_path / "more" / "impressions-32x32.safetensors")["images"].shape == (5, 3, 32, 32)
    names = ("work", "same", "blended", "more")
    states = [load_file(tmp_path / name / "distilled.safetensors") for name in names]
    for one, other in combinations(states, 2):
        assert any(bool((one[n] != other[n]).any()) for n in one)


def test_impressions_go_on_where_they_were_cut_off(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Impressions, "__init__", partialmethod(Impressions.__init__, steps=2, batch=2))
    at = command.index("--stages")
    asked = [*command[:at], *command[at + 1 + len(STAGES) :], "--stages", "distilled", "--impressions", "5"]
    whole = [*asked, "--work", str(tmp_path / "whole"), "--json", str(tmp_path / "whole.json")]
    made = Impressions.__call__
    parts: list[int] = []

    def counted(self: Impressions, model: Any, starts: Any, generator: Any) -> Any:
        parts.append(len(starts))
        return made(self, model, starts, generator)

    def second_fails(*given: Any) -> Any:
        if len(parts) == 1:
            raise KeyboardInterrupt
        return counted(*given)

    monkeypatch.setattr(Impressions, "__call__", counted)
    rows = run(whole, monkeypatch)
    assert parts == [2, 2, 1]
    parts.clear()
    monkeypatch.setattr(Impressions, "__call__", second_fails)
    with pytest.raises(KeyboardInterrupt):
        run(asked, monkeypatch)
    assert [p.name for p in (tmp_path / "work").glob("impressions*")] == [
        "impressions-32x32-part-0.safetensors"
    ]
    assert (tmp_path / "work" / "distilled.seconds").exists()
    monkeypatch.setattr(Impressions, "__call__", counted)
    again = run(asked, monkeypatch)
    assert parts == [2, 2, 1]
    assert not (tmp_path / "work" / "distilled.seconds").exists()
    name = "impressions-32x32.safetensors"
    images = [load_file(tmp_path / work / name)["images"] for work in ("whole", "work")]
    assert torch.equal(*images)
    assert [{**x, "seconds": 0, "peak_gib": 0} for x in rows] == [
        {**x, "seconds": 0, "peak_gib": 0} for x in again
    ]


def test_evolved_masks_are_trained_as_well(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["magnitude", "de reconstruct", "de reconstruct settled"]
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    masks = [*command, "--mask-sparsities", "0.5", "0.625", "--mask-samples", "12", "--mask-cycles", "1"]
    masks += ["--generations", "1", "--search-samples", "4"]
    masks += ["--steps-settled", "100", "--lr", "2e-3", "--hints", "0"]
    rows = run([*masks, "--stages", *names], monkeypatch)
    stages = [f"{name} {at}%" for name in names for at in ("50", "62.5")]
    assert [row["stage"] for row in rows] == stages
    for row, sparsity in zip(rows, 3 * [0.5, 0.625], strict=True):
        assert row["sparsity"] == pytest.approx(sparsity, abs=0.01)
    assert not list((tmp_path / "work").rglob("*-part-*"))
    work = tmp_path / "work"
    states = [load_file(work / f"{name.replace(' ', '-')}-50%.safetensors") for name in names[1:]]
    weights = [n for n, x in states[0].items() if x.dim() > 1]
    assert all(torch.equal(states[0][n] == 0, states[1][n] == 0) for n in weights)
    assert any(bool((states[0][n] != states[1][n]).any()) for n in weights)


def test_cycles_go_on_from_a_network_of_another_run(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [*command, "--stages", "distilled"]
    run(short, monkeypatch)
    first = tmp_path / "work" / "distilled.safetensors"
    on = [*short, "--work", str(tmp_path / "on"), "--json", str(tmp_path / "on.json"), "--sparsity", "0.75"]
    on += ["--start", "0.6", "--begin", str(first)]
    assert run(on, monkeypatch)[0]["sparsity"] == pytest.approx(0.75, abs=0.01)
    before, after = (load_file(path) for path in (first, tmp_path / "on" / "distilled.safetensors"))
    weights = [n for n, x in before.items() if x.dim() > 1]
    assert all(bool((after[n] == 0)[before[n] == 0].all()) for n in weights)
    with pytest.raises(SystemExit, match=r"--begin .*missing\.safetensors"):
        run([*on[:-1], str(tmp_path / "missing.safetensors")], monkeypatch)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    fresh = ["--work", str(tmp_path / "new"), "--json", str(tmp_path / "new.json"), "--begin", str(other)]
    with pytest.raises(SystemExit, match=r"--begin .*other\.safetensors: is no such network"):
        run([*on, *fresh], monkeypatch)


def test_what_is_asked_wrongly_is_refused(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"1\.5, expected fractions"):
        run([*command, "--mask-sparsities", "0.5", "1.5"], monkeypatch)
    for wrong in (["--blends", "0.5"], ["--fresh", "--blends", "1.5"], ["--impressions", "-1"]):
        with pytest.raises(SystemExit, match="expected a share in"):
            run([*command, *wrong], monkeypatch)
    for name in ("--size", "--train-size"):
        with pytest.raises(SystemExit, match=f"{name} 33: expected a multiple of 32"):
            run([*command, name, "33"], monkeypatch)
    at = command.index("--weights")
    with pytest.raises(SystemExit, match="--pictures, --labels: need --weights"):
        run([*command[:at], *command[at + 2 :], "--labels", "labels"], monkeypatch)
    same = command[command.index("--images") + 1]
    with pytest.raises(SystemExit, match="are among --images too"):
        run([*command, "--eval-images", same], monkeypatch)
