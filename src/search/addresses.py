"""Addresses of services: masking their secrets, and telling whether they are on this machine."""

import re
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from src.console.cli import UserError

MASK = "***"
HARMLESS = ("api-version", "api_version", "version")
"""Names in a query whose values are shown. Any other may be a key, and is hidden."""
SHOWN_CHARACTERS = 200
ALLOWED = (
    "allowed: http://HOST:PORT/v1 or https://HOST/v1. "
    "In a password the signs / ? # @ : are written as %2F %3F %23 %40 %3A."
)


class Address:
    """The address of a service. `str` gives what may be shown: no password, no key, no values of the query.

    plain   without login and query, for the client
    query   name → value
    login   (user, password) for HTTP's basic authentication, or None

    UserError when it cannot be an address.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        shown = masked(url)
        try:
            parts = urlsplit(url.strip())
            port = parts.port
        except ValueError:  # its message may quote a password
            raise UserError(f"--engine {shown} is no address; {ALLOWED}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--engine {shown} is no address; {ALLOWED}")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.plain = f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "") + parts.path
        self.query: dict[str, object] = dict(parse_qsl(parts.query, keep_blank_values=True))
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        self.login = (user, password) if user or password else None
        values = [value or name for name, value in self.query.items() if name not in HARMLESS]
        # A user without a password is a token, as some services take it.
        self.secrets = [str(one) for one in (key, parts.password, password or user, *values) if one]
        self.shown = shown

    def __str__(self) -> str:
        return self.shown

    def hide(self, text: str) -> str:
        """The text with the passwords and keys of the address masked."""
        return hide(text, self.secrets)


def hide(text: str, secrets: list[str]) -> str:
    """The text with the secrets masked, also where they are written as in an address."""
    forms = {form for secret in secrets for form in (secret, quote(secret, safe=""), quote_plus(secret))}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    return text


def masked(url: str) -> str:
    """An address as it may be shown and stored: login and values of the query are masked. Any other text (a model's
    name) stays as it is. It may be mistyped.
    """
    if "://" not in url and "@" not in url:
        return url
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    host = re.split("[/?#]", rest)[0]
    login = ""
    if "@" in host or ":" in host:  # a password may wrongly hold any character: take all up to the last @
        _, at, rest = rest.rpartition("@")
        login = MASK + at if at else ""
    location, mark, query = rest.partition("#")[0].partition("?")
    if mark:
        fields = [field.partition("=") for field in re.split("[&;]", query)]
        told = [(name + sign if sign else "", value if name in HARMLESS else MASK) for name, sign, value in fields]
        query = "&".join(name + value for name, value in told)
    return scheme + separator + login + location + mark + query


def looks_like_address(engine: str) -> bool:
    """Whether it is a service, not a model's id or folder: `localhost:8000/v1`, `user:password@host`."""
    return "://" in engine or bool(re.match(r"(?:[^/\s]*@)?(?:[\w.-]+|\[[0-9a-fA-F:]+\]):\d+(?:/|$)", engine))


def is_local(url: str) -> bool:
    """Whether a URL stays on this machine."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def shortened(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """The text on one line, cut where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
