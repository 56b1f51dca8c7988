"""YAML that users write: whatever is odd in it is told in one line."""

from typing import Any

import yaml

from src.console.cli import UserError

MOST_VALUES = 100_000
"""In one file, those that aliases repeat counted each time."""


def load_yaml(text: str, where: str) -> Any:
    """The value of `text`; None where it is empty. UserError, which names `where`, for what is no YAML, is nested too
    deeply, or grows out of all measure by its aliases.
    """
    try:
        value = yaml.safe_load(text)
        values = _count(value)
    except RecursionError as error:
        raise UserError(f"{where}: this YAML is nested too deeply, or holds itself.") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # PyYAML lets through what the types of its own tags raise (`!!int x`, a day that no month has).
        raise UserError(f"{where}: this is not YAML: {error}") from error
    if values > MOST_VALUES:
        raise UserError(f"{where}: its aliases (*name) make more than {MOST_VALUES:,} values of it.")
    return value


def _count(value: Any, before: int = 0) -> int:
    """How many values there are in `value`, counting on from `before`, up to one more than `MOST_VALUES`."""
    before += 1
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | set) else ()
    for one in inner:
        if before > MOST_VALUES:
            break
        before = _count(one, before)
    return before
