"""Tables of measured rows say what the rows say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.scripts import BENCHMARKS, benchmark

ROOT = Path(__file__).parents[1]
PRUNERS = {
    "dropin-torch-pruning.json": ("## Torch-Pruning", 40),
    "dropin-torch-pruning-128.json": ("### CREPE with more frames", 1),
    "dropin-torch-pruning-rounds.json": ("## Longer searches", 3),
    "dropin-nni.json": ("## NNI", 70),
    "dropin-nni-rounds.json": ("## Longer searches", 1),
    "dropin-nni-10000.json": ("### NNI with more images", 10),
}
"""Files of `dropin.py`, the section that shows them, and how many cells they must show at least."""


def test_every_measured_file_is_shown_as_it_was_measured() -> None:
    files = benchmark("files")
    rows = json.loads((BENCHMARKS / "measured" / "files.json").read_text())["rows"]
    text = (ROOT / "README.md").read_text()
    assert len(rows) >= 3
    for one in rows:
        assert one["settings"] == files.settings(one["network"], one["data"], one["recipe"])
        assert files.line(one) in text, files.line(one)


def test_the_table_of_coders_is_as_it_was_measured() -> None:
    rows = json.loads((BENCHMARKS / "measured" / "coders.json").read_text())["rows"]
    sizes: dict[tuple[str, float], dict[str, int]] = {}
    for one in rows:
        sizes.setdefault((one["network"], one["sparsity"]), {})[one["coder"]] = one["bytes"]
    text = (ROOT / "README.md").read_text()
    names = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5", "yolov3-tiny": "YOLOv3-tiny"}
    shown = 0
    for (network, sparsity), found in sizes.items():
        head = f"| {names.get(network)}, {100 * sparsity:.0f} % | "
        if head in text:
            others = " | ".join(f"{found[x]:,}" for x in ("nncodec", "static range", "xz", "zstd-22"))
            assert f"{head}**{found['de']:,}** | {others} |" in text
            assert found["de"] < (0.97 if sparsity >= 0.95 else 1) * found["nncodec"]
            assert found["de"] <= 0.85 * found["zstd-22"]
            shown += 1
    assert shown == text.count(" % | **")
    [large] = [one for one in rows if one["network"] == "yolov3"]
    assert large["encode_seconds"] + large["decode_seconds"] < 60


def test_every_measured_pair_of_levels_is_shown_as_it_was_measured() -> None:
    table = benchmark("dropin_table")
    path = BENCHMARKS / "measured" / "dropin-neural-compressor.json"
    lines = table.pairs(json.loads(path.read_text())["rows"])
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert len(lines) >= 10
    for line in lines:
        assert line in text, line


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "measured").glob("yolo*.json")), ids=lambda p: p.stem)
def test_every_measured_stage_of_a_detector_is_shown_as_it_was_measured(path: Path) -> None:
    yolo = benchmark("yolo")
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    rows = json.loads(path.read_text())["rows"]
    assert rows
    for one in rows:
        assert yolo.line(one) in text, yolo.line(one)


def test_the_readme_tells_of_the_detector_what_was_measured() -> None:
    def rows(name: str) -> dict[str, Any]:
        found = json.loads((BENCHMARKS / "measured" / f"yolo-tiny-{name}.json").read_text())["rows"]
        return {one["stage"]: one for one in found}

    def again(one: dict[str, Any]) -> int:
        found: float = one["retained_08"] * one["objects"]
        return round(found)

    masks, trained = rows("masks"), rows("on-90")
    evolved, solved, largest = (
        [again(masks[f"{x} {at}"]) for at in ("80%", "90%")]
        for x in ("de reconstruct", "magnitude reconstruct", "magnitude")
    )
    assert masks["magnitude 80%"]["objects"] == trained["file"]["objects"] == 33
    text = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"{evolved[0]} are found again at 80 % zeros and {evolved[1]} at 90 % without a gradient step, by "
        "evolved masks whose survivors are solved anew (the largest weights, solved anew: "
        f"{solved[0]} and {solved[1]}; not solved anew: {largest[0]} and {largest[1]})"
    ) in text
    assert again(masks["de reconstruct 75%"]) == 33 > again(masks["magnitude reconstruct 75%"])
    assert "75 % is the highest sparsity at which all 33 are found, by evolved masks solved anew" in text
    settled, small = rows("settled-80")["de reconstruct settled 80%"], rows("file-80")["file"]
    assert settled["seconds"] < 3.5 * 60
    kept = f"{again(settled)} are found again at 80 % zeros and {again(small)} in its file"
    assert f"{kept} {small['ratio']:.1f} times smaller" in text
    assert again(trained["file"]) == again(trained["settled"])
    small = trained["file"]
    assert (
        f"{again(small)} are found again at 90 % zeros, and also in its file of four bits, "
        f"{small['ratio']:.1f} times smaller" in text
    )


def test_what_detectors_miss_is_told_as_it_was_measured() -> None:
    unseen, seen = (
        json.loads((BENCHMARKS / "measured" / f"missed-yolo-tiny-{name}.json").read_text())["rows"]
        for name in ("unseen", "trained")
    )
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert len(unseen) == len(seen) == 5
    for one, other in zip(unseen, seen, strict=True):
        assert one["network"] == other["network"]
        cells = [
            cell
            for x in (one, other)
            for cell in (
                f"{x['found_08']} of {x['objects']}",
                f"{x['found_05']} of {x['detections']}",
                f"{x['extra_detections']} beside {x['detections']}",
            )
        ]
        stage, sparsity = one["network"].split(".")[0].split("-")
        assert f"| {sparsity} %, {stage} | {' | '.join(cells)} |" in text
        assert len(one["missed"]) == one["objects"] - one["found_08"]
    assert unseen[-1]["missed"][0]["label"] == 16  # the dog
    settled, file = seen[-2:]
    assert settled["found_08"] == settled["objects"] == 45
    told = f"the network of 90 % finds all 45 such objects again, its file {file['found_08']}."
    assert told in " ".join((ROOT / "README.md").read_text().split())


def row(method: str, divergence: float, accuracy: float, macs: int = 100) -> dict[str, Any]:
    told = {"network": "lenet5", "data": "mnist", "ratio": 0.5, "steps": 1, "seed": 0, "method": method}
    return {**told, "divergence": divergence, "accuracy": accuracy, "macs": macs}


def shown(name: str) -> list[str]:
    """Return the lines of a host's table, each without an empty last column."""
    table = benchmark("dropin_table")
    rows = json.loads((BENCHMARKS / "measured" / name).read_text())["rows"]
    lines = [table.line(key, some) for key, some in table.cells(rows).items()]
    return [line.removesuffix("|  |") + "|" * line.endswith("|  |") for line in lines if line is not None]


@pytest.mark.parametrize("name", PRUNERS)
def test_every_measured_cell_is_shown_as_it_was_measured(name: str) -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    heading, least = PRUNERS[name]
    _, title, section = text.partition(f"\n{heading}\n")
    assert title
    text = re.split(r"\n#+ ", section)[0]
    lines = shown(name)
    assert len(lines) >= least
    for line in lines:
        assert line in text, line


def test_the_readme_shows_all_networks_at_half() -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## In Torch-Pruning") : text.index("## In NNI")]
    table = [line for line in section.splitlines() if line.startswith("| ") and "%" in line]
    assert sorted(table) == sorted(x for x in shown("dropin-torch-pruning.json") if ", 50%, " in x)


def test_what_is_better_is_bold_and_rows_of_another_size_do_not_count() -> None:
    table = benchmark("dropin_table")
    rows = [row("de", 0.1, 95.0), row("fpgm", 0.2, 96.0), row("bn scale", 0.0, 99.0, macs=200)]
    [(key, some)] = table.cells(rows).items()
    assert table.line(key, some) == "| LeNet-5, 50%, 1 step | **0.1** / 95.00 | 0.2 / **96.00** |  |"


def test_single_weights_are_a_cell_of_their_own_and_errors_leave_no_line() -> None:
    table = benchmark("dropin_table")
    failed = {**row("fpgm", 0, 0), "error": "broken"}
    rows = [row("de", 0.1, 95.0), failed, row("de (weights)", 0.1, 95.0), row("level", 0.3, 90.0)]
    lines = [table.line(key, some) for key, some in table.cells(rows).items()]
    assert lines[0] is None
    assert lines[1] == "| LeNet-5, 50%, weights, 1 step | **0.1** / **95.00** | 0.3 / 90.00 |  |"


def test_levels_of_a_built_in_stand_beside_those_at_its_damage() -> None:
    table = benchmark("dropin_table")
    key = {"network": "vit", "data": "mnist", "seed": 0, "samples": 9}
    rows = [
        {**key, "method": "rtn 4", "mean_bits": 5.1, "bytes": 4000, "divergence": 0.01, "loss": 0.5},
        {**key, "method": "de at rtn 4", "mean_bits": 2.5, "bytes": 3000, "divergence": 0.02, "loss": 0.5},
        {**key, "method": "awq", "error": "broken"},
        {**key, "method": "de at awq", "error": "broken"},
    ]
    assert table.pairs(rows) == [
        "| ViT, rtn 4 | 5.10 / **2.50** | 4,000 / **3,000** | **0.01** / 0.02 | 0.5000 / 0.5000 |"
    ]


def test_the_first_figure_draws_the_first_table(tmp_path: Path) -> None:
    masks = benchmark("masks_table")
    found = masks.read((ROOT / "README.md").read_text())
    assert len(found) == 8
    assert {len(points) for points in found.values()} == {7}
    assert found["de"][-1] == (98.0, 83.29, 0.54)
    masks.draw(found, tmp_path / "masks.svg")
    drawn, kept = ((p / "masks.svg").read_text() for p in (tmp_path, ROOT / "docs" / "pictures"))
    lines = [[x for x in page.splitlines() if "Matplotlib v" not in x] for page in (drawn, kept)]
    assert len(lines[0]) > 1000
    assert lines[0] == lines[1]  # else: masks_table.py README.md --plot docs/pictures/masks.svg


def test_a_table_of_masks_is_read_as_it_was_written() -> None:
    masks = benchmark("masks_table")
    rows = [
        {"method": method, "sparsity": sparsity, "accuracy": accuracy}
        for method, sparsity, accuracy in (("de", 0.5, 94.0), ("de", 0.5, 95.0), ("obs", 0.5, 93.5))
    ]
    assert masks.read(masks.table(rows)) == {"de": [(50.0, 94.5, 0.71)], "obs": [(50.0, 93.5, 0.0)]}
