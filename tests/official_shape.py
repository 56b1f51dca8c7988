"""A zip in the shape of the official download, every word invented, with every oddity that was found in the real one.

Equal arguments give equal bytes. The sizes, the items per dialogue and the turns are those of the official files; the
dialogues are those of the sample corpus, so there is something to learn.
"""

import copy
import io
import itertools
import json
import random
import unicodedata
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.data import SPLITS, dump_items
from src.toy.corpus import make_corpus
from tests.conftest import OUTPUTS

NAME = "대화맥락추론_{}.json"
SMALL = {"train": 30, "dev": 20, "test": 30}

TURNS = (12, 30)
BLANK_UTTERANCES = {"train": 28, "dev": 0, "test": 1}
OPTIONS_WITH_BLANKS = {"train": 14, "dev": 0, "test": 9}
NUMBER = 7
# What two people say to each other when all is said; turns of it fill a dialogue up.
SMALL_TALK = (
    "아 맞다, 저번에 말한 그 드라마 봤어?",
    "아직 두 편밖에 못 봤어 ㅠㅠ",
    "꼭 끝까지 봐. 뒤로 갈수록 재미있어.",
    "name1도 그 얘기를 하더라.",
    "그치? 다들 좋다고 해.",
    "응응 ㅋㅋ 이번 주말에 몰아서 보려고.",
    "보고 나면 꼭 말해 줘.",
    "알았어. 너는 오늘 뭐 먹었어?",
    "그냥 집에서 라면.\n김치가 다 떨어져서 아쉬웠어.",
    "나도 라면 먹고 싶다.",
    "다음에 같이 먹자.",
    "좋아. 그때 연락할게!",
)


def official_splits(small: bool = False) -> dict[str, list[dict[str, Any]]]:
    """The raw items of each split; test with its labels."""
    rng = random.Random("official shape")
    splits = make_corpus(7, SMALL if small else None)
    for split in SPLITS:
        groups = _dialogues(splits[split])
        for items in groups:
            _fill_up(items, rng)
        _blank_some(groups, BLANK_UTTERANCES[split], rng)
        for item in rng.sample(splits[split], OPTIONS_WITH_BLANKS[split]):
            key = rng.choice(OUTPUTS)
            item["input"][key] += rng.choice((" ", "  ", "\n"))
    _say_a_number(splits["test"])
    _share_a_dialogue(splits["train"], splits["dev"])
    twice = next(item for item in splits["dev"] if len(item["input"]["reference_id"]) == 1)
    twice["input"]["reference_id"] *= 2
    pieces = splits["train"][3]["input"]
    pieces["inference_1"] = unicodedata.normalize("NFD", pieces["inference_1"])
    for split in SPLITS:
        _number(splits[split], split)
    return splits


def official_files(small: bool = False, hidden: str | None = "") -> dict[str, bytes]:
    """File name → bytes, with BOM and CRLF. `hidden`: the `output` of the test items; None for items without one."""
    files = {}
    for split, items in official_splits(small).items():
        if split == "test":
            items = [{key: value for key, value in item.items() if key != "output"} for item in items]
            items = items if hidden is None else [{**item, "output": hidden} for item in items]
        files[NAME.format(split)] = b"\xef\xbb\xbf" + dump_items(items).encode().replace(b"\n", b"\r\n")
    return files


def write_official_zip(path: Path, small: bool = False, system: str = "mac", hidden: str | None = "") -> Path:
    """The zip, as the named system's own program packs it: names of a "mac" are NFD and have twins in `__MACOSX`,
    those of Korean "windows" are CP949 without a word of it, "linux" writes plain UTF-8.
    """
    form, encoding = {"mac": ("NFD", "utf-8"), "windows": ("NFC", "cp949"), "linux": ("NFC", "utf-8")}[system]
    files: dict[bytes, bytes] = {}
    for name, content in official_files(small, hidden).items():
        files[unicodedata.normalize(form, f"대화맥락추론/{name}").encode(encoding)] = content
    if system == "mac":
        for name in list(files):
            folder, base = name.split(b"/")
            files[b"__MACOSX/" + folder + b"/._" + base] = b"\0\5\x16\7\0"
    return zipped_with_raw_names(path, files)


def zip_of(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The bytes of a zip with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unpacked(folder: Path, files: Mapping[str, bytes]) -> Path:
    """`folder`, with these files written in it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zipped_with_raw_names(path: Path, files: Mapping[bytes, bytes]) -> Path:
    """A zip whose names are these bytes and do not say in which encoding, as other programs than zipfile write them."""
    stand_ins = {f"{index}".rjust(len(name), "?"): name for index, name in enumerate(files)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for stand_in, name in stand_ins.items():
            archive.writestr(zipfile.ZipInfo(stand_in), files[name], zipfile.ZIP_DEFLATED)
    content = buffer.getvalue()
    for stand_in, name in stand_ins.items():
        assert content.count(stand_in.encode()) == 2  # before the member and in the directory
        content = content.replace(stand_in.encode(), name)
    path.write_bytes(content)
    return path


def _dialogues(items: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [list(group) for _, group in itertools.groupby(items, key=lambda item: item["input"]["conversation"])]


def _fill_up(items: list[dict[str, Any]], rng: random.Random) -> None:
    """Small talk behind the dialogue, the same for all its items."""
    turns = copy.deepcopy(items[0]["input"]["conversation"])
    wanted = max(len(turns), rng.randint(*TURNS))
    start = rng.randrange(len(SMALL_TALK))
    while len(turns) < wanted:
        said = SMALL_TALK[(start + len(turns)) % len(SMALL_TALK)]
        turns.append({"speaker": 3 - turns[-1]["speaker"], "utterance": said, "utterance_id": f"more-{len(turns)}"})
    for item in items:
        item["input"]["conversation"] = copy.deepcopy(turns)


def _blank_some(groups: list[list[dict[str, Any]]], count: int, rng: random.Random) -> None:
    """Blanks the last utterance of so many dialogues, as far as there are some; it is no target."""
    for items in rng.sample(groups, min(count, len(groups) // 2)):
        blank = rng.choice(("", " "))
        for item in items:
            item["input"]["conversation"][-1]["utterance"] = blank


def _say_a_number(items: list[dict[str, Any]]) -> None:
    """In the dialogue of most items an utterance is a JSON number."""
    for item in max(_dialogues(items), key=len):
        item["input"]["conversation"][-2]["utterance"] = NUMBER


def _share_a_dialogue(train: list[dict[str, Any]], dev: list[dict[str, Any]]) -> None:
    """A dialogue of train is one of dev, too, which asks its question with the options turned."""
    theirs = _dialogues(train)[1][0]
    ours = min(_dialogues(dev), key=len)
    first, second, third = (theirs["input"][key] for key in OUTPUTS)
    turned = dict(zip(OUTPUTS, (third, first, second), strict=True))
    label = OUTPUTS[(OUTPUTS.index(theirs["output"]) + 1) % len(OUTPUTS)]
    for item in ours:
        item["input"] = copy.deepcopy(theirs["input"] | turned)
        item["output"] = label


def _number(items: list[dict[str, Any]], split: str) -> None:
    """Ids of a form of their own for items and utterances; the targets follow."""
    position = 0
    for place, group in enumerate(_dialogues(items)):
        for item in group:
            turns = item["input"]["conversation"]
            names = {turn["utterance_id"]: f"{split}.talk{place}.turn{n}" for n, turn in enumerate(turns)}
            item["id"] = f"shape.{split}.{position}"
            item["input"]["conversation"] = [turn | {"utterance_id": names[turn["utterance_id"]]} for turn in turns]
            item["input"]["reference_id"] = [names[target] for target in item["input"]["reference_id"]]
            position += 1


def load_json(content: bytes) -> Any:
    """The value of one of `official_files`."""
    return json.loads(content.decode("utf-8-sig"))
