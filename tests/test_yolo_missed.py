"""What networks miss of the original's objects, told by the benchmark that looks at them one by one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import de_plugin
from de_plugin.zoo import darknet
from tests.scripts import benchmark
from tests.test_yolo_benchmark import photographs
from tests.zoo.test_darknet import SMALL, contents, header, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where there are a network, the same in a file, one that sees nothing, and images."""
    cfg = write(tmp_path, SMALL)
    arrays, drawn = contents(cfg)
    head = drawn.heads[0]
    for x in arrays:
        if x.ndim > 1:
            x *= np.float32(0.1)  # boxes lie within the image
        elif len(x) == len(head.anchors) * (5 + head.classes):  # what the outputs begin at
            x.reshape(len(head.anchors), -1)[:] = [0, 0, 0, 0, 3, 3, *[-3] * (head.classes - 1)]
    (tmp_path / "net.weights").write_bytes(header() + b"".join(x.tobytes() for x in arrays))
    model = darknet(cfg, tmp_path / "net.weights")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "same.safetensors")
    de_plugin.save(tmp_path / "same.de.safetensors", model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "blind.safetensors")
    photographs(tmp_path / "images", 1, 3)
    (tmp_path / "names").write_text("cat\ndog\n")
    return tmp_path


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *networks: str) -> list[dict[str, Any]]:
    given = [str(folder / x) for x in networks]
    rest = ["--names", str(folder / "names"), "--json", str(folder / "rows.json"), "--threads", "1"]
    paths = ["--cfg", str(folder / "net.cfg"), "--weights", str(folder / "net.weights")]
    images = ["--images", str(folder / "images")]
    monkeypatch.setattr(sys, "argv", ["yolo_missed.py", *paths, *images, *rest, "--networks", *given])
    benchmark("yolo_missed").main()
    rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text())["rows"]
    return rows


def test_a_network_and_its_file_find_all_and_one_that_is_blind_misses_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    same, file, blind = run(
        folder, monkeypatch, "same.safetensors", "same.de.safetensors", "blind.safetensors"
    )
    assert same["objects"] > 0
    for one in (same, file):
        assert one["found_08"] == one["objects"]
        assert one["found_05"] == one["detections"]
        assert (one["missed"], one["extra_detections"]) == ([], 0)
    assert blind["found_08"] == 0
    assert len(blind["missed"]) == blind["objects"] == same["objects"]
    assert all(x["original"] > 0.8 > x["score"] for x in blind["missed"])
    assert {x["image"] for x in blind["missed"]} <= {"0.png", "1.png", "2.png"}
    count, detections = blind["objects"], blind["detections"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == (
        f"blind.safetensors: 0 of {count} above .8, 0 of {detections} above .5, 0 extra beside {detections}"
    )
    first = blind["missed"][0]
    assert first["label"] == 0
    assert lines[3] == f"  {first['image']}: cat {first['original']:.2f} -> {first['score']:.2f}"
    assert len(lines) == 3 + count


def test_what_is_no_network_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"other": torch.zeros(2)}, folder / "other.safetensors")
    for name in ("other", "nothing", "nothing.de"):
        with pytest.raises(
            SystemExit, match=rf"--networks .*{name}.safetensors: cannot be read into .*--work"
        ):
            run(folder, monkeypatch, f"{name}.safetensors")
    assert not (folder / "rows.json").exists()


def test_rows_are_added_to_those_of_the_same_images_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(folder, monkeypatch, "same.safetensors")
    assert run(folder, monkeypatch, "same.safetensors") == first
    (folder / "images" / "0.png").unlink()
    with pytest.raises(SystemExit, match="its settings is .* give another file"):
        run(folder, monkeypatch, "same.safetensors")
