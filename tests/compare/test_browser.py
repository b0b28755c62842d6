"""The page in a real browser without a network: nothing in the console, and its buttons do what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.compare.made import comparison

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")

ACTIONS = """
const said = [];
const table = document.getElementById("rows-weights").closest("table");
const head = [...table.querySelectorAll("th button")].find((b) => b.textContent === "divergence");
const at = head.closest("th").cellIndex;
const column = () => [...table.tBodies[0].rows].map((r) => Number(r.cells[at].dataset.value));
const sorted = (x) => x.every((v, n) => n === 0 || x[n - 1] <= v);
head.click();
said.push(sorted(column()), head.closest("th").getAttribute("aria-sort"));
head.click();
said.push(sorted(column().reverse()), head.closest("th").getAttribute("aria-sort"));
said.push(document.getElementById("status").textContent);
const zoom = document.querySelector("button.zoom");
const dialog = document.getElementById("large");
zoom.click();
said.push(dialog.open, dialog.querySelectorAll("svg").length, zoom.querySelectorAll("svg").length);
dialog.addEventListener("close", () => {
  said.push(dialog.open, zoom.querySelectorAll("svg").length);
  said.push(document.documentElement.scrollWidth <= window.innerWidth);
  document.body.dataset.said = JSON.stringify(said);
});
dialog.querySelector(".close").click();
"""


def loaded(page: Path, width: int) -> tuple[str, str]:
    """Return what the page is after its scripts have run, and what it told the console."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"),
            *(f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=3000"),
            *(f"--window-size={width},900", "--host-resolver-rules=MAP * ~NOTFOUND"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


WIDTHS = """
const page = document.documentElement;
document.body.dataset.said = `${page.clientWidth < 520} ${page.scrollWidth <= page.clientWidth}`;
"""


def test_a_narrow_window_scrolls_tables_and_not_the_page(tmp_path: Path) -> None:
    text = comparison().report(tmp_path / "report").page.read_text(encoding="utf-8")
    narrow = tmp_path / "narrow.html"
    bare = re.sub(r"<meta http-equiv[^>]*>", "", text)
    narrow.write_text(bare.replace("</body>", f"<script>{{{WIDTHS}}}</script></body>"), encoding="utf-8")
    dom, console = loaded(narrow, 500)  # the narrowest that it makes
    assert console == ""
    assert 'data-said="true true"' in dom


def test_the_console_stays_empty_and_buttons_work(tmp_path: Path) -> None:
    page = comparison().report(tmp_path / "report").page
    dom, console = loaded(page, 1280)
    assert console == ""
    assert 'id="large"' in dom
    text = page.read_text(encoding="utf-8")
    acting = tmp_path / "acting.html"
    acting.write_text(
        re.sub(r"<meta http-equiv[^>]*>", "", text).replace(
            "</body>", f"<script>{{{ACTIONS}}}</script></body>"
        ),
        encoding="utf-8",
    )
    dom, console = loaded(acting, 1280)
    assert console == ""
    said = re.search(r'data-said="([^"]*)"', dom)
    assert said is not None
    assert said[1].replace("&quot;", '"') == (
        '[true,"ascending",true,"descending","Sorted by divergence, descending.",true,1,0,false,1,true]'
    )
