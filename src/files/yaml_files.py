"""YAML that users write. Anything wrong with it is reported in one message."""

from typing import Any

import yaml

from src.console.cli import UserError

MOST_VALUES = 100_000
"""Most values in one file. A value that aliases repeat counts each time."""


def load_yaml(text: str, where: str) -> Any:
    """The value of `text`; None if it is empty. UserError, which names `where`, if it is not YAML, is nested too
    deeply, or grows too large by its aliases.
    """
    try:
        value = yaml.safe_load(text)
        values = _count(value)
    except RecursionError as error:
        raise UserError(f"{where}: this YAML is nested too deeply, or contains itself.") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # PyYAML does not catch what the types of its own tags raise (`!!int x`, the 45th of a month).
        raise UserError(f"{where}: this is not YAML: {error}") from error
    if values > MOST_VALUES:
        raise UserError(f"{where}: its aliases (*name) expand it to more than {MOST_VALUES:,} values.")
    return value


def _count(value: Any, before: int = 0) -> int:
    """`before` and the number of values in `value`. Counting stops at one more than `MOST_VALUES`."""
    before += 1
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | set) else ()
    for one in inner:
        if before > MOST_VALUES:
            break
        before = _count(one, before)
    return before
