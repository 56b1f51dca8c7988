from src.console.words import counted, p_text, points_range, some


def test_nouns_are_counted() -> None:
    assert [counted(count, "step") for count in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]


def test_long_lists_are_cut_with_a_sign() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some(list("abcdefg")) == "a, b, c, d, e …"


def test_ps_and_intervals_have_the_digits_that_count() -> None:
    assert [p_text(p) for p in (0.0004, 0.001, 0.0123, 0.5, 1.0)] == ["< .001", ".001", ".012", ".500", "1.000"]
    assert points_range((-0.0189, 0.14)) == "-1.9 to +14.0"
