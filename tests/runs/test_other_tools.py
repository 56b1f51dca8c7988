"""What other tools get. TRL and datasets load it themselves; the formats of LLaMA-Factory and lm-eval are read here as
their documentation describes them.
"""

import copy
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset

from src.console.cli import UserError
from src.prompt.fewshot import Library
from src.prompt.messages import Examples
from src.prompt.prompts import parse_prompt
from src.runs.other_tools import SYSTEM_TURNS, TOOLS, WARNING, Exported, files_for
from tests import toys

PROMPT = parse_prompt(toys.SHORT, "short")
SPLITS = {"train": toys.items(6), "dev": toys.items(4, start=6)}
RECIPE = toys.recipe(Path("nowhere"), "qwen2it")


def exported(**changes: Any) -> Exported:
    return Exported(**{"prompt": PROMPT, "recipe": RECIPE, "splits": SPLITS, **changes})


def written(folder: Path, tool: str, one: Exported) -> Path:
    for name, text in files_for(tool, one).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def loaded(folder: Path, name: str, split: str, cache: Path) -> Any:
    return load_dataset(str(folder), name, split=split, cache_dir=str(cache))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("system_turn", SYSTEM_TURNS)
def test_a_folder_says_what_it_is_and_must_not_be_passed_on(tool: str, system_turn: str) -> None:
    files = files_for(tool, exported(system_turn=system_turn, origin=["run polar"]))
    text = files["README.md"]
    assert WARNING in text and PROMPT.sha256 in text and "run polar" in text and "train 6, dev 4" in text
    assert ("in one turn" in text) == (system_turn == "folded")


# TRL


@pytest.mark.parametrize(("system_turn", "roles"), [("own", ["system", "user"]), ("folded", ["user"])])
def test_datasets_loads_both_configurations(system_turn: str, roles: list[str], tmp_path: Path) -> None:
    folder = written(tmp_path / "out", "trl", exported(system_turn=system_turn))
    for split, items in SPLITS.items():
        sft = loaded(folder, "sft", split, tmp_path / "cache")
        assert sft["id"] == [item.id for item in items] and sft["category"] == [item.category for item in items]
        for row, item in zip(sft, items, strict=True):
            assert [message["role"] for message in row["prompt"]] == roles
            letter = "ABC"[item.label or 0]
            assert row["completion"] == [{"role": "assistant", "content": f"{letter}. {item.options[item.label or 0]}"}]
        pairs = loaded(folder, "preference", split, tmp_path / "cache")
        assert len(pairs) == 2 * len(items)
        right = {row["id"]: row["completion"] for row in sft}
        assert all(row["chosen"] == right[row["id"]] != row["rejected"] for row in pairs)
    assert "고르세요." in sft[0]["prompt"][0]["content"]


def test_a_recipe_decides_about_pairs() -> None:
    recipe = toys.recipe(Path("nowhere"), "qwen2it", objective="orpo", orpo_pairs="one", orpo_answer="letter")
    files = files_for("trl", exported(recipe=recipe))
    pairs = [json.loads(line) for line in files["preference/train.jsonl"].splitlines()]
    assert len(pairs) == 6 and {len(pair["rejected"][0]["content"]) for pair in pairs} == {1}


def test_what_a_template_was_given_goes_with_each_row(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", "trl", exported(arguments={"enable_thinking": False}))
    assert loaded(folder, "sft", "dev", tmp_path / "cache")[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert (
        "pretrained=MODEL,enable_thinking=False"
        in files_for("lm-eval", exported(arguments={"enable_thinking": False}))["README.md"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("short", "system_turn"), [("qwen2it", "own"), ("eeve", "folded")])
def test_trls_trainers_see_the_tokens_that_we_train_on(short: str, system_turn: str, tmp_path: Path) -> None:
    """eeve's template refuses a system turn, and writes no BOS, which its tokenizer adds to plain text."""
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    folder = written(tmp_path / "out", "trl", exported(system_turn=system_turn))
    sft, pairs = (loaded(folder, name, "train", tmp_path / "cache") for name in ("sft", "preference"))
    encoder = toys.encoder(short, PROMPT)
    assert encoder.system_turn == system_turn
    examples = encoder.for_training(SPLITS["train"], lambda item: [n for n in range(3) if n != item.label])
    bos = 0 if encoder.bos_id is None else 1
    assert bool(bos) == (short == "eeve")
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    words, network = copy.deepcopy(encoder.tokenizer), toys.network(short)

    settings = SFTConfig(**common, max_length=None)
    theirs = SFTTrainer(network, settings, train_dataset=sft, processing_class=words).train_dataset
    for row, example in zip(theirs, examples, strict=True):
        ours, start = list(example.ids[bos:]), example.answer_start - bos
        assert row["input_ids"][: len(ours)] == ours and start > 0
        assert row["labels"][: len(ours)] == [-100] * start + ours[start:]

    of_pairs = [(one.answer_start, one.ids, ids) for one in examples for ids in one.rejected]
    settings = DPOConfig(**common, max_length=None)
    pair = (network, toys.network(short))  # the second would be looked for on the hub
    theirs = DPOTrainer(*pair, args=settings, train_dataset=pairs, processing_class=words).train_dataset
    for row, (start, right, wrong) in zip(theirs, of_pairs, strict=True):
        assert row["prompt_ids"] == list(right[bos:start])
        for key, ids in (("chosen_ids", right), ("rejected_ids", wrong)):
            assert row[key][: len(ids) - start] == list(ids[start:])

    settings = ORPOConfig(**common, max_length=10**4)
    theirs = ORPOTrainer(network, args=settings, train_dataset=pairs, processing_class=words).train_dataset
    for row, (start, right, wrong) in zip(theirs, of_pairs, strict=True):
        assert row["prompt_input_ids"] == list(right[:start])
        for key, ids in (("chosen_input_ids", right), ("rejected_input_ids", wrong)):
            assert row[key][: len(ids)] == list(ids)


# LLaMA-Factory


def read_sharegpt(folder: Path, name: str) -> list[tuple[str, list[dict[str, str]], list[dict[str, str]]]]:
    """(system text, turns before the answer, answers) of a data set, as data/README.md of LLaMA-Factory describes it:
    user and assistant by turns, `ranking` with chosen and rejected.
    """
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
    assert info["formatting"] == "sharegpt"
    columns, tags = info["columns"], info["tags"]
    found = []
    for row in rows(folder / info["file_name"]):
        turns = row[columns["messages"]]
        system = ""
        if turns[0][tags["role_tag"]] == tags["system_tag"]:
            system, turns = turns[0][tags["content_tag"]], turns[1:]
        for place, turn in enumerate(turns):
            assert turn[tags["role_tag"]] == tags["assistant_tag" if place % 2 else "user_tag"]
        if info.get("ranking"):
            answers = [row[columns["chosen"]], row[columns["rejected"]]]
        else:
            turns, answers = turns[:-1], turns[-1:]
        assert len(turns) % 2 and all(one[tags["role_tag"]] == tags["assistant_tag"] for one in answers)
        found.append((system, turns, answers))
    return found


@pytest.mark.parametrize("system_turn", SYSTEM_TURNS)
def test_llamafactory_finds_turns_and_pairs(system_turn: str, tmp_path: Path) -> None:
    folder = written(tmp_path, "llamafactory", exported(system_turn=system_turn))
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    assert list(info) == ["short_train", "short_train_pairs", "short_dev", "short_dev_pairs"]
    for split, items in SPLITS.items():
        sft = read_sharegpt(folder, f"short_{split}")
        pairs = read_sharegpt(folder, f"short_{split}_pairs")
        assert len(pairs) == 2 * len(sft) == 2 * len(items)
        for (system, turns, (answer,)), item in zip(sft, items, strict=True):
            assert system == ("고르세요." if system_turn == "own" else "")
            assert len(turns) == 1 and item.options[0] in turns[0]["content"]
            assert turns[0]["content"].startswith("고르세요.\n\n") == (system_turn == "folded")
            assert answer["content"].endswith(item.options[item.label or 0])
        for (_, turns, (right, wrong)), (_, same, (answer,)) in zip(
            pairs, [one for one in sft for _ in "12"], strict=True
        ):
            assert turns == same and right == answer != wrong


# lm-evaluation-harness


class Loader(yaml.SafeLoader):
    """Reads `!function module.name` as lm-eval does: a function of a file beside the task's."""


def read_task(path: Path) -> dict[str, Any]:
    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        module, name = str(loader.construct_scalar(node)).split(".")
        spec = importlib.util.spec_from_file_location(module, path.parent / f"{module}.py")
        assert spec and spec.loader
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return getattr(made, name)

    Loader.add_constructor("!function", function)
    found = yaml.load(path.read_text(encoding="utf-8"), Loader)
    assert isinstance(found, dict)
    return found


def filled(template: str, row: Mapping[str, Any]) -> str:
    assert template.startswith("{{") and template.endswith("}}")
    return str(row[template[2:-2]])


@pytest.mark.parametrize("system_turn", SYSTEM_TURNS)
def test_a_task_of_lm_eval_has_the_letters_as_choices(system_turn: str, tmp_path: Path) -> None:
    first = written(tmp_path / "out", "lm-eval", exported(system_turn=system_turn))
    folder = first.rename(tmp_path / "moved")
    assert sorted(path.name for path in folder.glob("*.yaml")) == [
        "inference_short_dev.yaml",
        "inference_short_train.yaml",
    ]
    for split, items in SPLITS.items():
        told = read_task(folder / f"inference_short_{split}.yaml")
        assert told["task"] == f"inference_short_{split}" and told["output_type"] == "multiple_choice"
        assert told["doc_to_choice"] == ["A", "B", "C"] and told["target_delimiter"] == "" and told["num_fewshot"] == 0
        data = told["custom_dataset"](pretrained="what lm-eval adds")[told["test_split"]]
        assert data["id"] == [item.id for item in items] and data[told["doc_to_target"]] == [one.label for one in items]
        for row, item in zip(data, items, strict=True):
            expected = PROMPT.render(item).messages
            user = filled(told["doc_to_text"], row)
            if system_turn == "own":
                assert [filled(told["description"], row), user] == [one["content"] for one in expected]
            else:
                assert "description" not in told and user == "\n\n".join(one["content"] for one in expected)


# Worked examples


def test_worked_examples_are_turns_before_the_last() -> None:
    shots = parse_prompt(toys.SHORT.replace("name: short", "name: short+1shots\nexamples: {count: 1}"), "shots")
    assert shots.examples == Examples(1)
    library = Library(toys.items(30), shots.examples)
    one = exported(prompt=shots, library=library, splits={"dev": toys.items(3)})
    for line in files_for("trl", one)["preference/dev.jsonl"].splitlines():
        assert [turn["role"] for turn in json.loads(line)["prompt"]] == ["system", "user", "assistant", "user"]
    assert list(json.loads(files_for("llamafactory", one)["dataset_info.json"])) == [
        "short_1shots_dev",
        "short_1shots_dev_pairs",
    ]
    with pytest.raises(UserError, match="has worked examples for each item, and an lm-eval task has one turn"):
        files_for("lm-eval", one)
