"""The commands of orpo/: pairs as texts, a run like any other, and what run_orpo.bash refuses."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo import orpo_data, orpo_train
from src.console.cli import UserError
from src.data import load_items, split_path
from src.model.recipe_files import RECIPES, load_recipe, load_recipes
from src.plan.work import Place, Wanted, command_left
from tests.made_runs import make_place, make_split, stored

pytestmark = pytest.mark.trains

ROOT = Path(__file__).parents[2]
Folder = Callable[[str], Path]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


# Pairs


def pairs(place: Path, *more: str) -> list[dict[str, Any]]:
    out = place / "pairs.jsonl"
    orpo_data.main(["--data", str(place / "data"), "--prompt", str(place / "short.yaml"), "--out", str(out), *more])
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_pairs_in_three_forms(place: Path, backbone_folder: Folder) -> None:
    items = load_items(split_path(place / "data", "train"))
    model = ("--model_id", str(backbone_folder("qwen2it")))
    ends = {"chat": "<|im_end|>", "merged": "<|im_end|>", "plain": ""}
    found = {form: pairs(place, "--form", form, *(model if form != "plain" else ())) for form in ends}
    for form, rows in found.items():
        assert [row["id"] for row in rows] == [item.id for item in items for _ in range(2)]
        for item, two in zip(items, zip(rows[::2], rows[1::2], strict=True), strict=True):
            answers = [f"{'ABC'[place]}. {text}{ends[form]}" for place, text in enumerate(item.options)]
            assert item.label is not None
            assert {row["chosen"] for row in two} == {answers[item.label]}
            assert [row["rejected"] for row in two] == [a for k, a in enumerate(answers) if k != item.label]
            assert two[0].keys() == {"id", "prompt", "chosen", "rejected"} and two[0]["prompt"] == two[1]["prompt"]
    chat, merged, plain = (rows[0]["prompt"] for rows in found.values())
    assert chat.startswith("<|im_start|>system\n고르세요.<|im_end|>\n<|im_start|>user\n*1: 우산도")
    assert "<|im_start|>user\n고르세요.\n\n*1: 우산도" in merged and chat.endswith("<|im_start|>assistant\n")
    assert plain.startswith("고르세요.\n\n*1: 우산도") and "<|" not in plain


def test_the_texts_are_what_training_has(place: Path, backbone_folder: Folder) -> None:
    from src.model.recipes import make_recipe
    from src.prompt.prompts import load_prompt
    from src.runs.encoder import make_encoder
    from src.train.objectives import make_objective

    items = load_items(split_path(place / "data", "train"))
    prompt = place / "short.yaml"
    for more, changes in ((), {}), (("--orpo_pairs", "one", "--seed", "3"), {"orpo_pairs": "one", "seed": 3}):
        values = {"model_id": str(backbone_folder("qwen2it")), "method": "orpo", "prompt": str(prompt), **changes}
        recipe = make_recipe(values, "test")
        encoder, objective = make_encoder(recipe, load_prompt(prompt)), make_objective(recipe)
        decode = encoder.tokenizer.decode
        trained = [
            (decode(one.ids[:start]), decode(one.ids[start:]), decode(ids[start:]))
            for one in objective.examples(encoder, items)
            for start in [one.answer_start]
            for ids in one.rejected
        ]
        found = pairs(place, "--model_id", str(backbone_folder("qwen2it")), *more)
        assert [(row["prompt"], row["chosen"], row["rejected"]) for row in found] == trained
        assert len(found) == sum(len(objective.wrong_options(item)) for item in items)


def test_letters_alone_printed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", str(place / "data"), "--form", "plain", "--orpo_answer", "letter", "--split", "dev"]
    orpo_data.main([*flags, "--limit", "2"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("A", "B"), ("A", "C"), ("B", "A"), ("B", "C")]
    with pytest.raises(UserError, match="--limit: found 0"):
        orpo_data.main([*flags, "--limit", "0"])
    with pytest.raises(UserError, match=r"give a --recipe .* or a --model_id"):
        orpo_data.main(["--data", str(place / "data")])


# Runs


def test_help_is_quick() -> None:
    started = time.monotonic()
    for command in ("orpo.orpo_train", "orpo.orpo_data"):
        code = f"import {command}, sys; sys.argv = ['x', '--help']; {command}.main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and "--orpo_beta" in done.stdout and command in done.stdout
    assert time.monotonic() - started < 10, "torch is imported too early"


def test_a_run_is_like_any_other(
    place: Path, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import run.test as scoring
    import run.vote as vote

    small = ["--epoch", "1", "--batch_size", "4", "--lr", "3e-3", "--device", "cpu", "--prompt", "short.yaml"]
    monkeypatch.chdir(place)
    (place / "resource").mkdir()
    (place / "resource" / "backbones.yaml").symlink_to(ROOT / "resource" / "backbones.yaml")
    flags = ["--model_id", str(backbone_folder("qwen2it")), "--data", "data", *small]
    orpo_train.main([*flags, "--save_dir", "full"])
    orpo_train.main([*flags, "--save_dir", "lora", "--method", "lora", "--orpo_answer", "letter"])
    full, lora = stored("full"), stored("lora")
    assert (full["recipe"]["method"], full["recipe"]["objective"]) == ("full", "orpo")
    assert full["trainable_parameters"] == full["parameters"] and lora["recipe"]["method"] == "lora"
    assert {"eval_loss", "eval_log_odds", "eval_accuracy"} <= full["training"]["evaluations"][-1].keys()
    assert (place / "full" / "model").is_dir() and (place / "lora" / "adapter").is_dir()
    for folder in ("full", "lora"):
        scoring.main(["--model_id", folder, "--data", "data", "--split", "dev", "test", "--device", "cpu"])
    vote.main(["full", "lora", "--split", "dev", "--data", "data", "--out", "vote"])
    assert stored("vote")["splits"]["dev"]["items"] == 6
    with pytest.raises(UserError, match=r"orpo\.orpo_train trains with orpo; use python -m run\.train"):
        orpo_train.main([*flags, "--objective", "letter"])
    assert "(ORPO)" in capsys.readouterr().out


def test_reproduce_starts_the_right_command(tmp_path: Path) -> None:
    modules, place = {}, Place(tmp_path, Path("data"), test=True)
    for folder in ("published", "supervised", "orpo"):
        for file, recipe in load_recipes(RECIPES / folder).items():
            command = command_left(Wanted(file, recipe, place))
            assert command[3:] == ["--recipe", str(file), "--data", "data", "--score", "test"]
            modules[recipe.name] = command[2]
    trained_with_orpo = {name for name, module in modules.items() if module == "orpo.orpo_train"}
    assert trained_with_orpo == {"qwen2", "qwen2it", "spow12-orpo"}
    assert {module for name, module in modules.items() if name not in trained_with_orpo} == {"run.train"}


def test_a_finished_run_from_before_a_setting_existed_is_still_it(tmp_path: Path) -> None:
    from dataclasses import asdict

    from src.model.recipes import differing_settings

    recipe = load_recipe(RECIPES / "published" / "polar.yaml")
    there = {key: value for key, value in asdict(recipe).items() if not key.startswith("orpo_")}
    assert differing_settings(there, recipe) == []
    assert differing_settings(there, recipe.replace(orpo_beta=0.2, lr=1.0)) == ["lr", "orpo_beta"]


# run_orpo.bash


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    hidden = {"VIRTUAL_ENV", "CONDA_DEFAULT_ENV", "CONDA_PREFIX"}
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    command = ["bash", str(folder / "orpo" / "run_orpo.bash"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**kept, **variables}, timeout=60)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """The repository's rooms without corpus, miniature and environment."""
    for name in ("run", "src", "orpo"):
        (tmp_path / name).mkdir()
        for file in (ROOT / name).glob("*"):
            (tmp_path / name / file.name).symlink_to(file)
    (tmp_path / "orpo" / "run_orpo.bash").unlink()
    script = (ROOT / "orpo" / "run_orpo.bash").read_text(encoding="utf-8")
    (tmp_path / "orpo" / "run_orpo.bash").write_text(script, encoding="utf-8")
    (tmp_path / "resource").mkdir()
    for name in ("backbones.yaml", "tokenizers.yaml", "speeds.yaml", "task.yaml", "prompts", "recipes"):
        (tmp_path / "resource" / name).symlink_to(ROOT / "resource" / name)
    return tmp_path


def test_what_run_orpo_refuses(house: Path) -> None:
    here = {"VIRTUAL_ENV": "/any", "CUDA_VISIBLE_DEVICES": ""}
    for arguments, variables, words in (
        ([], {}, "there is no environment"),
        ([], here, "there is no resource/data/data_train.json"),
        (["--miniature"], here, "there is no folder of recipes resource/miniature/recipes"),
        (["--detatch"], here, "unknown argument '--detatch'"),
        (["--data"], here, "--data needs a value"),
    ):
        done = start(house, *arguments, **variables)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    for split in ("train", "dev"):
        make_split(house / "data", split, 3)
    done = start(house, "--data", "data", **here)
    assert done.returncode == 2 and "there is no GPU here" in done.stderr
    done = start(house, "--data", "data", "--recipes", "resource/recipes/orpo", "--detach", "spow2", **here)
    assert done.returncode == 2 and "no recipe with objective orpo 'spow2'" in done.stderr
    assert "Did you mean 'spow12-orpo'" in done.stderr and not (house / "resource" / "results").exists()


def test_run_orpo_in_the_foreground_and_detached(house: Path) -> None:
    here = {"VIRTUAL_ENV": "/any", "CUDA_VISIBLE_DEVICES": ""}
    done = start(house, "--dry_run", "--detach", **here)
    shown = [line.split()[:2] for line in done.stdout.splitlines()]
    assert done.returncode == 0 and ["qwen2it", "orpo"] in shown and ["spow12-orpo", "qlora"] in shown
    assert ["polar", "qlora"] not in shown and "resource/results/orpo.log" in done.stdout
    log, deadline = house / "resource" / "results" / "orpo.log", time.monotonic() + 50
    while "no commercial use" not in log.read_text(encoding="utf-8") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "no commercial use" in log.read_text(encoding="utf-8")
