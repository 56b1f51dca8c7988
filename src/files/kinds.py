"""Whether a value from a file is of the type that the code says."""

from collections.abc import Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type `hint`: a class, a union, a mapping or sequence of such, or Any. A whole number is
    a float as well; true and false are no numbers. None fits where `hint` says so, and in a mapping.
    """
    if hint is Any:
        return True
    if hint is int or hint is float:
        return isinstance(value, int | hint) and not isinstance(value, bool)
    origin, inner = _parts(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Mapping or origin is dict:
        return isinstance(value, Mapping) and all(
            fits(key, inner[0]) and (one is None or fits(one, inner[1])) for key, one in value.items()
        )
    if origin in (Sequence, list, tuple):
        return isinstance(value, list | tuple) and all(fits(one, inner[0]) for one in value)
    return isinstance(value, origin or hint or type(None))


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Of files of scores a hint is asked for some hundred thousand times, and taking it apart is slow."""
    return get_origin(hint), get_args(hint)
