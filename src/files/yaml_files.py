"""YAML that users write. Anything wrong with it is reported in one message."""

import re
from pathlib import Path
from typing import Any

import yaml

from src.console.cli import UserError
from src.files.reading import HALF, MOST_DIGITS, read_text, refuse_nested, shortened

MOST_BYTES = 100_000
"""Of one file, which PyYAML parses in about a second. Recipes and prompts hold a few thousand."""
MOST_VALUES = 100_000
"""Most values in one file. A value that aliases repeat counts each time."""
MOST_NESTED = 64
"""Values within values."""
RARE_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML file. UserError as in `reading.read_text` and `load_yaml`."""
    return load_yaml(read_text(path, MOST_BYTES), str(path))


def load_yaml(text: str, where: str) -> Any:
    """The value of `text`; None if it is empty. UserError, which names `where`, if it is not YAML, exceeds a bound,
    names a key twice, or holds half a character.
    """
    if len(text) > MOST_BYTES:
        raise UserError(f"{where} is too large; allowed: {MOST_BYTES:,} characters. Is it another kind of file?")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, loader, where)
        value = loader.construct_document(node)
        refuse_nested(value)  # aliases of aliases
        return value
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(
            f"{where}: this YAML is nested too deeply, or contains itself; "
            f"allowed: {MOST_NESTED} values within each other."
        ) from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # PyYAML does not catch what the types of its own tags raise (`!!int x`, the 45th of a month).
        raise UserError(f"{where}: this is not YAML: {error}") from error


def dump_yaml(value: Any) -> str:
    """`value` as YAML, in its own order; `load_yaml` gives the same value."""
    text: str = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=120)
    return text


class _Dumper(yaml.SafeDumper):
    """PyYAML itself writes rare line ends as they are, and reads them as others."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if RARE_LINE_ENDS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted)


class _Loader(yaml.SafeLoader):
    """RecursionError already at `MOST_NESTED`: PyYAML takes ever longer for what is deeper."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MOST_NESTED:
            raise RecursionError
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _check(node: yaml.Node, loader: yaml.SafeLoader, where: str) -> None:
    """UserError for what PyYAML would take without a word, or without an end."""
    if _count(node, {}, set()) > MOST_VALUES:
        raise UserError(f"{where}: its aliases (*name) expand it to more than {MOST_VALUES:,} values.")
    seen, left = {id(node)}, [node]
    while left:
        one = left.pop()
        if isinstance(one, yaml.ScalarNode):
            _check_scalar(one, where)
        elif isinstance(one, yaml.MappingNode):
            _check_keys(one, loader, where)
        inner = [inner for inner in _inner(one) if id(inner) not in seen]
        seen |= set(map(id, inner))
        left += inner


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _count(node: yaml.Node, known: dict[int, int], around: set[int]) -> int:
    """The number of values in `node`, with repetitions. RecursionError when it is one of those `around` it."""
    if id(node) in around:
        raise RecursionError
    if id(node) not in known:
        known[id(node)] = 1 + sum(_count(one, known, around | {id(node)}) for one in _inner(node))
    return known[id(node)]


def _check_scalar(node: yaml.ScalarNode, where: str) -> None:
    line = node.start_mark.line + 1
    if HALF.search(node.value):
        raise UserError(
            f"{where}, line {line}: found half a character in {shortened(node.value)!a}; allowed: whole ones."
        )
    if len(node.value) > MOST_DIGITS and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        raise UserError(
            f"{where}, line {line}: found a number of {len(node.value):,} digits; allowed: {MOST_DIGITS:,}."
        )


def _check_keys(node: yaml.MappingNode, loader: yaml.SafeLoader, where: str) -> None:
    """UserError for a key that is there twice: PyYAML would keep the last in silence."""
    lines: dict[Any, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
            _check_scalar(key, where)
            value, line = loader.construct_object(key), key.start_mark.line + 1
            if value in lines:
                raise UserError(
                    f"{where}: the key {shortened(key.value)!r} stands in line {lines[value]} and again in line {line}"
                    "; allowed: once. Remove one of the two."
                )
            lines[value] = line
