import re
from pathlib import Path

import pytest

from src.console.cli import Parser
from src.console.other_names import ALSO, MORE, OURS, REASONS, hint
from src.model.recipe_flags import add_flags
from src.model.recipes import FIELDS
from src.runs.command import make_parser

FLAGS = make_parser("doc", "run.train")._option_string_actions


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("learning_rate", "lr"),
        ("num_train_epochs", "epoch"),
        ("num_epochs", "epoch"),
        ("per_device_train_batch_size", "batch_size"),
        ("micro_batch_size", "batch_size"),
        ("lora_rank", "lora_r"),
        ("lora_target", "lora_targets"),
        ("lora_target_modules", "lora_targets"),
        ("warmup_ratio", "warmup_steps"),
        ("model_name_or_path", "model_id"),
        ("base_model", "model_id"),
        ("load_in_4bit", "method"),
        ("random_seed", "seed"),
        ("optim", "optimizer"),
    ],
)
def test_a_setting_by_the_name_of_another_trainer(theirs: str, ours: str) -> None:
    assert hint(f"--{theirs}", FLAGS).startswith(f" Did you mean '--{ours}'?")
    assert hint(f"--{theirs.replace('_', '-')}", FLAGS).startswith(f" Did you mean '--{ours}'?")
    assert hint(theirs, FIELDS).startswith(f" Did you mean '{ours}'?")


def test_a_mistyped_name_of_another_trainer() -> None:
    assert hint("--learing_rate", FLAGS) == " Did you mean '--lr'?"
    assert hint("num_train_epoch", FIELDS).startswith(" Did you mean 'epoch'?")
    # A word that is closer to one of ours, or close to none, is not for this table.
    for word in ("--epcoh", "--batch_sise", "--nonsense"):
        assert hint(word, FLAGS) == ""


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ("cutoff_len", "nothing is cut here"),
        ("max_seq_length", "nothing is cut here"),
        ("bf16", "a GPU computes in bf16"),
        ("save_steps", "once an epoch"),
        ("logging_steps", "once an epoch"),
        ("per_device_eval_batch_size", "as long as the GPU's memory allows"),
        ("push_to_hub", "nothing leaves the machine"),
        ("ddp_timeout", "torchrun"),
        ("max_steps", "epoch counts passes"),
    ],
)
def test_what_there_is_not_here_has_a_reason(theirs: str, reason: str) -> None:
    for word, known in ((f"--{theirs}", FLAGS), (theirs, FIELDS)):
        assert hint(word, known).startswith(f" Other trainers have {theirs}; ") and reason in hint(word, known)


def test_flags_that_are_no_keys_and_flags_of_other_commands() -> None:
    assert hint("dataset", FIELDS) == " It is no key of a recipe but the flag --data."
    assert hint("report_to", FIELDS) == " It is no key of a recipe but the flag --report_to."
    assert hint("--use_wandb", FLAGS) == " Did you mean '--report_to'?"
    assert hint("output_dir", FIELDS) == " It is no key of a recipe but the flag --save_dir."
    assert hint("--output_dir", FLAGS) == " Did you mean '--save_dir'?"
    assert hint("--output_dir", ["--out"]) == " Did you mean '--out'?"
    assert hint("--learning_rate", ["--data"]) == " Other commands have it, as --lr; this one does not."
    assert hint("--Learning-Rate", FLAGS) == " Did you mean '--lr'?"
    assert hint("--batch-size", FLAGS) == " Did you mean '--batch_size'?"
    assert hint("--epcoh", FLAGS) == hint("stray", FIELDS) == ""


def test_no_name_is_ours_or_stands_twice() -> None:
    theirs = " ".join([*OURS.values(), *REASONS.values()]).split()
    assert len(theirs) == len(set(theirs)), sorted({one for one in theirs if theirs.count(one) > 1})
    assert not set(theirs) & {name for name in FIELDS}
    assert set(MORE) <= set(theirs) and set(ALSO) <= set(OURS)


def test_every_name_of_ours_is_a_flag_of_some_command() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*Path("run").glob("*.py"), Path("src/runs/command.py"))]
    flags = set(re.findall(r'"--(\w+)"', " ".join(texts))) | set(FIELDS) | {"recipe"}
    assert set(OURS) <= flags and {one for names in ALSO.values() for one in names} <= flags


def test_the_parser_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("doc", "run.made_up")
    add_flags(parser)
    for flag, said in (
        ("--learning_rate", "Did you mean '--lr'?"),
        ("--cutoff_len", "nothing is cut"),
        ("--sed", "'--seed'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([flag, "1"])
        message = capsys.readouterr().err
        assert said in message and message.count("\n") == 1
