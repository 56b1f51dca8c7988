import os
import subprocess
import sys
from pathlib import Path

import pytest

from src import task
from src.prompt.prompts import load_prompt
from src.search.settings import SearchSettings
from src.search.textgrad import constraints, purpose, text_roles


def test_the_texts_count_what_the_task_has() -> None:
    prompt, settings = load_prompt("korean"), SearchSettings(categories=True)
    task.use(task.Task("news", ("cause", "effect"), ("a", "b", "c", "d"), ("1", "2", "3", "4")))
    try:
        assert "a question and four options" in purpose()
        assert "each of the two categories" in text_roles()["categories"]
        assert constraints(prompt, settings)[-1] == "Texts in YAML keep their two keys, each with one line of text."
    finally:
        task.use(None)


@pytest.mark.slow
def test_textgrad_comes_without_network_noise_or_traces(tmp_path: Path) -> None:
    code = (
        "import os, socket, sys\n"
        "def no(*a, **k): raise SystemExit(f'network: {a}')\n"
        "socket.getaddrinfo = socket.socket.connect = no\n"
        "from src.search.textgrad import load_textgrad\n"
        "before = dict(os.environ); load_textgrad(); assert dict(os.environ) == before\n"
        "assert 'KEY_FROM_FILE' not in os.environ and 'torch' not in sys.modules\n"
    )
    (tmp_path / ".env").write_text("KEY_FROM_FILE=1\n")
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == [".env"]
