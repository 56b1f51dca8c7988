"""The critic that `--engine` names: an OpenAI-compatible endpoint, or a model that is loaded here."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

from src.console.cli import UserError
from src.search.addresses import Address, is_local, looks_like_address
from src.search.calls import AnswerSettings
from src.search.endpoint import Endpoint


@dataclass(frozen=True)
class Engine:
    """The flags of the critic.

    name         address of an endpoint, or id or folder of a model
    model        the model's name at the endpoint
    key_env      the variable with the endpoint's key, where one is named
    send_items   whether items may be sent to an endpoint that is not on this machine
    """

    name: str
    model: str | None
    key_env: str | None
    send_items: bool
    answers: AnswerSettings

    @property
    def is_endpoint(self) -> bool:
        return looks_like_address(self.name)

    @property
    def key_variable(self) -> str:
        return self.key_env or "OPENAI_API_KEY"

    def check(self) -> None:
        """UserError for mistakes that can be seen without calling the critic."""
        answers = self.answers
        if answers.max_tokens < 1 or not 0 < answers.seconds < math.inf or not answers.temperature >= 0:
            raise UserError(
                f"--answer_tokens {answers.max_tokens}, --answer_seconds {answers.seconds:g}, "
                f"--temperature {answers.temperature:g}: allowed: 1 or more, more than 0, 0 or more."
            )
        if not self.is_endpoint:
            return
        address = Address(self.name)
        if not self.model:
            raise UserError(f"--engine {address} needs --engine_model, the name of the model there.")
        local = is_local(self.name)
        # An address may hold a password, or a key in its query; then no other key is needed.
        needed = self.key_env is not None or not (local or address.secrets)
        if needed and not os.environ.get(self.key_variable):
            where = "on" if local else "not on"
            raise UserError(
                f"--engine {address} is {where} this machine, and {self.key_variable} holds no key for it. "
                "Set it, or name another variable with --key_env."
            )
        if not local and not self.send_items:
            raise UserError(
                f"--engine {address} is not on this machine: dialogues and options would be sent there. "
                "Where the data's terms allow it, say so with --send_items; the official corpus may not be passed on."
            )

    def endpoint(self, report: Callable[[str], None]) -> Endpoint:
        """report: gets a line for each try that failed."""
        assert self.model is not None
        # A server on this machine gets no key that was not meant for it.
        meant = self.key_env or not is_local(self.name)
        key = os.environ.get(self.key_variable) if meant else None
        return Endpoint(self.name, self.model, key, self.answers, report)
