"""Ends all ranks of a command with the first that fails, and says why once.

Ranks wait for each other on the GPU, where nothing tells them that one is gone. So each holds a connection to rank 0,
and a thread reads it. A rank that fails sends its message, which rank 0 prints; one that was killed closes its
connection without a word. Either way the other ranks end at once, on all hosts.
"""

import contextlib
import functools
import json
import os
import queue
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from src.console.launch import Launch

PATIENCE = 300.0
"""Seconds to wait for all ranks to begin."""
GRACE = 0.7
"""Seconds that a rank has to fail by itself, since most mistakes are those of all ranks, and a signal ends them all."""
GREETING, LONGEST_GREETING = 30.0, 200
"""Seconds and bytes in which whoever connects to rank 0 has to show that it is a rank."""
TICK = 0.05
"""Seconds between two looks at who has come."""
DONE: dict[str, Any] = {"done": True}


class Lifeline:
    """The connections between rank 0 and the others.

    tell: prints a message for the user. On other ranks it is used only where rank 0 is gone.
    """

    def __init__(self, launch: Launch, tell: Callable[[str], None]) -> None:
        self.launch, self.tell = launch, tell
        self.store = _store(launch)
        self._peers: dict[int, socket.socket] = {}
        self._passed: dict[str, int] = {}
        self._over = threading.Lock()
        """Taken for good by whoever ends this process."""
        self._lost = threading.Event()
        """Whether another rank has failed."""
        self._meet()
        for rank, peer in self._peers.items():
            threading.Thread(target=self._listen, args=(rank, peer), daemon=True).start()

    def fail(self, code: int, text: str) -> NoReturn:
        """Ends this rank and the others with `code`; `text` is printed once.

        An error that is no user's may be that another rank is gone, which its connection tells better.
        """
        if code == 1 and self._lost.wait(GRACE):
            time.sleep(PATIENCE)  # the thread that has heard of it ends this process
        if not self._over.acquire(blocking=False):
            time.sleep(PATIENCE)  # the thread that has it ends this process
        _note(self.launch, text)
        if self.launch.rank == 0:
            self._print(text)
            self._send({"code": code})
        else:
            self._send({"code": code, "text": text})
            self._peers[0].settimeout(10 * GRACE)
            with contextlib.suppress(OSError):
                self._peers[0].recv(1)  # rank 0 has printed it, or is gone
        self._end(code)

    def signal(self, name: str) -> None:
        """Lets the ranks go on that `wait` for the same name for the same time."""
        self.store.set(self._next(name), "1")

    def wait(self, name: str) -> None:
        self.store.wait([self._next(name)], timedelta(days=1))

    def _next(self, name: str) -> str:
        self._passed[name] = self._passed.get(name, 0) + 1
        return f"{name}/{self._passed[name]}"

    def finish(self) -> None:
        """This rank has done its work. Rank 0 waits for the others, since they may find each other through it."""
        self._send(DONE)
        if self.launch.rank:
            self.store.set(f"done/{self.launch.rank}", "1")
        else:
            self.store.wait([f"done/{rank}" for rank in self._peers], timedelta(days=1))

    def _send(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            try:
                peer.sendall(json.dumps(message).encode() + b"\n")
            except OSError:  # it is gone
                continue

    def _listen(self, rank: int, peer: socket.socket) -> None:
        """Waits for what `rank` says, and ends this process if that is no good news."""
        try:
            line = peer.makefile("rb").readline()
            message = json.loads(line) if line else {}
        except (OSError, ValueError):
            message = {}
        if message.get("done"):
            return
        self._lost.set()
        time.sleep(GRACE if self.launch.rank == 0 or "code" not in message else 0)
        if not self._over.acquire(blocking=False):
            return
        code = int(message.get("code", 1))
        text = message.get("text", "")
        if "code" not in message:
            text = f"error: rank {rank} of {self.launch.world} ended without a word: it was killed, or crashed"
        elif text:
            text = f"rank {rank}: {text}"
        if self.launch.rank == 0 or (self.launch.rank == 1 and "code" not in message):
            self._print(text)
        if self.launch.rank == 0:
            self._send({"code": code})
        self._end(code)

    def _print(self, text: str) -> None:
        if text:
            self.tell(text)

    def _end(self, code: int) -> NoReturn:
        # The main thread may wait for a rank that is gone; nothing but this ends it.
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, SystemExit):
                continue
        os._exit(code)

    def _meet(self) -> None:
        launch = self.launch
        here = launch.local_world == launch.world
        if launch.rank == 0:
            secret = secrets.token_hex(16)
            with socket.create_server(("127.0.0.1" if here else "", 0), backlog=launch.world) as server:
                self.store.set("lifeline", json.dumps([server.getsockname()[1], secret]))
                self._welcome(server, secret)
            return
        port, secret = json.loads(self.store.get("lifeline"))
        peer = socket.create_connection(("127.0.0.1" if here else launch.address, port), timeout=PATIENCE)
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer.sendall(f"{secret} {launch.rank}\n".encode())
        self._peers[0] = peer

    def _welcome(self, server: socket.socket, secret: str) -> None:
        """Waits for the other ranks. Each that connects has a thread of its own, so that no stranger holds them up."""
        greeted: queue.SimpleQueue[tuple[int, socket.socket]] = queue.SimpleQueue()

        def greet(peer: socket.socket) -> None:
            told = _greeting(peer).split()
            if len(told) == 2 and told[0] == secret:
                greeted.put((int(told[1]), peer))
            else:
                peer.close()

        server.settimeout(TICK)
        until = time.monotonic() + PATIENCE
        while len(self._peers) < self.launch.world - 1:
            if time.monotonic() > until:
                missing = [str(rank) for rank in range(1, self.launch.world) if rank not in self._peers]
                raise TimeoutError(f"after {PATIENCE:.0f} s these ranks have not come: {', '.join(missing)}")
            with contextlib.suppress(TimeoutError):
                threading.Thread(target=greet, args=(server.accept()[0],), daemon=True).start()
            with contextlib.suppress(queue.Empty):
                rank, peer = greeted.get_nowait()
                self._peers[rank] = peer


def _greeting(peer: socket.socket) -> str:
    """The first line that `peer` sends, or "". What comes behind it stays in the connection: a rank that fails at once
    sends its message in the same piece.
    """
    until, line = time.monotonic() + GREETING, b""
    try:
        while not line.endswith(b"\n") and len(line) < LONGEST_GREETING:
            peer.settimeout(max(TICK, until - time.monotonic()))
            byte = peer.recv(1)
            if not byte or time.monotonic() > until:
                return ""
            line += byte
        peer.settimeout(None)
    except OSError:
        return ""
    return line.decode(errors="replace")


_line: Lifeline | None = None


def current() -> Lifeline:
    """This rank's."""
    assert _line is not None, "a process alone has none"
    return _line


def together(launch: Launch, command: Callable[[Callable[[str], None]], int]) -> int:
    """Exit code of `command` on one of several ranks; it takes the function that tells the user why it fails. Only rank
    0 is heard. A failure of any rank ends all.
    """
    shown, texts = sys.stderr, list[str]()
    tell = functools.partial(print, file=shown, flush=True)
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if launch.rank:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        global _line
        try:
            line = _line = Lifeline(launch, tell)
        except (OSError, RuntimeError) as error:  # torch's store has errors of the latter kind
            why = str(error).partition("\n")[0]
            tell(
                f"error: rank {launch.rank} of {launch.world} has not met the others: {why}. "
                "They were killed, or cannot reach each other. Start all of them again."
            )
            return 1
        try:
            code = command(texts.append)
        except SystemExit as error:  # the flags are wrong, which the parser of rank 0 has said
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            code = 1
            texts.append(traceback.format_exc())
        if code:
            line.fail(code, "\n".join(texts))
        _leave()
        line.finish()
    return code


def _leave() -> None:
    if "torch" not in sys.modules:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _note(launch: Launch, text: str) -> None:
    """Leaves `text` for torchrun, which shows it among what it says itself."""
    if launch.error_file:
        told = {"message": {"message": text.strip() or "see above", "extraInfo": {"timestamp": str(int(time.time()))}}}
        with contextlib.suppress(OSError):
            Path(launch.error_file).write_text(json.dumps(told), encoding="utf-8")


def _store(launch: Launch) -> Any:
    from torch.distributed import PrefixStore, TCPStore

    listens = launch.rank == 0 and not launch.agent_store
    store = TCPStore(launch.address, launch.port, launch.world, listens, timeout=timedelta(seconds=PATIENCE))
    # A launcher that starts its processes again keeps its store, with what the earlier ones have left there.
    return PrefixStore(f"cci/{launch.attempt}", store)
