import pytest

from src.console.cli import UserError
from src.files import yaml_files
from src.files.yaml_files import dump_yaml, load_yaml
from src.model.recipes import make_recipe

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(9)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 10)}]}}\n" for n in range(9))


def test_sound_yaml_is_its_value() -> None:
    assert load_yaml("a: &x [1, 2]\nb: *x", "f") == {"a": [1, 2], "b": [1, 2]}
    assert load_yaml("", "f") is None
    assert load_yaml("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}", "f")["d"] == {"b": 3, "c": 2}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "not YAML"),
        ("a: !!int x", "not YAML: invalid literal"),
        ("day: 2020-13-45", "not YAML: month must be"),
        ("a: !!python/object:os.system x", "not YAML"),
        ("a: !!binary é", "not YAML"),
        ("a: !!bool x", "not YAML"),
        ("a: !!float x", "not YAML"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("&a [*a]", "nested too deeply, or contains itself"),
        ("[" * 90_000, "nested too deeply"),
        (BOMB, "its aliases"),
        (MERGES, "its aliases"),
        ("a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}]\n" for n in range(99)), "nested too deeply"),
        ("a: 1\nb: 2\na: 3", "the key 'a' stands in line 1 and again in line 3; allowed: once"),
        ("b: {yes: 1,\n on: 2}", "the key 'on' stands in line 1 and again in line 2"),
        ("a: " + "9" * 5000, "line 1: found a number of 5,000 digits; allowed: 1,000"),
        (r'a: "\ud800"', "line 1: found half a character"),
        ("a" * 100_001, "too large; allowed: 100,000 characters"),
    ],
)
def test_odd_yaml_is_told_in_one_message(text: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"^mine\.yaml.*{told}"):
        load_yaml(text, "mine.yaml")


def test_as_many_values_as_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_files, "MOST_VALUES", 4)
    assert load_yaml("[1, 2, 3]", "f") == [1, 2, 3]
    with pytest.raises(UserError, match="more than 4 values"):
        load_yaml("[1, 2, 3, 4]", "f")


@pytest.mark.parametrize("seed", [-1, 2**32, 2**53 + 1])
def test_a_seed_that_no_library_takes(seed: int) -> None:
    with pytest.raises(UserError, match=rf"seed: found {seed}, allowed: 0 to 4294967295"):
        make_recipe({"backbone": "eeve", "seed": seed}, "mine.yaml")
    assert make_recipe({"backbone": "eeve", "seed": 2**32 - 1}, "mine.yaml").seed == 2**32 - 1


@pytest.mark.parametrize(
    "text", ["a\x85b", "\x85", "a\u2028b\n", "\u2029", "a\r\nb", " a\n\n b", "가\t", "\ufeff", "~", "1e5"]
)
def test_any_text_is_the_same_after_writing_and_reading(text: str) -> None:
    assert load_yaml(dump_yaml({"a": text, "b": [text]}), "f") == {"a": text, "b": [text]}
