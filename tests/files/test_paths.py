from pathlib import Path

import pytest

from src.console.cli import UserError
from src.files import paths
from src.files.paths import (
    find_run,
    predictions_path,
    record_path,
    refuse_links,
    refuse_missing,
    run_folder,
    run_names,
    scores_path,
)


def test_paths_of_a_run() -> None:
    assert scores_path("runs/mini", "dev") == Path("runs/mini/scores_dev.jsonl")
    assert predictions_path("runs/mini", "test") == Path("runs/mini/predictions_test.json")
    assert record_path("runs/mini") == Path("runs/mini/record.json")
    assert scores_path("runs/mini", "dev", 6) == Path("runs/mini/scores_dev.6orders.jsonl")
    assert predictions_path("runs/mini", "dev", 24) == Path("runs/mini/predictions_dev.24orders.json")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`results/` with the runs alpha (finished) and orpo (not), a vote, and a folder of something else."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    for name in ("alpha", "orpo", "vote", "eda"):
        (tmp_path / "results" / name).mkdir(parents=True)
    for name, file in (("alpha", "record.json"), ("alpha", "recipe.yaml"), ("orpo", "recipe.yaml")):
        (tmp_path / "results" / name / file).touch()
    (tmp_path / "results" / "vote" / "record.json").touch()
    return tmp_path / "results"


def test_runs_are_listed_by_their_recipes(results: Path) -> None:
    assert run_names(results) == ["alpha", "orpo"]
    assert run_names(results / "nowhere") == []


def test_a_run_by_its_name_or_folder(results: Path) -> None:
    assert find_run("alpha") == results / "alpha" == find_run(str(results / "alpha"))
    assert find_run("vote") == results / "vote"
    for word in ("Qwen/Qwen2-7B", None, "", "eda", str(results)):
        assert find_run(word) is None


def test_a_run_goes_before_another_folder_of_its_name(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("orpo", "mine"):
        (tmp_path / "here" / name).mkdir(parents=True)
        (tmp_path / "here" / name / "recipe.yaml").touch()
    monkeypatch.chdir(tmp_path / "here")
    assert find_run("orpo") == run_folder("orpo", results) == results / "orpo"
    assert find_run("mine") == run_folder("mine", results) == Path("mine")


def test_a_word_stands_for_a_folder_that_need_not_be_there(results: Path) -> None:
    file = results / "alpha" / "predictions_test.json"
    file.touch()
    assert run_folder("alpha", results) == run_folder(str(file), results) == results / "alpha"
    assert run_folder("nobody", results) == results / "nobody"
    assert run_folder("elsewhere/nobody", results) == Path("elsewhere/nobody")
    with pytest.raises(UserError, match=r"missing\.json: no such file"):
        run_folder("missing.json", results)


def test_a_missing_run_is_named_with_the_nearest(results: Path) -> None:
    refuse_missing(results / "alpha")
    with pytest.raises(UserError, match=r"no such run; runs there: alpha, eda, orpo, vote. Did you mean 'alpha'\?"):
        refuse_missing(results / "alhpa")
    with pytest.raises(UserError, match="there are no runs there"):
        refuse_missing(results / "nowhere" / "alpha")


def test_fold_runs_are_counted_where_runs_are_listed(results: Path) -> None:
    for number in range(1, 6):
        (results / f"alpha-f{number}of5").mkdir()
    (results / "alpha-oof5").mkdir()
    with pytest.raises(UserError, match=r"runs there: alpha, alpha-oof5, eda, orpo, vote, 5 fold runs\. Did you mean"):
        refuse_missing(results / "alpha-f6of5")


def test_links_that_a_reporting_tool_made_do_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "reports" / "wandb").mkdir(parents=True)
    (tmp_path / "reports" / "wandb" / "debug.log").symlink_to("run/logs/debug.log")
    refuse_links(tmp_path)
    (tmp_path / "model").symlink_to("/elsewhere")
    with pytest.raises(UserError, match="model is a link to /elsewhere"):
        refuse_links(tmp_path)
