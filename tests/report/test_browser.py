"""The page in Debian's Chromium, where there is one: what only a browser does."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from src.report.findings import Findings, find
from src.report.page import page
from src.vote.voters import Request
from tests.made_page import full_findings, make_items, make_page_run

CHROMIUM = shutil.which("chromium")
BEFORE = """
const violations = [], problems = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
window.setTimeout = (act) => act();  // the search waits for a moment
addEventListener("error", (event) => problems.push(String(event.message)));
"""
DRIVER = (Path(__file__).parent / "driver.js").read_text(encoding="utf-8")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    folder = tmp_path_factory.mktemp("browser")
    make_items(folder / "data", "dev", 24)
    for name in ("good", "poor"):
        make_page_run(folder / "results" / name, folder / "data", "dev", right=0.7, orders=6)
    return find(Request([], [], "dev", folder / "results"))


def browse(found: Findings, width: int, folder: Path) -> dict[str, Any]:
    """What the two scripts of the test find in the page, whose policy allows them by their digests."""
    assert CHROMIUM
    text = page(found)
    for script in (BEFORE, DRIVER):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed = html.escape(f"'sha256-{digest}'")
        text = text.replace("script-src ", f"script-src {allowed} ", 1)
    text = text.replace("<style>", f"<script>{BEFORE}</script><style>", 1)
    file = folder / "page.html"
    file.write_text(text.replace("</body>", f"<script>{DRIVER}</script></body>", 1), encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += [f"--window-size={width},900", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (told,) = re.findall(r"FOUND(\{.*?\})END", html.unescape(done.stdout), re.S)
    result: dict[str, Any] = json.loads(told)
    return result


@pytest.mark.parametrize("width", [600, pytest.param(1280, marks=pytest.mark.thorough), 2560])
def test_the_page_in_a_browser(found: Findings, tmp_path: Path, width: int) -> None:
    told = browse(found, width, tmp_path)
    assert told["violations"] == told["problems"] == told["requests"] == []
    assert told["scripts"] == 5  # two of data, the page's own and the test's two: no text became one
    assert (told["listed"], told["few"], told["all"]) == (24, 1, 24)
    assert told["seen"][0] == told["seen"][2] != told["seen"][1]
    assert told["searching"] == "search" and told["shown"] == ["ko", "en"]
    assert told["wide"] <= 0, "wider than the window"


def test_a_full_set_opens_and_filters_at_once(found: Findings, tmp_path: Path) -> None:
    whole, seen = full_findings(found, tmp_path), []
    for _ in range(4):  # other processes may slow some of them down
        told = browse(whole, 1280, tmp_path)
        assert told["listed"] == 605
        seen.append((told["loaded"], sorted(told["times"])[1]))
        if seen[-1][0] < 2000 and seen[-1][1] < 100:
            return
    pytest.fail(f"milliseconds to load and to filter: {seen}")
