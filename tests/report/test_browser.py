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

from src.report.findings import find
from src.report.page import page
from src.vote.voters import Request
from tests.made_page import make_items, make_page_run

CHROMIUM = shutil.which("chromium")
BEFORE = """
const violations = [], problems = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
addEventListener("error", (event) => problems.push(String(event.message)));
"""
DRIVER = (Path(__file__).parent / "driver.js").read_text(encoding="utf-8")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 24 items with the two scripts of the test in it, which its policy allows by their digests."""
    folder = tmp_path_factory.mktemp("browser")
    make_items(folder / "data", "dev", 24)
    for name in ("good", "poor"):
        make_page_run(folder / "results" / name, folder / "data", "dev", right=0.7, orders=6)
    text = page(find(Request([], [], "dev", folder / "results")))
    for script in (BEFORE, DRIVER):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed = f"'sha256-{digest}'"
        text = text.replace("script-src ", f"script-src {html.escape(allowed)} ", 1)
    text = text.replace("<style>", f"<script>{BEFORE}</script><style>", 1)
    text = text.replace("</body>", f"<script>{DRIVER}</script></body>", 1)
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    return path


def browse(file: Path, width: int, profile: Path) -> dict[str, Any]:
    assert CHROMIUM
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += [f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r"FOUND(.*?)END", html.unescape(done.stdout), re.S)
    told: dict[str, Any] = json.loads(found)
    return told


@pytest.mark.parametrize("width", [600, 1280, 2560])
def test_the_page_in_a_browser(copy: Path, tmp_path: Path, width: int) -> None:
    found = browse(copy, width, tmp_path)
    assert found["violations"] == found["problems"] == found["requests"] == []
    assert found["scripts"] == 5  # two of data, the page's own and the test's two: no text became one
    assert (found["listed"], found["few"], found["all"]) == (24, 1, 24)
    assert found["seen"][0] == found["seen"][2] != found["seen"][1]
    assert found["searching"] == "search" and found["shown"] == ["ko", "en"]
    assert found["wide"] <= 0, "wider than the window"
    assert min(found["times"]) < 100
