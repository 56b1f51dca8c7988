"""The page's words in both languages. The page holds both, and its style shows one."""

from functools import cache
from pathlib import Path

from markupsafe import Markup

from src.files.yaml_files import read_yaml

FILE = Path(__file__).parent / "words.yaml"
LANGUAGES = ("ko", "en")


@cache
def words() -> dict[str, tuple[str, str]]:
    """Key → the words in each of `LANGUAGES`."""
    found = read_yaml(FILE)
    assert isinstance(found, dict), FILE
    return {key: (korean, english) for key, (korean, english) in found.items()}


def say(key: str, **values: object) -> Markup:
    """The words in both languages, with `values`, which are escaped, filled in."""
    spans = [
        Markup('<span class="{0}" lang="{0}">{1}</span>').format(language, Markup(text).format(**values))
        for language, text in zip(LANGUAGES, words()[key], strict=True)
    ]
    return Markup("").join(spans)


def script_words() -> dict[str, tuple[str, str]]:
    """Those that the page's script uses, without the js_ before their keys."""
    return {key.removeprefix("js_"): both for key, both in words().items() if key.startswith("js_")}
