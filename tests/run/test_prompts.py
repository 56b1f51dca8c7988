import json
from collections.abc import Callable
from pathlib import Path

import pytest

from run.prompts import main, part_tokens
from src.cli import UserError
from src.encode import Encoder
from src.metrics import mcnemar
from src.prompts import combinations, load_prompt
from tests import toys
from tests.made_runs import make_split


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


@pytest.mark.parametrize("short", ["polar", "qwen2it", "kogemma", "eeve"])
@pytest.mark.parametrize("name", ["korean+persona", "english+categorized", "plain"])
def test_every_token_belongs_to_a_part(short: str, name: str) -> None:
    from src.recipes import backbones

    prompt, (item,) = load_prompt(name), toys.items(1)
    encoder = Encoder(toys.tokenizer(short), prompt, name=short, chat_template=backbones()[short].chat_template)
    counts = part_tokens(encoder, item)
    assert sum(counts.values()) == len(encoder.for_scoring([item])[0].ids)
    assert ("system" in counts) == (name != "plain") and counts["chat template"] > 0
    # What a part's own text makes of tokens, but for those that lie across its edges.
    for part, text in prompt.parts(item):
        own = len(encoder.tokenizer(text.strip(), add_special_tokens=False)["input_ids"])
        assert abs(counts[part] - own) <= 3, part


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


def test_mcnemar_is_exact() -> None:
    assert mcnemar(0, 0) == 1 and mcnemar(3, 3) == 1
    assert mcnemar(6, 0) == pytest.approx(2 / 2**6) == pytest.approx(mcnemar(0, 6))
