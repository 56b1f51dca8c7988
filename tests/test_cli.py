import pytest
import torch

from src.cli import INTERRUPTED, Parser, UserError, nearest, run_main


def test_nearest_names_a_close_word_only() -> None:
    assert nearest("epcoh", ["epoch", "lr"]) == " Did you mean 'epoch'?"
    assert nearest("zzz", ["epoch", "lr"]) == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--epcoh", "3"], "'--epcoh'. Did you mean '--epoch'?"), (["--epo", "3"], "'--epo'."), (["stray"], "'stray'")],
)
def test_unknown_arguments_end_with_2_and_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser("doc", "run.thing")
    parser.add_argument("--epoch", type=int)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_files_may_stand_on_both_sides_of_a_flag() -> None:
    parser = Parser("doc", "run.thing")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--split")
    assert parser.parse_args(["a", "--split", "dev", "b"]).files == ["a", "b"]


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def mistake() -> None:
        raise UserError("what was wrong")

    def interrupted() -> None:
        raise KeyboardInterrupt

    def ours() -> None:
        raise ValueError("a bug keeps its traceback")

    assert run_main(lambda: None) == 0
    assert run_main(lambda: 1) == 1
    assert run_main(mistake) == 2
    assert capsys.readouterr().err == "error: what was wrong\n"
    assert run_main(interrupted) == INTERRUPTED
    with pytest.raises(ValueError, match="traceback"):
        run_main(ours)


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def crowded() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore words")

    def ours() -> None:
        raise RuntimeError("a bug keeps its traceback")

    assert run_main(crowded) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: the GPU's memory") and "Tried to allocate 2 GiB.)" in said
    with pytest.raises(RuntimeError, match="traceback"):
        run_main(ours)
