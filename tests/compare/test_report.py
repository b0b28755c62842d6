"""The report: its files, its Markdown, and a page that keeps the rules of HTML and of accessibility."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from de_plugin import Comparison
from de_plugin.compare.figures import drawings
from de_plugin.compare.page import page as html
from de_plugin.compare.report import Files
from de_plugin.compare.summary import cells, wins
from de_plugin.compare.text import markdown, plain
from de_plugin.errors import FileError, MissingDependencyError
from tests.compare.made import BAD, comparison, row, settings
from tests.compare.reading import Page

COMMAND = "de-plugin compare --config 'a b/compare.toml' --output <folder>"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return comparison().report(tmp_path_factory.mktemp("report") / "made", command=COMMAND)


@pytest.fixture(scope="module")
def text(files: Files) -> str:
    return files.page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_all_files_are_there(files: Files) -> None:
    assert Comparison.from_json(files.rows) == comparison()
    names = {p.stem for p in files.figures}
    assert {"weights-score-torch", "channels-divergence-torch-pruning", "weights-layers-0_9"} <= names
    assert any(name.startswith("weights-search") for name in names)
    for path in files.figures:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            ET.parse(path)
    assert {p.name for p in files.page.parent.iterdir()} == {
        "index.html",
        "report.md",
        "rows.json",
        "figures",
    }


def test_a_report_twice_is_the_same_report_and_leaves_nothing_old(files: Files, tmp_path: Path) -> None:
    stale = tmp_path / "figures" / "old.svg"
    stale.parent.mkdir()
    stale.write_text("<svg/>")
    again = comparison().report(tmp_path, command=COMMAND)
    assert not stale.exists()
    assert again.page.read_bytes() == files.page.read_bytes()
    assert again.markdown.read_bytes() == files.markdown.read_bytes()
    pairs = zip(again.figures, files.figures, strict=True)
    assert all(a.read_bytes() == b.read_bytes() for a, b in pairs)


def test_markdown_holds_tables_failures_settings_and_the_command(files: Files) -> None:
    text = files.markdown.read_text(encoding="utf-8")
    assert "| de\\_plugin | de | **93.85 ± 0.21** | **82.65 ± 0.21** |" in text
    assert "## What failed" in text
    assert "<script>" not in text
    assert f"    {COMMAND}" in text
    figures = re.findall(r"\]\((figures/[^)]*)\)", text)
    assert figures
    assert all((files.markdown.parent / path).is_file() for path in figures)


def test_figures_of_bits_stand_over_bytes_and_show_each_layer() -> None:
    layers = [["conv1.weight", 7.5], ["fc1.weight", 2.25]]
    rows = [
        row("bits", "de_plugin", name, bits, 0, bits=bits, bytes=1000 * bits + more, layers=layers)
        for name, more in (("de", 250), ("uniform", 0))
        for bits in (3, 5)
    ]
    made = Comparison(tuple(rows), settings(task=("bits",), bits=(3.0, 5.0), seeds=(0,)), {})
    found = {drawing.name: drawing for drawing in drawings(made)}
    assert "kilobytes of the weights" in found["bits-score-de_plugin"].svg
    heat = [d for name, d in found.items() if name.startswith("bits-layers")]
    assert heat
    assert "bits a weight by layer" in heat[0].title
    assert "7.5" in heat[0].svg
    assert "2.2" in heat[0].svg


def test_tables_of_bits_show_what_methods_took_and_not_only_what_was_asked() -> None:
    taken = {"de": 1.94, "kmeans": 2.0, "rtn": 4.5}
    rows = [
        row("bits", "de_plugin", name, 2, 0, density=1.0, bits=bits, layers=[])
        for name, bits in taken.items()
    ]
    made = Comparison(tuple(rows), settings(task=("bits",), bits=(2.0,), seeds=(0,)), {})
    assert "### Mean bits a weight, level tables included" in markdown(made, [])
    assert "| de\\_plugin | rtn | (4.50) |" in markdown(made, [])
    assert "mean bits a weight" in plain(made)
    shown = html(made, [])
    assert '<td data-value="1.94">1.94</td>' in shown
    assert 'id="grid-bits-bits"' in shown
    other = markdown(comparison(), [])
    assert "ean bits" not in other


def test_the_page_is_well_formed(page: Page) -> None:
    assert page.errors == []
    ids = [a["id"] for _, a, _ in page.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    assert page.all("html") == [{"lang": "en"}]
    assert page.text("title")[0] == "Comparison of pruning methods"
    assert [tag for tag, _, _ in page.elements].count("main") == 1


def test_names_that_are_referred_to_exist(page: Page, text: str) -> None:
    ids = {a["id"] for _, a, _ in page.elements if "id" in a}
    named = {
        n
        for _, a, _ in page.elements
        for k in ("aria-labelledby", "aria-describedby")
        if k in a
        for n in a[k].split()
    }
    links = {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")}
    drawn = set(re.findall(r"url\(#([^)]*)\)", text)) | set(re.findall(r'href="#([^"]*)"', text))
    assert named | links | drawn <= ids


def test_the_page_needs_no_other_file(page: Page, text: str) -> None:
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def test_nothing_that_a_host_says_becomes_markup(page: Page, text: str) -> None:
    assert text.count("<script>") == 1
    assert [a for tag, a, _ in page.elements if tag == "script"] == [{}]
    shown = [t for t in page.text("span") if BAD in t]
    assert shown == [f"TypeError: {BAD}"]
    assert any(BAD in t for t in page.text("strong"))
    assert any(COMMAND in t for t in page.text("code"))


def test_headings_follow_one_another(page: Page) -> None:
    levels = [
        int(tag[1])
        for tag, _, around in page.elements
        if re.fullmatch("h[1-6]", tag) and "dialog" not in around
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables_can_be_read_aloud_sorted_and_scrolled(page: Page) -> None:
    tables = [n for n, (tag, _, _) in enumerate(page.elements) if tag == "table"]
    assert len(tables) == 6
    for n in tables:
        assert page.elements[n + 1][0] == "caption"
        region = page.elements[n - 1][1]
        assert (region["role"], region["tabindex"]) == ("region", "0")
    assert all(a.get("scope") in ("col", "row", "rowgroup") for a in page.all("th"))
    sortable = [n for n, (_, a, _) in enumerate(page.elements) if "aria-sort" in a]
    assert len(sortable) == 22
    for n in sortable:
        assert page.elements[n][1]["aria-sort"] == "none"
        assert page.elements[n + 1][:2] == ("button", {"type": "button"})
    assert {"role": "status", "id": "status", "class": "hidden"} in page.all("p")


def test_figures_have_words_and_open_by_a_button(page: Page) -> None:
    figures = page.all("figure")
    images = page.all("svg")
    assert len(figures) == len(images) > 8
    assert all(a["role"] == "img" and a["aria-labelledby"] and a["aria-describedby"] for a in images)
    buttons = [a for a in page.all("button") if a.get("class") == "zoom"]
    assert len(buttons) == len(figures)
    assert all(a["aria-haspopup"] == "dialog" and a["aria-label"].startswith("Enlarge: ") for a in buttons)
    assert len(page.text("figcaption")) == len(figures)
    assert [a["aria-labelledby"] for a in page.all("dialog")] == ["large-title"]


def test_the_page_heeds_what_its_reader_prefers(text: str, page: Page) -> None:
    assert "prefers-color-scheme: dark" in text
    assert "prefers-reduced-motion: reduce" in text
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "currentColor" in text
    assert "#010203" not in text


def test_a_comparison_without_scores_or_rows_has_a_page_too(tmp_path: Path) -> None:
    plain = comparison(score="")
    plain = replace(plain, rows=tuple(replace(r, score=None) for r in plain.rows), notes=(), intact={})
    assert Page(plain.report(tmp_path / "plain").page.read_text(encoding="utf-8")).errors == []
    empty = replace(plain, rows=())
    assert Page(empty.report(tmp_path / "empty").page.read_text(encoding="utf-8")).errors == []
    broken = replace(plain, rows=plain.failed)
    assert "failed" in broken.report(tmp_path / "broken").page.read_text(encoding="utf-8")


def test_the_best_is_no_larger_than_the_others() -> None:
    rows = [
        row("channels", "a", "fpgm", 0.5, 0, macs=0.5e6, divergence=0.25, score=70.0),
        row("channels", "a", "de", 0.5, 0, divergence=0.2, score=90.0),
        row("channels", "a", "lamp", 0.5, 0, divergence=0.3, score=80.0),
        row("channels", "a", "taylor", 0.5, 0, divergence=0.4, score=80.0),
        row("channels", "a", "nothing removed", 0.5, 0, macs=2e6, divergence=0.0, score=99.0),
        row("channels", "a", "half failed", 0.5, 0, divergence=0.1, score=99.0),
        row("channels", "a", "half failed", 0.5, 1, error="RuntimeError: x", divergence=None, score=None),
    ]
    made = Comparison(tuple(rows), settings(), {})
    found = {c.method: c for c in cells(made, "channels")}
    assert found["de"].best == ("score", "divergence")
    assert [m for m, c in found.items() if c.competes] == ["fpgm", "de", "lamp", "taylor"]
    assert wins(made, "channels", "score") == (1, 1)
    assert "(0)" in str(made)
    assert "(1 failed)" in str(made)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="folder="):
        comparison().report(tmp_path / "file")


def test_without_matplotlib_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"de_plugin\[report\]"):
        comparison().report(tmp_path)
