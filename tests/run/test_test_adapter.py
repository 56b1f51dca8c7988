"""Adapters as stock peft leaves them, taken by run.test: scores, record, vote, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from run.test import main
from run.vote import main as vote
from src.console.cli import UserError
from src.files.digests import digests
from src.runs.encoder import encoder_of
from src.runs.record import Record
from src.score.item_scores import read_scores
from tests import toys
from tests.made_runs import make_place

pytestmark = pytest.mark.trains

Folder = Callable[[str], Path]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_place(tmp_path)
    for module in ("run.test", "run.vote", "src.files.paths"):
        monkeypatch.setattr(f"{module}.RESULTS", tmp_path / "results")
    return tmp_path


def adapter(base: Path, folder: Path, short: str = "", **settings: Any) -> Path:
    """An adapter with random weights on the base in `folder`, saved by peft; with the tokenizer of a toy, if named."""
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(**{"r": 6, "lora_alpha": 9, "target_modules": ALL, "task_type": "CAUSAL_LM", **settings})
    network = peft.get_peft_model(network, config)
    torch.manual_seed(5)
    for name, value in network.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            value.data += 0.1 * torch.randn_like(value)
    network.save_pretrained(folder)
    if short:
        toys.tokenizer(short).save_pretrained(folder)
    return folder


def scored(place: Path, model: str | Path, *more: str) -> None:
    where = ("--data", str(place / "data"), "--device", "cpu", "--prompt", str(place / "short.yaml"))
    usual = () if "--split" in more else ("--split", "dev")
    main(["--model_id", str(model), *where, "--backbone", "polar", *usual, *more])


def problem_of(place: Path, model: str | Path, *more: str) -> str:
    with pytest.raises(UserError) as caught:
        scored(place, model, *more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("short", "settings"),
    [
        ("polar", {"use_rslora": True, "modules_to_save": ["lm_head"]}),
        ("polar", {"target_modules": [*ALL, "lm_head"], "rank_pattern": {"q_proj": 3}, "layers_to_transform": [1]}),
        ("kogemma", {"use_dora": True, "target_modules": r".*\.(q_proj|down_proj)"}),
        ("qwen2", {"modules_to_save": ["embed_tokens"], "lora_dropout": 0.3}),
    ],
)
def test_letters_are_those_of_stock_peft(
    short: str, settings: dict[str, Any], place: Path, backbone_folder: Folder
) -> None:
    base = backbone_folder(short)
    source = adapter(base, place / "lora", **settings)
    scored(place, source)
    run = place / "results" / "lora-adapter"
    record = Record.load(run)
    encoder = encoder_of(run, record, place / "data")
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    bare = read_stock(stock, encoder, place)
    found = torch.tensor([row.logits[0] for row in read_scores(run / "scores_dev.jsonl")])
    expected = read_stock(peft.PeftModel.from_pretrained(stock, source).eval(), encoder, place)
    assert torch.allclose(found, expected, atol=1e-4)
    assert (expected - bare).abs().max() > 0.01, "the adapter does something"


def read_stock(network: Any, encoder: Any, place: Path) -> torch.Tensor:
    from src.data import load_split

    with torch.no_grad():
        examples = encoder.for_scoring(load_split(place / "data", "dev"))
        logits = [network(torch.tensor([one.ids])).logits[0, -1] for one in examples]
    return torch.stack(logits)[:, list(encoder.letter_ids)]


def test_the_record_names_its_files_and_it_votes_and_goes_on(
    place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    source = adapter(backbone_folder("polar"), place / "out" / "lora" / "checkpoint-7")
    scored(place, source)
    run = place / "results" / "lora-checkpoint-7-adapter"
    said = capsys.readouterr().out
    assert f"{source}: a LoRA adapter of rank 6 on {backbone_folder('polar')}\n" in said
    assert "tokenizer and chat template of the base model" in said
    record = Record.load(run)
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert record.adapter == {
        "source": str(source),
        "revision": None,
        "base": str(backbone_folder("polar")),
        "files": {name: digest.as_json() for name, digest in digests(source, names).items()},
    }
    assert record.noted_files["adapter/adapter_model.safetensors"] == digests(source, names)[names[1]]
    assert (record.recipe.lora_r, record.recipe.lora_alpha, record.training) == (6, 9, None)
    assert record.trainable_parameters == sum(value.numel() for value in peft.load_peft_weights(str(source)).values())
    # Again, by the run's name, and by where it is from; the copy is enough for the first.
    scored(place, source, "--split", "test")
    hidden = source.rename(place / "moved")
    main(["--model_id", run.name, "--data", str(place / "data"), "--device", "cpu", "--split", "dev", "--orders", "6"])
    assert set(Record.load(run).splits) == {"dev", "test"} and "dev" in Record.load(run).results(6)
    hidden.rename(source)
    # The bare base beside it: the vote takes both.
    scored(place, backbone_folder("polar"), "--name", "bare")
    vote([run.name, "bare-untrained", "--split", "dev", "--data", str(place / "data"), "--out", str(place / "vote")])
    voters = json.loads((place / "vote" / "record.json").read_text(encoding="utf-8"))["splits"]["dev"]["voters"]
    assert [one["run"] for one in voters] == [run.name, "bare-untrained"]
    # Another adapter of the same name is not mixed with it.
    adapter(backbone_folder("polar"), source, r=3)
    assert "holds scores of another adapter. Delete it, or give another --name." in problem_of(place, source)


def test_whose_tokenizer(place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    base = backbone_folder("qwen2")
    own = adapter(base, place / "own", "qwen2")
    config = own / "chat_template.jinja"
    config.write_text(toys.CHATML.replace("You are a helpful assistant.", "고르는 사람"), encoding="utf-8")
    prompt = place / "short.yaml"
    prompt.write_text(prompt.read_text(encoding="utf-8").replace("system: 고르세요.", ""), encoding="utf-8")
    scored(place, own)
    assert (
        f"tokenizer and chat template of the adapter's folder. Another: --tokenizer {base}" in capsys.readouterr().out
    )
    scored(place, own, "--name", "other", "--tokenizer", str(base))
    assert "tokenizer and chat template of --tokenizer\n" in capsys.readouterr().out
    records = [Record.load(place / "results" / f"{name}-adapter") for name in ("own", "other")]
    assert records[0].template.sha256 != records[1].template.sha256
    # Without a chat template, what lies there does not count.
    config.unlink()
    scored(place, own, "--name", "third")
    assert "tokenizer and chat template of the base model" in capsys.readouterr().out


def test_bases(place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    source = adapter(backbone_folder("polar"), place / "lora")
    edit(source, base_model_name_or_path="/home/someone/models/polar")
    assert f"{source}: its base /home/someone/models/polar is not on this machine." in problem_of(place, source)
    edit(source, base_model_name_or_path=None)
    assert "names no base model. Give it: --base MODEL" in problem_of(place, source)
    scored(place, source, "--base", str(backbone_folder("polar")))
    assert "(--base; its config names None)" in capsys.readouterr().out
    larger = toys.save("polar", place / "larger", num_hidden_layers=3)
    other = problem_of(place, source, "--base", str(larger), "--name", "other")
    assert other.startswith(f"{source} is not whole, or not of this base model: ") and "--base MODEL" in other
    assert not (place / "results" / "other-adapter").exists()
    edit(source, base_model_name_or_path=str(backbone_folder("polar")))
    assert f"name it yourself: --base {backbone_folder('polar')}" in problem_of(place, source, "--trust_remote_code")
    bare = str(backbone_folder("polar"))
    assert "--base goes with an adapter of another tool" in problem_of(place, bare, "--base", bare)


def test_resized_embeddings_are_refused(place: Path, backbone_folder: Folder) -> None:
    base = backbone_folder("polar")
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rows = network.config.vocab_size
    network.resize_token_embeddings(rows + 64)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    peft.get_peft_model(network, config).save_pretrained(place / "lora")
    told = problem_of(place, place / "lora")
    assert f"with a vocabulary of {rows + 64:,} tokens, and {base} has {rows:,}" in told and "merge_and_unload" in told


def test_dialogues_and_merging(place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    source = adapter(backbone_folder("polar"), place / "lora")
    scored(place, source, "--merge", str(place / "merged"))
    assert "merged: 0 of 6 answers changed" in capsys.readouterr().out
    scored(place, place / "merged", "--name", "merged")
    names = ("lora-adapter", "merged-untrained")
    pairs = [read_scores(place / "results" / name / "scores_dev.jsonl") for name in names]
    logits = [torch.tensor([row.logits[0] for row in rows]) for rows in pairs]
    assert torch.allclose(*logits, atol=1e-4)
    main(["--model_id", "lora-adapter", "--data", str(place / "data"), "--split", "dev", "--dialogue", "blanked"])
    changed = Record.load(place / "results" / "lora-adapter-blanked")
    assert changed.weights == "lora-adapter" and changed.dialogue == "blanked"
    main(
        ["--model_id", "lora-adapter", "--data", str(place / "data"), "--split", "dev", "--other_prompt", "korean+cot"]
    )
    other = Record.load(place / "results" / "lora-adapter-korean+cot")
    assert other.weights == "lora-adapter" and other.splits["dev"].items == 6


def test_damaged_weights_are_named_where_they_lie(place: Path, backbone_folder: Folder) -> None:
    source = adapter(backbone_folder("polar"), place / "lora")
    file = source / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    told = problem_of(place, source)
    assert told.startswith(f"{source} holds no complete model: adapter_model.safetensors is damaged or was not copied")
    assert not (place / "results" / "lora-adapter").exists()


def edit(source: Path, **changes: Any) -> None:
    path = source / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_a_base_that_is_kept_in_four_bits(
    place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, base = backbone_folder("qwen2"), place / "qwen2-bnb-4bit"
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    quantised = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32, quantization_config=how)
    quantised.save_pretrained(base)
    toys.tokenizer("qwen2").save_pretrained(base)
    source = adapter(whole, place / "lora")
    edit(source, base_model_name_or_path=str(base))
    scored(place, source)
    assert f"{base} is kept quantised, as it was trained on." in capsys.readouterr().out
    run = place / "results" / "lora-adapter"
    encoder = encoder_of(run, Record.load(run), place / "data")
    stock = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), source)
    found = torch.tensor([row.logits[0] for row in read_scores(run / "scores_dev.jsonl")])
    assert torch.allclose(found, read_stock(stock.eval(), encoder, place), atol=1e-4)
    # On the whole weights the numbers are others.
    scored(place, source, "--base", str(whole), "--name", "whole")
    rows = read_scores(place / "results" / "whole-adapter" / "scores_dev.jsonl")
    assert not torch.allclose(found, torch.tensor([row.logits[0] for row in rows]), atol=1e-2)
