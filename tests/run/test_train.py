import datetime
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from run.test import main as score
from run.train import main
from run.train_base import main as main_base
from src.console.cli import UserError, run_main
from src.data import load_items, sha256
from src.files.locks import lock_folder
from src.model.recipe_files import load_recipe
from src.score.item_scores import read_scores
from src.train import trainer
from tests.commands import leave_undrawn
from tests.conftest import odd_items
from tests.made_runs import make_place, stored

pytestmark = pytest.mark.trains

SMALL = ("--epoch", "2", "--batch_size", "2", "--lr", "3e-3", "--device", "cpu")
Folder = Callable[[str], Path]


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """`data/` of 8 train, 6 dev and 4 unlabelled test items, and a short prompt."""
    return make_place(tmp_path)


@pytest.fixture
def place(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `drawn`, for trainings that leave no curves."""
    leave_undrawn(monkeypatch)
    return drawn


def arguments(place: Path, model: Path, *more: str, run: str = "run") -> list[str]:
    prompt = ("--prompt", str(place / "short.yaml"))
    where = ("--data", str(place / "data"), "--save_dir", str(place / run))
    return ["--model_id", str(model), *where, *prompt, *SMALL, *more]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record does not depend on the clock."""
    timed = {"seconds", "resumed_from"}
    record = {key: value for key, value in record.items() if key not in {"seconds", "peak_memory_bytes", "run"}}
    record["training"] = {key: value for key, value in record["training"].items() if key not in timed | {"loss"}}
    record["splits"] = {
        split: {key: value for key, value in result.items() if key not in timed}
        for split, result in record["splits"].items()
    }
    return record


def test_help_is_quick() -> None:
    started = time.monotonic()
    for command in ("run.train", "run.train_base"):
        code = f"import {command}, sys; sys.argv = ['x', '--help']; {command}.main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0 and "--gradient_accumulation_steps" in done.stdout and command in done.stdout
    assert time.monotonic() - started < 10, "torch is imported too early"


def test_a_run_leaves_these_files(drawn: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    place = drawn
    main(arguments(place, backbone_folder("polar"), "--backbone", "polar", "--method", "lora", "--score", "test"))
    run, said = place / "run", capsys.readouterr().out
    assert files(run) == sorted(
        [
            *("adapter", "checkpoints", "inputs.json", "recipe.yaml", "record.json", "training.csv", "training.png"),
            *("predictions_dev.json", "predictions_test.json", "scores_dev.jsonl", "scores_test.jsonl"),
        ]
    )
    assert files(run / "checkpoints") == ["checkpoint-8"]
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(files(run / "adapter"))

    record = stored(run)
    assert load_recipe(run / "recipe.yaml").dump() == yaml.safe_dump(
        record["recipe"], allow_unicode=True, sort_keys=False, width=120
    )
    assert (record["run"], record["recipe"]["backbone"], record["recipe"]["name"]) == ("run", "polar", "polar")
    assert record["template"]["source"] == "recipe" and record["template"]["system_turn"] == "own"
    assert record["data"]["train"] == {
        "path": str(place / "data" / "data_train.json"),
        "sha256": sha256(place / "data" / "data_train.json"),
        "items": 8,
    }
    assert (
        set(record["data"]) == {"train", "dev"} and record["versions"]["torch"] and record["device"].startswith("cpu")
    )
    assert 0 < record["trainable_parameters"] < record["parameters"]
    assert record["peak_memory_bytes"] > 0 and record["seconds"] > record["splits"]["dev"]["seconds"]
    assert record["prompt"]["name"] == "short" and "고르세요." in record["prompt"]["text"]

    dev, test = record["splits"]["dev"], record["splits"]["test"]
    best = max(record["training"]["evaluations"], key=lambda one: (one["eval_correct"], -one["eval_log_loss"]))
    assert (dev["correct"], dev["accuracy"], dev["items"]) == (best["eval_correct"], best["eval_accuracy"], 6)
    assert (test["accuracy"], test["correct"], test["items"], test["orders"]) == (None, None, 4, 1)
    for split in ("dev", "test"):
        rows = read_scores(run / f"scores_{split}.jsonl")
        raw = json.loads((place / "data" / f"data_{split}.json").read_text(encoding="utf-8"))
        predictions = json.loads((run / f"predictions_{split}.json").read_text(encoding="utf-8"))
        assert [row.id for row in rows] == [one["id"] for one in raw]
        answers = [f"inference_{row.prediction + 1}" for row in rows]
        assert predictions == [one | {"output": answer} for one, answer in zip(raw, answers, strict=True)]
    labels = [item.label for item in load_items(place / "data" / "data_dev.json")]
    right = [row.prediction == label for row, label in zip(read_scores(run / "scores_dev.jsonl"), labels, strict=True)]
    assert sum(right) == dev["correct"]

    # Before the long part: what the loss is on. After it: where everything lies.
    assert "### Assistant:\n⟦A. 화자1은 일기 예보를 보지 않고 집을 나섰다.</s>⟧" in said
    assert "right answers A 3, B 3, C 2; 6 dev items" in said
    assert "4 optimizer steps an epoch, 2 epochs, lr 0.003, loss over the answer, per item" in said
    assert "dev accuracy" in said and "95 % interval" in said and "no labels, so no accuracy" in said
    assert said.strip().splitlines()[-1] == f"The run lies in {run}."


def test_what_is_odd_is_said_once_and_trained_on(
    place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "data" / "data_train.json"
    path.write_text(json.dumps(odd_items(8)), encoding="utf-8")
    main(arguments(place, backbone_folder("qwen2"), "--epoch", "1"))
    said = capsys.readouterr().out
    assert said.count("odd, and carried on") == 1
    assert f"{path}: odd, and carried on: unknown-key 8, id-number 8, number 8" in said
    assert stored(place / "run")["data"]["train"]["items"] == 8


def test_all_parameters(place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    main_base(arguments(place, backbone_folder("qwen2")))
    record = stored(place / "run")
    assert (record["recipe"]["method"], record["training"]["optimizer"]) == ("full", "fp32")
    assert record["trainable_parameters"] == record["parameters"]
    assert 0 < record["training"]["weights_moved"] <= 1
    assert "of a sample of the weights moved" in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files(place / "run" / "model"))
    with pytest.raises(UserError, match=r"run\.train_base trains with full; use python -m run\.train\."):
        main_base(arguments(place, backbone_folder("qwen2"), "--method", "lora"))


@pytest.mark.thorough
def test_killed_and_gone_on_with(
    place: Path, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.made_trainings import Killed, equal, kill_after, weights

    model = backbone_folder("qwen2")
    flags = ("--method", "lora", "--epoch", "4", "--score", "test")
    main(arguments(place, model, *flags))
    for passes, name in ((2, "early"), (10, "late"), (16, "end")):
        with monkeypatch.context() as patch:
            if passes == 16:  # trained, but not scored
                patch.setattr("src.runs.training.score_run", lambda *given: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    main(arguments(place, model, *flags, run=name))
            else:
                kill_after(patch, passes)
                with pytest.raises(Killed):
                    main(arguments(place, model, *flags, run=name))
        assert not (place / name / "record.json").exists()
        main(arguments(place, model, *flags, run=name))
        assert ("going on from" in capsys.readouterr().out) == (passes > 4)
        assert equal(weights(place / name / "adapter"), weights(place / "run" / "adapter"))
        for file in ("scores_dev.jsonl", "scores_test.jsonl", "predictions_test.json", "recipe.yaml", "inputs.json"):
            assert (place / name / file).read_bytes() == (place / "run" / file).read_bytes()
        assert facts(stored(place / name)) == facts(stored(place / "run"))


def test_a_run_goes_on_and_is_scored_with_the_date_that_it_began_with(
    place: Path, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests import toys

    (place / "dated.jinja").write_text("{{ strftime_now('%d %b %Y') }}\n" + toys.SOLAR, encoding="utf-8")
    given = arguments(
        place, backbone_folder("polar"), "--method", "lora", "--chat_template", str(place / "dated.jinja")
    )
    day = datetime.date.today()
    real = trainer.KeepBest.on_save

    def stop(*values: Any, **keys: Any) -> None:
        real(*values, **keys)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.KeepBest, "on_save", stop)
        assert run_main(lambda: main(given)) == 130
    began = json.loads((place / "run" / "inputs.json").read_text(encoding="utf-8"))["template"]
    assert (began["date"], began["source"]) == (day.isoformat(), "recipe")

    class Later(datetime.date):
        @classmethod
        def today(cls) -> Any:
            return day + datetime.timedelta(days=35)

    monkeypatch.setattr("src.prompt.chat.datetime.date", Later)
    main(given)
    assert f"for this run it stays {day}" in capsys.readouterr().out
    record = stored(place / "run")
    assert record["training"]["resumed_from"] and record["template"] == began
    before = (place / "run" / "scores_dev.jsonl").read_bytes()
    score(["--model_id", str(place / "run"), "--data", str(place / "data"), "--device", "cpu", "--split", "dev"])
    assert (place / "run" / "scores_dev.jsonl").read_bytes() == before


def test_what_does_not_go_on(
    place: Path, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.made_trainings import Killed, kill_after

    model = backbone_folder("qwen2")
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed):
            main(arguments(place, model, "--method", "lora"))
    # Other settings, named.
    with pytest.raises(
        UserError, match=r"unfinished run with other settings: lr was 0\.003, now 0\.1, seed was 42, now 7\."
    ):
        main(arguments(place, model, "--method", "lora", "--lr", "0.1", "--seed", "7"))
    # Other data, and other items of the same.
    with pytest.raises(UserError, match=r"other inputs: train had 8 items, now 4; dev had 6 items, now 4\. .*--limit"):
        main(arguments(place, model, "--method", "lora", "--limit", "4"))
    prompt = place / "short.yaml"
    text = prompt.read_text(encoding="utf-8")
    prompt.write_text(text.replace("고르세요", "고르시오"), encoding="utf-8")
    with pytest.raises(UserError, match="on other inputs: the prompt's text is another"):
        main(arguments(place, model, "--method", "lora"))
    prompt.write_text(text, encoding="utf-8")
    # Nothing of it was touched.
    main(arguments(place, model, "--method", "lora"))
    assert "going on from" in capsys.readouterr().out
    # A finished one is kept.
    record = (place / "run" / "record.json").read_bytes()
    with pytest.raises(UserError, match=r"is a finished run\. .*python -m run\.test --model_id"):
        main(arguments(place, model, "--method", "lora"))
    assert (place / "run" / "record.json").read_bytes() == record


def test_settings_may_change_before_the_first_checkpoint(
    place: Path, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.made_trainings import Killed, kill_after

    model = backbone_folder("qwen2")
    with monkeypatch.context() as patch:
        kill_after(patch, 0)
        with pytest.raises(Killed):
            main(arguments(place, model, "--method", "lora"))
    shutil.rmtree(place / "run" / "checkpoints", ignore_errors=True)
    main(arguments(place, model, "--method", "lora", "--lr", "1e-4", "--epoch", "1"))
    assert stored(place / "run")["recipe"]["lr"] == 1e-4


def test_a_folder_that_is_no_run_is_not_overwritten(place: Path, backbone_folder: Folder) -> None:
    mine = place / "run" / "model" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("work of years", encoding="utf-8")
    with pytest.raises(UserError, match="run is no run and holds model, which training would overwrite"):
        main_base(arguments(place, backbone_folder("qwen2")))
    assert mine.read_text(encoding="utf-8") == "work of years" and files(place / "run") == ["model"]


def test_only_some_items(place: Path, backbone_folder: Folder) -> None:
    main(arguments(place, backbone_folder("qwen2"), "--method", "lora", "--limit", "3", "--epoch", "1"))
    record = stored(place / "run")
    assert (record["data"]["train"]["items"], record["splits"]["dev"]["items"]) == (3, 3)
    ids = [row.id for row in read_scores(place / "run" / "scores_dev.jsonl")]
    assert len(ids) == 3 and ids == sorted(ids)
    for limit in ("0", "-2"):
        with pytest.raises(UserError, match=f"--limit: found {limit}, allowed: 1 or more"):
            main(arguments(place, backbone_folder("qwen2"), "--limit", limit, run="other"))


# One message, exit 2, no traceback


def fails(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    capsys.readouterr()
    assert run_main(lambda: main(command)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said
    return said


def test_mistakes_end_in_one_message(place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    model = backbone_folder("qwen2")
    if not torch.cuda.is_available():
        assert "--device cuda: there is no GPU" in fails(capsys, arguments(place, model, "--device", "cuda"))
    assert "no prompt 'enrty'" in fails(capsys, arguments(place, model, "--prompt", "enrty"))
    assert "no chat template" in fails(capsys, arguments(place, backbone_folder("polar")))
    assert f"there is no folder {place / 'nowhere'}." in fails(capsys, arguments(place, place / "nowhere"))
    busy = arguments(place, model, "--method", "lora")
    with lock_folder(place / "run"):
        assert "run is in use by process" in fails(capsys, busy)
    where = busy.index("--data") + 1
    busy[where] = str(place / "short.yaml")
    assert "short.yaml is a file; the folder of data_train.json is needed here" in fails(capsys, busy)
    (place / "data" / "data_dev.json").unlink()
    assert "data_dev.json" in fails(capsys, arguments(place, model))
    assert not (place / "run").exists()


def test_a_warm_up_that_takes_all_steps_is_named(
    place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--method", "lora", "--epoch", "1", "--batch_size", "8")
    for warm_up, run in (("0.1", "warm"), ("0", "cold")):
        main([*arguments(place, backbone_folder("qwen2"), *flags, run=run), "--warmup_steps", warm_up])
        weights = load_file(place / run / "adapter" / "adapter_model.safetensors")
        learned = any(bool(value.any()) for name, value in weights.items() if "lora_B" in name)
        said = capsys.readouterr().out
        assert ("the warm-up takes all 1 optimizer steps" in said) == (not learned) == (run == "warm")


def test_items_that_do_not_fit_are_known_before_the_training(place: Path, backbone_folder: Folder) -> None:
    from tests.conftest import make_item

    long = make_item(0, output="", conversation=[{"speaker": 1, "utterance": "아" * 5000, "utterance_id": "x"}])
    long["input"]["reference_id"] = ["x"]
    (place / "data" / "data_test.json").write_text(json.dumps([long]), encoding="utf-8")
    flags = ("--method", "lora", "--score", "test")
    with pytest.raises(UserError, match=r"qwen2: 1 item is longer than the model's context of 1024 tokens: made-0"):
        main([*arguments(place, backbone_folder("qwen2"), *flags), "--backbone", "qwen2"])
    assert not (place / "run" / "checkpoints").exists()


def test_a_diverged_training(place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--lr", "1e20", "--batch_size", "1", "--epoch", "2", "--eval_steps", "16", "--method", "lora")
    assert "training diverged before step 10" in fails(capsys, arguments(place, backbone_folder("qwen2"), *flags))
    assert not (place / "run" / "record.json").exists()
