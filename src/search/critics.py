"""Critics: language models that a search for prompts asks, behind an endpoint or loaded here.

Services answer oddly. What a second try may mend is tried again; the rest is a UserError of one line that names the
endpoint, what came back, and what to do. Nothing that opens a door (a password, a key) is printed or stored.
"""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from src.console.cli import UserError
from src.search.addresses import Address, is_local, shortened

Ask = Callable[[str, str], str]
"""(message, system text) → answer."""

NEW_TEXT = "<IMPROVED_VARIABLE>"
"""TextGrad's tag before a new text."""
THOUGHT, THOUGHT_END = "<think>", "</think>"

BUSY_TRIES = 7
"""How often an endpoint that is busy, fails, or drops the connection is asked in all."""
ODD_TRIES = 3
"""How often after an answer that cannot be used."""
SILENT_TRIES = 2
"""How often after no answer within the time limit."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, at most."""
CONNECT_SECONDS = 10.0
GOES_ON = "What was done is kept; the same command goes on."


class Spent(Exception):
    """The cap on calls is reached."""


class Calls:
    """Asks the critic: each answer is kept in `file` and not asked for twice, and there are at most `most`.

    The file has the answers as they came; what is returned is what stands behind a critic's thoughts.
    """

    def __init__(self, ask: Ask, file: Path, most: int) -> None:
        self.ask, self.file, self.most = ask, file, most
        text = file.read_bytes().decode("utf-8", errors="replace") if file.is_file() else ""
        self.cut_off = bool(text) and not text.endswith("\n")
        self.answers: dict[str, str] = {}
        # JSON writes "\n" and "\r" in an answer as signs of their own, but not U+2028 and its like: str.splitlines
        # would part a line there.
        for line in text.split("\n"):
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut off is asked again
                found = json.loads(line)
                self.answers[str(found["key"])] = str(found["answer"])

    @property
    def count(self) -> int:
        return len(self.answers)

    def __call__(self, message: str, system: str = "") -> str:
        key = hashlib.sha256(f"{system}\n\0{message}".encode()).hexdigest()
        if key not in self.answers:
            if self.count >= self.most:
                raise Spent
            started = time.monotonic()
            answer = _writable(self.ask(message, system))
            if behind_thoughts(answer) is None:
                raise UserError(
                    f"the critic's answer ends within its thoughts ({shortened(answer)}). Give it more room with "
                    f"--answer_tokens. {GOES_ON}"
                )
            row = {"key": key, "system": system, "message": message, "answer": answer}
            self._keep({**row, "seconds": time.monotonic() - started})
            self.answers[key] = answer
        answer = self.answers[key]
        found = behind_thoughts(answer)
        return answer if found is None else found

    def _keep(self, row: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8", newline="\n") as file:
            file.write("\n" * self.cut_off + json.dumps(row, ensure_ascii=False) + "\n")
        self.cut_off = False


def behind_thoughts(answer: str) -> str | None:
    """What a critic says once it has thought; None when it never stops thinking.

    Thoughts may name the tags that they are to use, and a new text may speak of `</think>`: what counts is the last end
    of thoughts before the last new text.
    """
    end = answer.rfind(THOUGHT_END, 0, max(answer.rfind(NEW_TEXT), 0))
    thinks = answer.lstrip().startswith(THOUGHT)
    if end < 0 and (thinks or NEW_TEXT not in answer):
        end = answer.rfind(THOUGHT_END)
    if end >= 0:
        return answer[end + len(THOUGHT_END) :].strip()
    return None if thinks else answer


def _writable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


@dataclass(frozen=True)
class Wish:
    """How a critic answers. `max_tokens`: of an answer; `seconds`: the longest wait for one from an endpoint."""

    temperature: float
    max_tokens: int
    seed: int
    seconds: float = 600.0


class Odd(Exception):
    """An answer that cannot be used: what came back, what to do, and whether another try may help."""

    def __init__(self, found: str, remedy: str, again: bool = True) -> None:
        super().__init__(found)
        self.found, self.remedy, self.again = found, remedy, again


class Endpoint:
    """A critic behind an OpenAI-compatible endpoint. `tell` gets a line for each try that failed."""

    def __init__(
        self, url: str, model: str, key: str | None, wish: Wish, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        import openai

        # These print whole addresses where a user has turned their messages on.
        for name in ("httpx", "httpcore", "openai"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.address, self.model, self.wish, self.tell = Address(url, key), model, wish, tell
        try:
            self.client = openai.OpenAI(
                base_url=self.address.plain,
                default_query=self.address.query,
                api_key=key or "none",
                max_retries=0,  # how often a second try makes sense depends on what went wrong
                timeout=openai.Timeout(wish.seconds, connect=CONNECT_SECONDS),
                # A proxy of the environment is for what lies beyond this machine.
                http_client=openai.DefaultHttpxClient(trust_env=not is_local(url), auth=self.address.login),
            )
        except (ImportError, OSError, ValueError) as error:  # httpx's, of a proxy or a certificate that cannot be used
            raise UserError(
                f"--engine {self.address}: the connection cannot be made ({self.hidden(error)}). Look at the "
                "environment: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE, SSL_CERT_DIR."
            ) from error

    def hidden(self, text: object) -> str:
        return shortened(self.address.hide(str(text)))

    def __call__(self, message: str, system: str) -> str:
        tries = 0
        while True:
            tries += 1
            try:
                return self._once(message, system, seed=self.wish.seed + tries - 1)
            except Exception as error:
                problem, most, wait = self._judge(error, tries)
                if tries >= most:
                    times = f" {tries} times" if tries > 1 else ""
                    raise UserError(f"--engine {self.address} {problem.found}{times}. {problem.remedy}") from error
            self.tell(f"--engine {self.address} {problem.found}; asked again in {wait:g} s ({tries + 1} of {most})")
            time.sleep(wait)

    def _once(self, message: str, system: str, seed: int) -> str:
        turns: Any = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": message}]
        answer = self.client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=turns,
            temperature=self.wish.temperature,
            max_tokens=self.wish.max_tokens,
            seed=seed,
        )
        # The client's own reading takes what it gets for an answer, whatever it is.
        return read_answer(answer.http_response.content, self.address, self.wish.max_tokens)

    def _judge(self, error: Exception, tries: int) -> tuple[Odd, int, float]:
        """(what to say, how many tries in all, seconds until the next) after this error; others are not ours."""
        import openai

        wait = min(0.5 * 2 ** (tries - 1), LONGEST_WAIT)
        if isinstance(error, Odd):
            return error, ODD_TRIES if error.again else 1, wait
        if isinstance(error, openai.APITimeoutError):
            found = f"gave no answer within {self.wish.seconds:g} s"
            remedy = f"See whether it still works, or give it longer with --answer_seconds. {GOES_ON}"
            return Odd(found, remedy), SILENT_TRIES, wait
        if isinstance(error, openai.APIConnectionError):
            found = f"cannot be reached ({self.hidden(_cause(error))})"
            return Odd(found, f"See whether it runs, and whether the address is right. {GOES_ON}"), BUSY_TRIES, wait
        if isinstance(error, openai.APIStatusError):
            code = error.status_code
            told = error_text(error.response.content, self.address)
            found = f"refuses the call for model {self.model}: {code} {self.hidden(told)}"
            busy = code in (408, 409, 425, 429) or code >= 500
            wait = max(wait, _asked_to_wait(error.response.headers.get("retry-after")))
            return Odd(found, _remedy(code, self.address)), BUSY_TRIES if busy else 1, wait
        raise error

    def check(self) -> None:
        """UserError where it is plain at once that no call can succeed: nobody listens, a web page answers, or the key
        is refused. An endpoint that lists no models, or is busy, passes.
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
            problem, *_ = self._judge(error, 1)
        except openai.APIStatusError as error:
            if error.status_code != 401:
                return
            problem, *_ = self._judge(error, 1)
        except Odd as error:
            problem = error
        else:
            return
        raise UserError(f"--engine {self.address} {problem.found}. {problem.remedy}")


def read_answer(body: bytes, address: Address, max_tokens: int) -> str:
    """The text of a chat completion's first choice. Odd for whatever else came with a status of 200."""
    if _is_page(body):
        raise _page(body, address)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        what = "JSON that is cut off or damaged" if body.lstrip()[:1] in (b"{", b"[") else "no JSON"
        raise Odd(f"answered with {what} ({_told(body, address)})", _see(address)) from error
    choices = found.get("choices") if isinstance(found, dict) else None
    if not (isinstance(choices, list) and choices):
        told = error_text(body, address)
        raise Odd(f"answered without choices: {address.hide(shortened(told))}", _see(address))
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(message, dict):
        raise Odd(f"answered with a choice that has no message ({_told(body, address)})", _see(address))
    content = message.get("content")
    if isinstance(content, list):  # parts
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if isinstance(content, str) and content.strip():
        return content
    if not isinstance(content, str | None):
        told = shortened(address.hide(json.dumps(content, ensure_ascii=False)))
        raise Odd(f"answered with a content that is no text ({told})", _see(address))
    thoughts = next((text for key in ("reasoning_content", "reasoning") if (text := message.get(key))), "")
    ended = f"finish_reason {choices[0].get('finish_reason')}"
    if thoughts:
        raise Odd(
            f"answered with thoughts alone, and no content ({ended}: {shortened(address.hide(str(thoughts)))})",
            f"Give it more room with --answer_tokens, now {max_tokens}, or turn the model's thinking off at the "
            f"server. {GOES_ON}",
        )
    told = f", {shortened(address.hide(str(message['refusal'])))}" if message.get("refusal") else ""
    raise Odd(
        f"answered with no content ({ended}{told})",
        f"See what the server logs, or give it more room with --answer_tokens, now {max_tokens}. {GOES_ON}",
    )


def error_text(body: bytes, address: Address) -> str:
    """What a server says went wrong, in whichever of the usual places; else the body's beginning."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return _told(body, address)
    for key in ("error", "detail", "message", "msg"):
        inner = found.get(key) if isinstance(found, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("message"), str):
            code = inner.get("code")
            return shortened(address.hide(inner["message"] + (f" (code {code})" if code is not None else "")))
        if isinstance(inner, str) and inner:
            return shortened(address.hide(inner))
    return _told(body, address)


def _told(body: bytes, address: Address) -> str:
    return shortened(address.hide(body.decode("utf-8", errors="replace"))) or "an empty body"


def _see(address: Address) -> str:
    ending = "" if "/v1" in address.plain else ", which mostly ends in /v1"
    return f"Is this the base address of an OpenAI-compatible server{ending}, and is the server well? {GOES_ON}"


def _is_page(body: bytes) -> bool:
    return body.lstrip()[:1] == b"<"


def _page(body: bytes, address: Address) -> Odd:
    remedy = _see(address)
    return Odd(f"answered with a web page, not with JSON ({_told(body, address)})", remedy, again=False)


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


def in_process(model_id: str, device: Any, wish: Wish) -> Ask:
    """A critic that is loaded here: a hub id or a folder, with its own chat template."""
    import torch
    from transformers import GenerationConfig

    from src.model import load as models
    from src.model.recipes import make_recipe

    recipe = make_recipe({"model_id": model_id, "method": "lora"}, "--engine")
    tokenizer, network = models.load_tokenizer(recipe), models.load_base(recipe, device).eval()
    if tokenizer.chat_template is None:
        raise UserError(f"--engine {model_id}: its tokenizer ships no chat template; a critic needs one.")
    config = GenerationConfig(
        max_new_tokens=wish.max_tokens,
        do_sample=wish.temperature > 0,
        temperature=wish.temperature or 1.0,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=True,
    )

    def ask(message: str, system: str) -> str:
        turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": message}]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError:  # no system turn
            turns = [{"role": "user", "content": f"{system}\n\n{message}"}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(device)
        limit = models.context_length(network.config)
        if limit and ids.shape[1] >= limit:
            raise UserError(
                f"--engine {model_id}: {ids.shape[1]} tokens do not fit into its context of {limit}; give a smaller "
                "--batch_size."
            )
        with torch.inference_mode(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(wish.seed)
            out = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    return ask
