"""A critic behind an OpenAI-compatible endpoint.

Services fail in many ways. Calls that another try may fix are tried again. Other failures are a UserError of one line
that names the endpoint, its answer, and what to do. No password or key is printed or stored.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from src.console.cli import UserError
from src.search.addresses import Address, is_local, shortened
from src.search.calls import GOES_ON, AnswerSettings

BUSY_TRIES = 7
"""Tries in all where an endpoint is busy, fails, or drops the connection."""
UNUSABLE_TRIES = 3
"""Tries in all where an answer cannot be used."""
SILENT_TRIES = 2
"""Tries in all where no answer comes within the time limit."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, at most."""
CONNECT_SECONDS = 10.0


class UnusableAnswer(Exception):
    """The endpoint's answer, what to do, and whether another try may help."""

    def __init__(self, found: str, remedy: str, again: bool = True) -> None:
        super().__init__(found)
        self.found, self.remedy, self.again = found, remedy, again


@dataclass(frozen=True)
class Failure:
    """A failed try: its message, how many tries are allowed in all, and seconds until the next one."""

    found: str
    remedy: str
    tries: int
    wait: float


class Endpoint:
    """A critic behind an endpoint. `report` gets a line for each try that failed."""

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None,
        settings: AnswerSettings,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        import openai

        # These loggers print whole addresses where a user has turned them on.
        for name in ("httpx", "httpcore", "openai"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.address, self.model, self.settings, self.report = Address(url, key), model, settings, report
        try:
            self.client = openai.OpenAI(
                base_url=self.address.plain,
                default_query=self.address.query,
                api_key=key or "none",
                max_retries=0,  # whether another try makes sense depends on what went wrong
                timeout=openai.Timeout(settings.seconds, connect=CONNECT_SECONDS),
                # A proxy of the environment is for other machines.
                http_client=openai.DefaultHttpxClient(trust_env=not is_local(url), auth=self.address.login),
            )
        except (ImportError, OSError, ValueError) as error:  # httpx's, of a proxy or a certificate that cannot be used
            raise UserError(
                f"--engine {self.address}: the connection cannot be made ({self.hidden(error)}). "
                "Look at the environment: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE, SSL_CERT_DIR."
            ) from error

    def hidden(self, text: object) -> str:
        return shortened(self.address.hide(str(text)))

    def __call__(self, message: str, system: str) -> str:
        tries = 0
        while True:
            tries += 1
            try:
                return self._once(message, system, seed=self.settings.seed + tries - 1)
            except Exception as error:
                failed = self._judge(error, tries)
                if tries >= failed.tries:
                    times = f" {tries} times" if tries > 1 else ""
                    raise UserError(f"--engine {self.address} {failed.found}{times}. {failed.remedy}") from error
            self.report(
                f"--engine {self.address} {failed.found}; "
                f"asked again in {failed.wait:g} s ({tries + 1} of {failed.tries})"
            )
            time.sleep(failed.wait)

    def _once(self, message: str, system: str, seed: int) -> str:
        turns: Any = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": message}]
        answer = self.client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=turns,
            temperature=self.settings.temperature,
            max_tokens=self.settings.max_tokens,
            seed=seed,
        )
        # The client itself would take anything for an answer.
        return read_answer(answer.http_response.content, self.address, self.settings.max_tokens)

    def _judge(self, error: Exception, tries: int) -> Failure:
        """The failure that this error means after `tries` tries; an error of another kind is raised again."""
        import openai

        wait = min(0.5 * 2 ** (tries - 1), LONGEST_WAIT)
        if isinstance(error, UnusableAnswer):
            return Failure(error.found, error.remedy, UNUSABLE_TRIES if error.again else 1, wait)
        if isinstance(error, openai.APITimeoutError):
            found = f"gave no answer within {self.settings.seconds:g} s"
            remedy = f"See whether it still works, or give it longer with --answer_seconds. {GOES_ON}"
            return Failure(found, remedy, SILENT_TRIES, wait)
        if isinstance(error, openai.APIConnectionError):
            found = f"cannot be reached ({self.hidden(_cause(error))})"
            remedy = f"See whether it runs, and whether the address is right. {GOES_ON}"
            return Failure(found, remedy, BUSY_TRIES, wait)
        if isinstance(error, openai.APIStatusError):
            code = error.status_code
            told = error_text(error.response.content, self.address)
            found = f"refuses the call for model {self.model}: {code} {self.hidden(told)}"
            busy = code in (408, 409, 425, 429) or code >= 500
            wait = max(wait, _asked_to_wait(error.response.headers.get("retry-after")))
            return Failure(found, _remedy(code, self.address), BUSY_TRIES if busy else 1, wait)
        raise error

    def check(self) -> None:
        """UserError where no call can succeed: no server listens, a web page answers, or the key is refused. An
        endpoint that lists no models, or is busy, passes.
        """
        import httpx
        import openai

        try:
            answer = self.client.with_options(timeout=CONNECT_SECONDS).models.with_raw_response.list()
            if _is_page(answer.http_response.content):
                raise _page(answer.http_response.content, self.address)
        except openai.APIConnectionError as error:
            if not isinstance(error.__cause__, httpx.ConnectError):
                return
            failed = self._judge(error, 1)
        except openai.APIStatusError as error:
            if error.status_code != 401:
                return
            failed = self._judge(error, 1)
        except UnusableAnswer as error:
            failed = self._judge(error, 1)
        else:
            return
        raise UserError(f"--engine {self.address} {failed.found}. {failed.remedy}")


def read_answer(body: bytes, address: Address, max_tokens: int) -> str:
    """The text of a chat completion's first choice. UnusableAnswer for anything else that came with a status of 200."""
    if _is_page(body):
        raise _page(body, address)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        what = "JSON that is cut off or damaged" if body.lstrip()[:1] in (b"{", b"[") else "no JSON"
        raise UnusableAnswer(f"answered with {what} ({_shown(body, address)})", _see(address)) from error
    choices = found.get("choices") if isinstance(found, dict) else None
    if not (isinstance(choices, list) and choices):
        told = error_text(body, address)
        raise UnusableAnswer(f"answered without choices: {address.hide(shortened(told))}", _see(address))
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(message, dict):
        raise UnusableAnswer(f"answered with a choice that has no message ({_shown(body, address)})", _see(address))
    content = message.get("content")
    if isinstance(content, list):  # parts
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if isinstance(content, str) and content.strip():
        return content
    if not isinstance(content, str | None):
        told = shortened(address.hide(json.dumps(content, ensure_ascii=False)))
        raise UnusableAnswer(f"answered with a content that is no text ({told})", _see(address))
    raise _empty(choices[0], address, max_tokens)


def _empty(choice: dict[str, Any], address: Address, max_tokens: int) -> UnusableAnswer:
    """A choice without content: only thoughts, a refusal, or nothing at all."""
    message = choice["message"]
    thoughts = next((text for key in ("reasoning_content", "reasoning") if (text := message.get(key))), "")
    ended = f"finish_reason {choice.get('finish_reason')}"
    if thoughts:
        return UnusableAnswer(
            f"answered with thoughts alone, and no content ({ended}: {shortened(address.hide(str(thoughts)))})",
            f"Give it more room with --answer_tokens, now {max_tokens}, "
            f"or turn the model's thinking off at the server. {GOES_ON}",
        )
    told = f", {shortened(address.hide(str(message['refusal'])))}" if message.get("refusal") else ""
    return UnusableAnswer(
        f"answered with no content ({ended}{told})",
        f"See what the server logs, or give it more room with --answer_tokens, now {max_tokens}. {GOES_ON}",
    )


def error_text(body: bytes, address: Address) -> str:
    """The server's error message, from any of the usual keys; else the beginning of the body."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return _shown(body, address)
    for key in ("error", "detail", "message", "msg"):
        inner = found.get(key) if isinstance(found, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("message"), str):
            code = inner.get("code")
            return shortened(address.hide(inner["message"] + (f" (code {code})" if code is not None else "")))
        if isinstance(inner, str) and inner:
            return shortened(address.hide(inner))
    return _shown(body, address)


def _shown(body: bytes, address: Address) -> str:
    return shortened(address.hide(body.decode("utf-8", errors="replace"))) or "an empty body"


def _see(address: Address) -> str:
    ending = "" if "/v1" in address.plain else ", which mostly ends in /v1"
    return f"Is this the base address of an OpenAI-compatible server{ending}, and does the server work? {GOES_ON}"


def _is_page(body: bytes) -> bool:
    return body.lstrip()[:1] == b"<"


def _page(body: bytes, address: Address) -> UnusableAnswer:
    found = f"answered with a web page, not with JSON ({_shown(body, address)})"
    return UnusableAnswer(found, _see(address), again=False)


def _cause(error: BaseException) -> str:
    """The words of the innermost error that has some; the client's own say "Connection error."."""
    words = str(error)
    while (inner := error.__cause__ or error.__context__) is not None:
        error, words = inner, str(inner) or words
    return words


def _asked_to_wait(header: str | None) -> float:
    try:
        return min(max(float(header or 0), 0.0), LONGEST_WAIT)
    except ValueError:  # a date
        return 0.0


def _remedy(code: int, address: Address) -> str:
    if code in (401, 403):
        return f"Put the right key into the variable that --key_env names (default: OPENAI_API_KEY). {GOES_ON}"
    if code in (404, 405):
        return f"Does the server have the model of --engine_model? {_see(address)}"
    if code in (402, 429) or code >= 500:
        return f"Wait until it has room. {GOES_ON}"
    return f"If the question is too long for it, give a smaller --batch_size or --answer_tokens. {GOES_ON}"
