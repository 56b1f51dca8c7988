"""Python code that comes with a model: it runs when the command line says so, and for no file's word."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.console.cli import Parser, UserError
from src.model import trust
from src.model.load import load_config, load_tokenizer
from src.model.recipe_flags import add_flags, read_recipe
from src.model.recipes import Recipe, make_recipe
from src.runs.inputs import check_models, named_model, read_run
from tests.made_runs import stored

Folder = Callable[[str], Path]
CONFIG = """
from pathlib import Path
from transformers import PretrainedConfig
Path({marker!r}).touch()
class Config(PretrainedConfig):
    model_type = "own_model"
"""


@pytest.fixture(autouse=True)
def without() -> Iterator[None]:
    trust._say_once.cache_clear()
    trust.allow(False)
    yield
    trust.allow(False)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it_ran"


@pytest.fixture
def own(backbone_folder: Folder, tmp_path: Path, marker: Path) -> Path:
    """A model whose config class is in a Python file beside it."""
    folder = tmp_path / "own"
    shutil.copytree(backbone_folder("qwen2"), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own_model", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "own.py").write_text(CONFIG.format(marker=str(marker)), encoding="utf-8")
    return folder


def asking(own: Path, **more: str) -> Recipe:
    return make_recipe({"model_id": str(own), "name": "mine", "trust_remote_code": True, **more}, "test")


def parsed(*words: str) -> Parser:
    parser = Parser("A command.", "run.made_up")
    add_flags(parser)
    parser.parse_args(list(words))
    return parser


def test_a_recipe_that_asks_is_refused(own: Path, marker: Path) -> None:
    told = r"mine: a file asks to run Python code that comes with .*own \(.*Read it; .*add --trust_remote_code"
    for load in (load_config, load_tokenizer, trust.check):
        with pytest.raises(UserError, match=told):
            load(asking(own))
    assert not marker.exists()


def test_the_flag_lets_it_run_and_says_whose_it_is(own: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parsed("--trust_remote_code")
    assert load_config(asking(own)).model_type == "own_model"
    assert marker.exists()
    load_config(asking(own))
    assert capsys.readouterr().out == f"--trust_remote_code: Python code that comes with {own} runs in this process\n"


def test_the_flag_counts_for_one_command_line(own: Path) -> None:
    parsed("--trust_remote_code")
    assert trust.allowed() and trust.flags(asking(own)) == ["--trust_remote_code"]
    assert trust.words(asking(own)) == " --trust_remote_code"
    assert trust.flags(asking(own).replace(trust_remote_code=False)) == []
    parsed()
    assert not trust.allowed() and trust.flags(asking(own)) == []
    parsed("--no-trust_remote_code")
    assert not trust.allowed()


def test_a_file_and_a_flag(own: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"model_id: {own}\ntrust_remote_code: true\n", encoding="utf-8")

    def read(*more: str) -> Recipe:
        parser = Parser("A command.", "run.made_up")
        add_flags(parser)
        return read_recipe(parser.parse_args(["--recipe", str(file), *more]))

    with pytest.raises(UserError, match="a file asks to run Python code"):
        read()
    assert read("--trust_remote_code").trust_remote_code is True
    assert read("--no-trust_remote_code").trust_remote_code is False
    with pytest.raises(UserError, match="a file asks to run Python code"):
        check_models([str(file)])
    with pytest.raises(UserError, match="a file asks to run Python code"):
        named_model(str(file))


def test_a_model_that_the_command_line_names(own: Path, marker: Path) -> None:
    assert named_model(str(own))[1].trust_remote_code is False
    with pytest.raises(UserError, match=r"needs Python code of its own"):
        load_config(named_model(str(own))[1])
    assert not marker.exists()
    parsed("--trust_remote_code")
    assert named_model(str(own))[1].trust_remote_code is True


def test_a_record_that_asks(own: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    digests = {"sha256": hashlib.sha256(b"x").hexdigest()}
    record = {"run": "theirs", "recipe": {"model_id": str(own), "name": "theirs", "trust_remote_code": True}}
    record |= {"prompt": {"name": "entry", "text": "x", **digests}, "template": digests, "training": {}, "splits": {}}
    (run / "record.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"theirs: a file asks to run Python code"):
        read_run(run)
    parsed("--trust_remote_code")
    assert read_run(run).recipe.trust_remote_code is True
    assert stored(run) == record


def test_all_owners_are_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "config.json").write_text('{"auto_map": {"AutoConfig": "they/there--own.Config", "b": null}}')
    (own / "tokenizer_config.json").write_text('{"auto_map": ["we/here--own.Slow", null]}')
    trust.announce("us", [own / "config.json", own / "tokenizer_config.json", own / "gone.json"])
    said = [line.split(" comes with ")[1].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["us", "they/there", "we/here"]


def test_transformers_never_asks_at_the_terminal(own: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer may name any class of transformers, which is then loaded without our answer."""
    from transformers import AutoConfig

    monkeypatch.setattr("builtins.input", lambda question: "y")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoConfig.from_pretrained(own)
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "ours",
    [pytest.param(True, id="ours"), pytest.param(False, id="transformers alone", marks=pytest.mark.thorough)],
)
def test_kernels_of_a_hub_count_as_not_installed(
    backbone_folder: Folder, tmp_path: Path, marker: Path, ours: bool
) -> None:
    """A config may name one of any repository. transformers would fetch it with the package kernels, and run it."""
    code = f"open({str(marker)!r}, 'w')\ndef __getattr__(name):\n    return type(name, (), {{}})\n"
    for path, text in {
        "kernels/__init__.py": code,
        "kernels-0.18.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n",
    }.items():
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(text, encoding="utf-8")
    folder = tmp_path / "named"
    shutil.copytree(backbone_folder("qwen2"), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "they/kernel"}), encoding="utf-8")
    program = f"from transformers import AutoModelForCausalLM as A\nA.from_pretrained({str(folder)!r})"
    command = [sys.executable, "-c", "import src\n" * ours + program]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}, capture_output=True, text=True
    )
    assert ended.returncode == 1 and marker.exists() is not ours, ended.stderr
