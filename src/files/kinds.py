"""Whether a value from a file is of the type that the code says."""

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type `hint`: a class, a union, a mapping or sequence of such, or Any. A whole number is
    a float as well; true and false are no numbers. None fits where `hint` says so, and in a mapping.
    """
    if hint is Any:
        return True
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    inner = get_args(hint)
    if get_origin(hint) is Mapping or get_origin(hint) is dict:
        return isinstance(value, Mapping) and all(
            fits(key, inner[0]) and (one is None or fits(one, inner[1])) for key, one in value.items()
        )
    if get_origin(hint) in (Sequence, list, tuple):
        return isinstance(value, list | tuple) and all(fits(one, inner[0]) for one in value)
    return isinstance(value, get_origin(hint) or hint or type(None))
