"""Calls of a critic: a language model that a search asks for criticism and for new texts. Each answer is kept."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.console.cli import UserError
from src.files.reading import parse_json, read_bytes
from src.search.addresses import shortened

Ask = Callable[[str, str], str]
"""(message, system text) → answer."""

MOST_BYTES = 500_000_000
"""Of the file of answers."""
NEW_TEXT = "<IMPROVED_VARIABLE>"
"""TextGrad's tag before a new text."""
THOUGHT, THOUGHT_END = "<think>", "</think>"
GOES_ON = "What was done is kept; the same command goes on."


@dataclass(frozen=True)
class AnswerSettings:
    """How a critic answers. max_tokens: of an answer; seconds: the longest wait for an answer of an endpoint."""

    temperature: float
    max_tokens: int
    seed: int
    seconds: float = 600.0


class CallsUsedUp(Exception):
    """The cap on calls is reached."""


class Calls:
    """Asks the critic at most `most` times. Each answer is kept in `file`, and not asked for a second time.

    The file keeps the answers unchanged. The returned text lacks the critic's thoughts before the answer.
    """

    def __init__(self, ask: Ask, file: Path, most: int) -> None:
        self.ask, self.file, self.most = ask, file, most
        text = read_bytes(file, MOST_BYTES).decode("utf-8", errors="replace") if file.is_file() else ""
        self.cut_off = bool(text) and not text.endswith("\n")
        self.answers: dict[str, str] = {}
        # JSON escapes "\n" and "\r" in an answer, but not U+2028 and the like, at which str.splitlines would cut.
        for line in text.split("\n"):
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut off is asked again
                found = parse_json(line)
                self.answers[str(found["key"])] = str(found["answer"])

    @property
    def count(self) -> int:
        return len(self.answers)

    def __call__(self, message: str, system: str = "") -> str:
        key = hashlib.sha256(f"{system}\n\0{message}".encode()).hexdigest()
        if key not in self.answers:
            if self.count >= self.most:
                raise CallsUsedUp
            started = time.monotonic()
            answer = _without_half_surrogates(self.ask(message, system))
            if after_thoughts(answer) is None:
                raise UserError(
                    f"the critic's answer ends within its thoughts ({shortened(answer)}). "
                    f"Give it more room with --answer_tokens. {GOES_ON}"
                )
            call = {"key": key, "system": system, "message": message, "answer": answer}
            self._keep({**call, "seconds": time.monotonic() - started})
            self.answers[key] = answer
        answer = self.answers[key]
        found = after_thoughts(answer)
        return answer if found is None else found

    def _keep(self, call: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8", newline="\n") as file:
            file.write("\n" * self.cut_off + json.dumps(call, ensure_ascii=False) + "\n")
        self.cut_off = False


def after_thoughts(answer: str) -> str | None:
    """A critic's answer after its thoughts; None when they never end.

    Thoughts may name the tags that are to be used, and a new text may contain `</think>`. So the thoughts end at the
    last `</think>` before the last new text.
    """
    end = answer.rfind(THOUGHT_END, 0, max(answer.rfind(NEW_TEXT), 0))
    thinks = answer.lstrip().startswith(THOUGHT)
    if end < 0 and (thinks or NEW_TEXT not in answer):
        end = answer.rfind(THOUGHT_END)
    if end >= 0:
        return answer[end + len(THOUGHT_END) :].strip()
    return None if thinks else answer


def _without_half_surrogates(text: str) -> str:
    """JSON may hold halves of surrogate pairs, UTF-8 may not."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
