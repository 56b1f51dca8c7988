import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from run.prompts import main
from src.console.cli import UserError
from src.data import dump_items, load_items
from src.model.backbones import backbones
from src.plan.kinds import kinds
from src.prompt.encode import Encoder
from src.prompt.prompts import combinations, load_prompt
from src.worth.metrics import mcnemar
from tests import toys
from tests.conftest import make_item
from tests.made_runs import make_split
from tests.made_task import FOUR, PROMPT, TASK_FILE, make_four, working_on


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_split(folder, "train", 30)
    make_split(folder, "dev", 14)
    return folder


def test_the_list_names_every_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out
    for name in ("bilingual", "english", "korean"):
        block = printed[printed.index(f"{name}: ") :].split("\n\n")[0]
        assert all(combination.removeprefix(name) in block for combination in combinations(name))


def test_an_item_without_a_model(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["korean+cot", "--data", str(data), "--item", "made-0003"])
    printed = capsys.readouterr().out
    assert (
        printed.startswith("[system]\n")
        and "[user]\n대화:\n화자1: 화분에 물 줬어?" in printed
        and "answer: A\n" in printed
    )
    main(["english", "--data", str(data), "--reasoning"])
    assert "Grounds:" in capsys.readouterr().out
    with pytest.raises(UserError, match="no item nope; its first is made-0000"):
        main(["korean", "--data", str(data), "--item", "nope"])
    with pytest.raises(UserError, match="has examples; name a model"):
        main(["korean+1shots", "--data", str(data)])


def test_an_item_as_a_backbone_sees_it(
    data: Path, backbone_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = backbone_folder("qwen2it")
    main(["korean+persona+1shots", "--data", str(data), "--runs", str(folder)])
    printed = capsys.readouterr().out
    encoder = Encoder(toys.tokenizer("qwen2it"), load_prompt("korean"), name="qwen2it")
    encoder.for_scoring(toys.items(1))
    a, b, c = encoder.letter_ids or ()
    assert f"as the tokens A {a} 'A', B {b} 'B', C {c} 'C'" in printed
    assert "<|im_start|>assistant\n" in printed and "│ examples " in printed


def test_an_item_under_another_chat_template(
    data: Path, tmp_path: Path, backbone_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jinja").write_text("[mine]\n" + toys.CHATML, encoding="utf-8")
    given = ["korean", "--data", str(data), "--runs", str(backbone_folder("qwen2it"))]
    main([*given, "--chat_template", str(tmp_path / "mine.jinja")])
    assert "[mine]\n<|im_start|>system" in capsys.readouterr().out
    main(given)
    assert "[mine]" not in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no such file"):
        main([*given, "--chat_template", str(tmp_path / "other.jinja")])


def test_prompts_side_by_side(
    data: Path, tmp_path: Path, backbone_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared.json"
    chosen = ["--runs", str(backbone_folder("qwen2")), str(backbone_folder("kogemma")), "--data", str(data)]
    main(["--compare", "plain", "korean+cot", "korean+1near", *chosen, "--json", str(out), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert printed.count("korean+cot") == 2 and "qwen2" in printed
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [run["trained_with"] for run in found["runs"]] == [None, None]
    labels = [number % 3 for number in range(14)]
    for run in found["runs"]:
        first, *others = run["prompts"]
        assert (first["prompt"], first["gained"], first["lost"], first["p"]) == ("plain", 0, 0, 1)
        for row in others:
            assert row["right"] == [answer == label for answer, label in zip(row["answers"], labels, strict=True)]
            pairs = list(zip(row["right"], first["right"], strict=True))
            assert (row["gained"], row["lost"]) == (pairs.count((True, False)), pairs.count((False, True)))
            assert row["p"] == pytest.approx(mcnemar(row["gained"], row["lost"]))
            assert row["correct"] == sum(row["right"]) and 0 < row["shared"] < 1 and row["tokens"] > 0


def narrow(folder: Path, place: Path, context: int) -> Path:
    """A copy of a model's folder with a shorter context."""
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    (place / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}), encoding="utf-8")
    return place


def rows_of(printed: str) -> list[list[str]]:
    """The rows of a table of lengths: model, split, items, longest, context, too long, how."""
    return [
        line.split(maxsplit=6) for line in printed.splitlines() if line.endswith("counted") or "estimated as" in line
    ]


def test_lengths_for_all_backbones_are_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    make_split(tmp_path, "train", 12)
    raw = [make_item(number) for number in range(5)]
    raw[3]["input"]["conversation"][0]["utterance"] = "가" * 2000
    (tmp_path / "data_dev.json").write_text(json.dumps(raw), encoding="utf-8")
    main(["korean+1shots", "--lengths", "--data", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    assert [row[0] for row in rows[::2]] == [row[0] for row in rows[1::2]] == list(backbones())
    assert {tuple(row[1:3]) for row in rows} == {("train", "12"), ("dev", "5")}
    assert {row[0] for row in rows if row[5] == "1"} == {"polar", "eeve"} == {row[0] for row in rows if row[5] != "0"}
    assert {row[6].strip() for row in rows} == {f"estimated as {kind}" for kind in kinds()}
    assert "Nothing is cut" in printed


def test_lengths_are_counted_with_a_tokenizer_that_is_here(
    data: Path, tmp_path: Path, backbone_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = Encoder(toys.tokenizer("qwen2it"), load_prompt("korean"), name="qwen2it")
    tokens = sorted(len(one.ids) for one in encoder.for_scoring(load_items(data / "data_dev.json")))
    folder = narrow(backbone_folder("qwen2it"), tmp_path / "qwen2it", tokens[6])
    long = sum(one > tokens[6] for one in tokens)
    assert 0 < long < 14
    for extra in (["--lengths"], []):  # alone, and below an item
        main(["korean", "--data", str(data), "--runs", str(folder), *extra])
        row = next(line for line in capsys.readouterr().out.splitlines() if " dev " in line).split()
        assert row[-5:] == ["14", f"{tokens[-1]}", f"{tokens[6]}", f"{long}", "counted"]


def test_lengths_need_one_prompt_and_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--lengths takes one prompt"):
        main(["--lengths"])
    with pytest.raises(UserError, match=r"data_train\.json: no such file"):
        main(["korean", "--lengths", "--data", str(tmp_path)])
    make_split(tmp_path, "dev", 3)
    with pytest.raises(UserError, match=r"data_train\.json: no such file"):
        main(["korean+1shots", "--lengths", "--data", str(tmp_path)])


def test_a_comparison_names_every_prompt_that_is_too_long(
    data: Path, tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    folder = narrow(backbone_folder("qwen2it"), tmp_path / "qwen2it", 400)
    chosen = ["--runs", str(folder), "--data", str(data), "--device", "cpu"]
    with pytest.raises(UserError) as caught:
        main(["--compare", "korean", "korean+4shots", "korean+5shots", *chosen])
    said = str(caught.value)
    assert "with korean+4shots: 14 of 14, the longest has " in said and "with korean+5shots: 14 of 14" in said
    assert "with korean: " not in said and "tokens of 400" in said


def test_what_cannot_be_compared(data: Path, tmp_path: Path, backbone_folder: Callable[[str], Path]) -> None:
    folder = str(backbone_folder("qwen2"))
    with pytest.raises(UserError, match="at least one of --runs"):
        main(["--compare", "korean"])
    with pytest.raises(UserError, match="named twice"):
        main(["--compare", "korean", "korean", "--runs", folder])
    make_split(tmp_path, "dev", 3, labelled=False)
    with pytest.raises(UserError, match="3 items have no label"):
        main(["--compare", "korean", "--runs", folder, "--data", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["--compare", "korean", "--runs", folder, "--split", "test"])
    with pytest.raises(UserError, match="--orders: found 4, allowed for 3 options: 1, 3"):
        main(["--compare", "korean", "--runs", folder, "--orders", "4"])


def test_a_prompt_of_another_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "task.yaml").write_text(TASK_FILE, encoding="utf-8")
    (tmp_path / "four.yaml").write_text(PROMPT, encoding="utf-8")
    (tmp_path / "data_dev.json").write_text(dump_items([make_four(number) for number in range(4)]), encoding="utf-8")
    with working_on(FOUR):  # and afterwards on the shipped one
        given = ["--data", str(tmp_path), "--task", str(tmp_path / "task.yaml")]
        main([str(tmp_path / "four.yaml"), "--item", "made-0003", *given])
        printed = capsys.readouterr().out
        assert "What comes next?\nA. " in printed and "\nD. " in printed
        assert "answer: D. 두 사람은 아무 말도 하지 않았다." in printed
        with pytest.raises(UserError, match="needs one sentence for each of Cause, What follows"):
            main(["korean", *given])
        with pytest.raises(UserError, match="--orders: found 6, allowed for 4 options: 1, 4, 8"):
            main([str(tmp_path / "four.yaml"), "--orders", "6", *given])


def test_mcnemar_is_exact() -> None:
    assert mcnemar(0, 0) == 1 and mcnemar(3, 3) == 1
    assert mcnemar(6, 0) == pytest.approx(2 / 2**6) == pytest.approx(mcnemar(0, 6))
