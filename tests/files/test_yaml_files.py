import pytest

from src.console.cli import UserError
from src.files import yaml_files
from src.files.yaml_files import load_yaml
from src.model.recipes import make_recipe

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(9)
)


def test_sound_yaml_is_its_value() -> None:
    assert load_yaml("a: &x [1, 2]\nb: *x", "f") == {"a": [1, 2], "b": [1, 2]}
    assert load_yaml("", "f") is None


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
        (BOMB, "its aliases"),
    ],
)
def test_odd_yaml_is_told_in_one_message(text: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"^mine\.yaml: .*{told}"):
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
