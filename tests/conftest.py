"""What several tests need: items of the official shape, every word of them invented."""

import gc
import os
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from src import task

# Before numpy is there: threads of its libraries that wait for each other take the cores from the other tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing is garbage while tests are collected and torch is imported.
gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """What is there before the tests of a file, a million objects of torch and transformers among it, is garbage never:
    the collector leaves it out. It would look through all of it for half a second in every training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests has a terminal of some width; output that is caught has none."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def same_task() -> Iterator[None]:
    """A test that works on another task leaves none behind; fixtures of a module may keep theirs for its tests."""
    before = task._chosen
    yield
    task.use(before)


@pytest.fixture
def four_options() -> Iterator[task.Task]:
    """Within, the task is another: four options, and categories of its own."""
    made = task.Task("날씨 추론", ("까닭", "결과"), tuple(f"choice_{number}" for number in range(1, 5)), tuple("ABCD"))
    task.use(made)
    yield made
    task.use(None)


OFFICIAL = task.load_task(task.FILE)
CATEGORIES, OUTPUTS, LETTERS, ORDERS = OFFICIAL.categories, OFFICIAL.options, OFFICIAL.letters, OFFICIAL.all_orders

# Per dialogue: the turns of speakers 1 and 2 by turns, and three things one may say of them.
DIALOGUES = (
    (
        (
            "우산도 없는데 비가 쏟아지네.",
            "편의점에서 하나 사지 그래?",
            "집에 우산이 벌써 일곱 개야.",
            "그럼 내 것을 같이 쓰자.",
        ),
        (
            "화자1은 일기 예보를 보지 않고 집을 나섰다.",
            "화자1은 우산을 사러 백화점에 갔다.",
            "화자1은 비를 맞은 적이 없다.",
        ),
    ),
    (
        (
            "화분에 물 줬어?",
            "아니, 네가 주는 줄 알았어.",
            "잎이 다 말라 버렸네.",
            "지금이라도 듬뿍 주자.",
        ),
        (
            "두 사람은 누가 물을 줄지 정하지 않았다.",
            "두 사람은 어제 화분을 새로 샀다.",
            "두 사람은 화분을 선물로 보냈다.",
        ),
    ),
    (
        (
            "연주회가 내일인데 손이 떨려.",
            "석 달이나 연습했잖아.",
            "그래도 틀릴까 봐 겁나.",
            "틀려도 끝까지 치면 돼.",
        ),
        (
            "화자1은 연주회를 앞두고 긴장했다.",
            "화자1은 연주회를 취소하기로 했다.",
            "화자1은 오늘 처음 피아노를 쳤다.",
        ),
    ),
)


def make_item(number: int, **changes: Any) -> dict[str, Any]:
    """The raw object of item `number`, sound and labelled; equal numbers give equal items.

    Three items in a row share a dialogue; category, right option and its place go round. `changes` replace keys of the
    object or of its `input` (`make_item(1, category="전제", output="")`); the value `...` takes the key out.
    """
    group, turn = divmod(number, 3)
    turns, options = DIALOGUES[group % len(DIALOGUES)]
    label = number % len(OUTPUTS)
    # The first option of a dialogue is the right one: turned to stand at `label`.
    placed = [options[(place - label) % len(options)] for place in range(len(options))]
    item: dict[str, Any] = {
        "id": f"made-{number:04d}",
        "input": {
            "conversation": [
                # The count of the group keeps dialogues of other groups apart.
                {"speaker": 1 + index % 2, "utterance": text, "utterance_id": f"d{group}.{index + 1}"}
                for index, text in enumerate([*turns, f"벌써 {group + 1}번째 이야기야."])
            ],
            "reference_id": [f"d{group}.{turn + 1}"],
            "category": CATEGORIES[number % len(CATEGORIES)],
            **dict(zip(OUTPUTS, placed, strict=True)),
        },
        "output": OUTPUTS[label],
    }
    for key, value in changes.items():
        owner = item if key in ("id", "input", "output") or key not in item["input"] else item["input"]
        if value is ...:
            del owner[key]
        else:
            owner[key] = value
    return item


def odd_items(count: int, **changes: Any) -> list[dict[str, Any]]:
    """`count` raw items, each with all that is odd and hinders no answer (`src/items/oddities.py`)."""
    items = []
    for number in range(count):
        item = make_item(number, id=9000 + number, topic="날씨", **changes)
        inner = item["input"]
        turns, target = inner["conversation"], inner["reference_id"][0]
        inner["reference_id"] = [target, f"{target} "]
        inner["category"] = f" {inner['category']}\u200b"
        inner["inference_3"] = unicodedata.normalize("NFD", inner["inference_3"]) + "\n"
        turns[4] |= {"speaker": "3", "utterance": "앗\ud83d \ue000\u2028"}
        turns += [
            {"speaker": "1", "utterance": 7, "utterance_id": "more"},
            {"speaker": 2.0, "utterance": None, "utterance_id": "more"},
            {"speaker": 1, "utterance": "  ", "emotion": None},
        ]
        items.append(item)
    return items


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a toy backbone (tests/toys.py), model and tokenizer; made once, not to be changed."""
    from tests import toys  # torch is for those who ask

    return cache(lambda short: toys.save(short, tmp_path_factory.mktemp(short)))


@pytest.fixture
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of the test's own: what this machine has downloaded must not change a result."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def compiler() -> Iterator[None]:
    """Layers are compiled whatever an earlier test has set, nothing was before, and nothing stays set."""
    import torch

    from tests import toys

    torch._dynamo.reset()
    with toys.limits(), torch.compiler.set_stance("default"):
        yield
    torch._dynamo.reset()
