import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from src.console import lifeline
from src.console.launch import Launch
from tests import launched
from tests.console.made_store import Files

JOB = launched.ROOT / "tests/console/failing_rank.py"
SEEN = "a warning\n"
"""What rank 0 has on stderr before anything fails."""


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("none", 0, ""),
        ("all", 2, "error: found 1, allowed 2. Give 2.\n"),
        ("user 0", 2, "error: found 1, allowed 2. Give 2.\n"),
        ("user 1", 2, "rank 1: error: found 1, allowed 2. Give 2.\n"),
        ("bug 1", 1, "rank 1: Traceback (most recent call last):"),
        ("interrupted 1", 130, "rank 1: interrupted; the same command goes on from here\n"),
    ],
)
def test_a_failure_ends_all_and_is_said_once(how: str, code: int, words: str, tmp_path: Path) -> None:
    started = time.monotonic()
    codes = launched.end(launched.start([JOB, how, tmp_path], tmp_path))
    out, err = launched.said(tmp_path, 0)
    assert codes == [code, code] and out == "rank 0\n" and launched.said(tmp_path, 1) == ("", "")
    assert err.startswith(SEEN + words) and (err == SEEN + words or how == "bug 1"), err
    assert how != "bug 1" or err.rstrip().endswith("KeyError: 'what was there'")
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_rank_ends_the_others(killed: int, tmp_path: Path) -> None:
    codes = launched.end(launched.start([JOB, f"killed {killed}", tmp_path], tmp_path, world=3))
    assert codes == [-signal.SIGKILL if rank == killed else 1 for rank in range(3)]
    told = "".join(launched.said(tmp_path, rank)[1] for rank in range(3))
    words = f"error: rank {killed} of 3 ended without a word: it was killed, or crashed\n"
    assert told == SEEN + words, "rank 0 says it, or rank 1 where that is gone"


def test_a_rank_may_fail_in_one_breath_with_its_greeting(tmp_path: Path) -> None:
    """Rank 0 may be slow to look. Strangers that connect first are no ranks, and are not waited for."""
    with open(tmp_path / "0.out", "wb") as out, open(tmp_path / "0.err", "wb") as err:
        command = [sys.executable, str(JOB), "user 1", str(tmp_path)]
        told = launched.environment(**launched.ranks_told(2)[0])
        rank = subprocess.Popen(command, env=told, cwd=launched.ROOT, stdout=out, stderr=err)
    port, secret = json.loads(Files(tmp_path).get("lifeline"))
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n")
    silent, half = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
    half.sendall(secret[:9].encode())
    with silent, half, socket.create_connection(("127.0.0.1", port)) as peer:
        message = json.dumps({"code": 2, "text": "error: what it is"})
        peer.sendall(f"{secret} 1\n{message}\n".encode())
        assert launched.end([rank], lifeline.GREETING / 2) == [2]
    assert launched.said(tmp_path, 0) == ("rank 0\n", f"{SEEN}rank 1: error: what it is\n")


@pytest.mark.parametrize("pieces", [[], [b"a"] * 20, [b"a" * 500], [b"\xff\xff\n"]])
def test_a_stranger_has_seconds_and_bytes_in_all(pieces: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """However it divides them."""
    monkeypatch.setattr(lifeline, "GREETING", 0.3)
    ours, theirs = socket.socketpair()
    started = time.monotonic()
    with ours, theirs:

        def drip() -> None:
            for piece in pieces:
                theirs.sendall(piece)
                time.sleep(0.1)

        sending = threading.Thread(target=drip)
        sending.start()
        assert "secret" not in lifeline._greeting(ours)
        assert time.monotonic() - started < 1
        sending.join()


@pytest.mark.parametrize(("rank", "words"), [(0, "after 0 s these ranks have not come: 1"), (1, "Connection refused")])
def test_ranks_that_do_not_meet_are_one_sentence(
    rank: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Files(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        store.set("lifeline", json.dumps([closed.getsockname()[1], "secret"]))
    monkeypatch.setattr(lifeline, "_store", lambda launch: store)
    monkeypatch.setattr(lifeline, "PATIENCE", 0.2)
    launch = Launch(rank=rank, world=2, local=rank, local_world=2, address="127.0.0.1")
    assert lifeline.together(launch, lambda tell: 0) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: rank {rank} of 2 has not met the others: ") and words in err
    assert err.count("\n") == 1 and "Start all of them again." in err


def test_a_command_for_one_process_refuses_to_be_one_of_several(tmp_path: Path) -> None:
    codes = launched.end(launched.start(["-m", "run.vote"], tmp_path))
    assert codes == [2, 2] and "started as one of 2 processes" in launched.said(tmp_path, 0)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "words"),
    [pytest.param("none", 0, "", marks=pytest.mark.thorough), ("all", 1, "error: found 1, allowed 2. Give 2.")],
)
def test_torchrun_starts_ranks(how: str, code: int, words: str) -> None:
    """torchrun has an exit code of its own, and tells the message once more among what it says of a failure."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(JOB), how]
    environment = launched.environment(OMP_NUM_THREADS=1)
    done = subprocess.run(command, cwd=launched.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code and done.stdout == "rank 0\n", done.stderr
    assert done.stderr == SEEN if how == "none" else done.stderr.startswith(f"{SEEN}{words}\n"), done.stderr
    assert how == "none" or ("exitcode  : 2" in done.stderr and done.stderr.count(words) > 1), json.dumps(done.stderr)
