import pytest

from src.eda import measures
from src.prompt.parts import PROMPT_PARTS, prompt_parts


def test_tokens_of_the_parts_add_up() -> None:
    corpus = measures.sample_corpus()
    encoders = measures.find_encoders(corpus)
    assert len(encoders) == 8
    items = corpus.splits["train"][:3]
    for name, encoder in encoders.items():
        for one, parts, example in zip(items, prompt_parts(encoder, items), encoder.for_scoring(items), strict=True):
            assert parts.total() == len(example.ids), name
            assert set(parts) == set(PROMPT_PARTS), name
            said = encoder.tokenizer(" ".join(turn.text for turn in one.dialogue), add_special_tokens=False)[
                "input_ids"
            ]
            assert parts["대화"] == pytest.approx(len(said), rel=0.3), name
            assert parts["대상 발화"] < parts["대화"], name
