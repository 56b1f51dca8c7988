"""Which commit of the hub is loaded, and what is said where there is none: asked of a small hub on this machine.

The libraries read the hub's address when they are imported, so each command is a process of its own.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from src.console.cli import UserError
from src.files.paths import scores_path
from src.model import hub
from src.model.recipes import make_recipe
from src.runs.record import Record
from src.score.item_scores import read_scores
from tests.made_runs import make_split, stored
from tests.small_hub import Repository, SmallHub, small_hub

pytestmark = pytest.mark.trains

FIRST, SECOND, WORDS = "a" * 40, "b" * 40, "c" * 40
CHUNK = 10 * 2**20
"""Of a download: what is on the disk when it breaks off."""
ROOT = Path(__file__).parents[2]
Doorbell = tuple[str, list[float]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a prompt, and the toy backbones that the hub has."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests import toys

    folder = tmp_path_factory.mktemp("place")
    for split in ("train", "dev"):
        make_split(folder / "data", split, 4)
    (folder / "short.yaml").write_text(toys.SHORT, encoding="utf-8")
    toys.save("qwen2", folder / "first")
    weights = load_file(folder / "first" / "model.safetensors")
    weights["vision_tower.proj.weight"] = torch.zeros(CHUNK // 4)  # a long download of a short training
    save_file(weights, folder / "first" / "model.safetensors", {"format": "pt"})
    toys.network("qwen2", seed=7).save_pretrained(folder / "second")
    (folder / "words").mkdir()
    for path in (folder / "first").glob("*token*"):
        path.rename(folder / "words" / path.name)
    (folder / "pickle").mkdir()
    shutil.copy(folder / "first" / "config.json", folder / "pickle")
    (folder / "pickle" / "pytorch_model.bin").touch()
    (folder / "first" / "chat_template.jinja").rename(folder / "words" / "chat_template.jinja")
    return folder


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[SmallHub]:
    with small_hub() as one:
        one.repositories["made/model"] = Repository({FIRST: place / "first", SECOND: place / "second"}, FIRST)
        one.repositories["made/words"] = Repository({WORDS: place / "words"}, WORDS)
        one.repositories["made/gated"] = Repository({FIRST: place / "first"}, FIRST, gated=True)
        one.repositories["made/pickle"] = Repository({FIRST: place / "pickle"}, FIRST)
        yield one


def start(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, cwd=ROOT)


def train(place: Path, run: Path, environment: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    fixed = ["--data", str(place / "data"), "--prompt", str(place / "short.yaml"), "--save_dir", str(run)]
    fixed += ["--device", "cpu", "--epoch", "1", "--method", "lora"]
    return start("run.train", *fixed, *more, **environment)


def test_run(place: Path, run: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    fixed = ["--model_id", str(run), "--data", str(place / "data"), "--split", "dev", "--device", "cpu"]
    return start("run.test", *fixed, **environment)


test_run.__test__ = False  # type: ignore[attr-defined]


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one message of a command that was refused."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def trained(served: SmallHub, place: Path) -> tuple[Path, Path, list[Any]]:
    """(run, the hub's cache, what was asked) of a run trained while `main` was the first commit, whose download broke
    off once.
    """
    run, home = place / "run", place / "home"
    served.cut["model.safetensors"] = CHUNK + 1000
    before = len(served.answers)
    done = train(
        place, run, served.environment(home), "--model_id", "made/model", "--tokenizer", "made/words", "--name", "r"
    )
    assert done.returncode == 0, done.stderr
    asked = served.answers[before:]
    served.repositories["made/model"].main = SECOND
    return run, home, asked


def test_the_commit_is_recorded_and_a_download_that_broke_off_goes_on(
    trained: tuple[Path, Path, list[Any]], served: SmallHub
) -> None:
    run, _, asked = trained
    record = stored(run)
    assert (record["base_revision"], record["tokenizer_revision"]) == (FIRST, WORDS)
    assert record["recipe"]["revision"] is None, "the recipe stays what was asked for"
    inputs = json.loads((run / "inputs.json").read_text(encoding="utf-8"))
    assert (inputs["base_revision"], inputs["tokenizer_revision"]) == (FIRST, WORDS)
    weights = [(status, first) for method, path, status, first in asked if method == "GET" and "model.safet" in path]
    assert weights == [(200, 0), (206, CHUNK)]
    files = [path.split("/resolve/")[1].split("/", 1) for _, path, _, _ in asked if "/resolve/" in path]
    assert {revision for revision, _ in files} == {FIRST, WORDS}, "not even of main's config, when peft saves"
    assert [path for _, path, _, _ in asked].count("/") == 1, "whether it is there is asked once"


@pytest.mark.thorough
def test_a_run_is_scored_on_the_commit_it_was_trained_on(
    trained: tuple[Path, Path, list[Any]], served: SmallHub, place: Path, tmp_path: Path
) -> None:
    run, _, _ = trained
    before = [row.logprobs for row in read_scores(scores_path(run, "dev"))]
    # Another machine, whose cache is empty: `main` is another commit by now.
    moved = shutil.copytree(run, tmp_path / "run")
    served.answers.clear()
    done = test_run(place, moved, served.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert {revision for revision, _, _ in served.fetched("model.safetensors")} == {FIRST}
    for row, then in zip(read_scores(scores_path(moved, "dev")), before, strict=True):
        assert row.logprobs == pytest.approx(then, abs=1e-5)


@pytest.mark.thorough
def test_an_unfinished_run_goes_on_with_the_commit_it_began_with(
    trained: tuple[Path, Path, list[Any]], served: SmallHub, place: Path, tmp_path: Path
) -> None:
    run, home, _ = trained
    unfinished = shutil.copytree(run, tmp_path / "run")
    (unfinished / "record.json").unlink()
    asked = "--model_id", "made/model", "--tokenizer", "made/words", "--name", "r"
    done = train(place, unfinished, served.environment(home), *asked)
    assert done.returncode == 0, done.stderr
    assert f"made/model: main is commit {SECOND} now; this goes on with {FIRST}, which it began with" in done.stdout
    assert stored(unfinished)["base_revision"] == FIRST
    # Where that commit can be had no more, it is named.
    (unfinished / "record.json").unlink()
    environment = served.environment(tmp_path / "empty") | {"HF_HUB_OFFLINE": "1"}
    line = the_error(train(place, unfinished, environment, *asked))
    assert f"made/model at commit {FIRST} is not on this machine" in line and f"--revision {FIRST}" in line


@pytest.mark.thorough
def test_what_is_in_the_cache_needs_no_hub(
    trained: tuple[Path, Path, list[Any]], served: SmallHub, place: Path, tmp_path: Path
) -> None:
    run, home, _ = trained
    scored = shutil.copytree(run, tmp_path / "run")
    served.answers.clear()
    started = time.monotonic()
    # Nobody listens there; libraries by themselves would ask for each file again and again.
    nowhere = served.environment(home) | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = test_run(place, scored, nowhere)
    assert done.returncode == 0, done.stderr
    assert not served.answers and time.monotonic() - started < 40
    # A new run offline takes the commit that the cache calls main.
    code = "from src.model import hub; print(hub.find_commit('made/model'))"
    for environment in (nowhere, served.environment(home) | {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.stdout.strip() == SECOND or done.stdout.strip() == FIRST, done.stderr


@pytest.fixture
def doorbell() -> Iterator[Doorbell]:
    """(address, when somebody knocked) of a hub that hangs up on everybody."""
    knocked: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()
                    knocked.append(time.monotonic())

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", knocked
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.thorough
def test_a_hub_that_is_not_there_is_asked_once(
    trained: tuple[Path, Path, list[Any]],
    served: SmallHub,
    place: Path,
    tmp_path: Path,
    doorbell: tuple[str, list[float]],
) -> None:
    _, home, _ = trained
    address, knocked = doorbell
    nowhere = served.environment(home) | {"HF_ENDPOINT": address}
    asked = "--model_id", "made/model", "--revision", FIRST, "--tokenizer", "made/words", "--eval_steps", "1"
    done = train(place, tmp_path / "run", nowhere, *asked)
    assert done.returncode == 0, done.stderr
    assert len(knocked) == 1
    knocked.clear()
    assert test_run(place, tmp_path / "run", nowhere).returncode == 0
    assert len(knocked) == 1


@pytest.mark.thorough
def test_a_set_of_runs_asks_once_for_all(
    trained: tuple[Path, Path, list[Any]],
    served: SmallHub,
    place: Path,
    tmp_path: Path,
    doorbell: tuple[str, list[float]],
) -> None:
    _, home, _ = trained
    address, knocked = doorbell
    for name in ("run", "src", "resource"):
        (tmp_path / name).symlink_to(ROOT / name) if name != "resource" else (tmp_path / name).mkdir()
    for path in (ROOT / "resource").iterdir():
        if path.name not in ("results", "data", "miniature"):
            (tmp_path / "resource" / path.name).symlink_to(path)
    (tmp_path / "recipes").mkdir()
    for name in ("one", "two"):
        text = f"model_id: made/model\nrevision: {FIRST}\ntokenizer: made/words\nepoch: 1\nmethod: lora\n"
        text += f"prompt: {place / 'short.yaml'}\n"
        (tmp_path / "recipes" / f"{name}.yaml").write_text(text, encoding="utf-8")
    environment = served.environment(home) | {"HF_ENDPOINT": address}
    command = [sys.executable, "-m", "run.reproduce", "--recipes", "recipes", "--data", str(place / "data")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(knocked) == 1
    assert all((tmp_path / "resource" / "results" / name / "record.json").is_file() for name in ("one", "two"))


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("made/gated", "made/gated is gated: accept its terms at https://huggingface.co/made/gated, then log in"),
        ("made/missing", "made/missing is neither a local folder nor a model that you can see on the hub"),
        ("made/words", "made/words is no model that can be loaded: it has no config.json"),
        (
            "made/pickle",
            "made/pickle holds no complete model: there is no model.safetensors; found pytorch_model.bin. Pickl",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_message(
    model_id: str, message: str, served: SmallHub, place: Path, tmp_path: Path
) -> None:
    done = train(place, tmp_path / "run", served.environment(tmp_path / "home"), "--model_id", model_id)
    assert message in the_error(done)
    assert not (tmp_path / "run").exists()


def test_a_revision_that_is_not_there(served: SmallHub, place: Path, tmp_path: Path) -> None:
    asked = "--model_id", "made/model", "--revision", "v2"
    line = the_error(train(place, tmp_path / "run", served.environment(tmp_path / "home"), *asked))
    assert "made/model has no such revision (v2)" in line


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer"),
        (
            {"ALL_PROXY": "socks5://user:secret@127.0.0.1:9"},
            "ALL_PROXY names the SOCKS proxy socks5://…@127.0.0.1:9, for which a package is missing: pip install socks",
        ),
        pytest.param(
            {"http_proxy": "socks5h://127.0.0.1:9"},
            "http_proxy names the SOCKS proxy socks5h://127.0.0.1:9",
            marks=pytest.mark.thorough,
        ),
        ({"HTTPS_PROXY": "ftp://10.0.0.1"}, "HTTPS_PROXY is ftp://10.0.0.1, which is no proxy that can be used here"),
        ({"SSL_CERT_FILE": "/no/such.pem"}, "SSL_CERT_FILE is /no/such.pem, where certificates cannot be read"),
        pytest.param(
            {"REQUESTS_CA_BUNDLE": "/no/such.pem", "HF_ENDPOINT": "http://127.0.0.1:9"},
            "REQUESTS_CA_BUNDLE is /no/such.pem, which is not there",
            marks=pytest.mark.thorough,
        ),
        ({"HF_HUB_OFFLINE": "1"}, "The reason: HF_HUB_OFFLINE is set"),
    ],
)
def test_the_variable_that_is_to_blame_is_named(
    variables: dict[str, str], message: str, served: SmallHub, place: Path, tmp_path: Path
) -> None:
    started = time.monotonic()
    environment = served.environment(tmp_path / "home") | variables
    line = the_error(train(place, tmp_path / "run", environment, "--model_id", "made/model"))
    assert line.startswith("error: made/model is not on this machine and the hub cannot be reached.")
    assert message in line and "secret" not in line
    assert not (tmp_path / "run").exists() and time.monotonic() - started < 20


def test_a_name_that_may_have_been_meant_as_a_run(served: SmallHub, place: Path, tmp_path: Path) -> None:
    (tmp_path / "resource" / "results" / "mini-polar").mkdir(parents=True)
    (tmp_path / "resource" / "results" / "mini-polar" / "recipe.yaml").touch()
    code = (
        "import os, src.model.hub as hub; from src.model.recipes import make_recipe;"
        "from src.console.cli import run_main;"
        f"recipe = make_recipe({{'model_id': 'polarr', 'method': 'lora'}}, 'x'); os.chdir({str(tmp_path)!r});"
        "raise SystemExit(run_main(lambda: hub.check_there(recipe)))"
    )
    environment = served.environment(tmp_path / "home") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert the_error(done).endswith("There is no run polarr either; runs here: mini-polar. Did you mean 'mini-polar'?")


def test_an_old_record_without_a_commit_goes_on_as_its_recipe_says() -> None:
    recipe = make_recipe({"model_id": "made/model", "method": "lora", "revision": "v1"}, "made")
    values = {key: value for key, value in asdict(recipe).items() if key != "tokenizer_revision"}
    record = Record(run="old", settings=values)
    assert record.pinned_recipe == recipe
    assert replace(record, base_revision=FIRST).pinned_recipe.revision == FIRST


def test_a_copied_cache_has_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "unreachable", lambda: "asleep")
    snapshots = tmp_path / "models--made--copied" / "snapshots"
    (snapshots / FIRST).mkdir(parents=True)
    pinned = hub.pin(make_recipe({"model_id": "made/copied", "method": "lora"}, "made"))
    assert pinned.revision == FIRST and hub.commits(pinned) == {"base_revision": FIRST}
    hub.find_commit.cache_clear()
    (snapshots / SECOND).mkdir()
    with pytest.raises(UserError, match=r"made/copied is not on this machine .* The reason: asleep"):
        hub.find_commit("made/copied")


def test_a_folder_has_no_commit(tmp_path: Path) -> None:
    recipe = make_recipe({"model_id": str(tmp_path), "method": "lora"}, "made")
    pinned = hub.pin(recipe)
    assert pinned == recipe and hub.commits(pinned) == {"base_revision": None}


def test_passwords_are_masked() -> None:
    assert hub.masked("at http://me:word@host:1/x and socks5://h") == "at http://…@host:1/x and socks5://h"
