"""What is measured of a corpus: lengths, targets, options, words, tokens, and how far two splits are apart.

A `View` is what a notebook in `eda/` looks at; `src/eda/findings.py` draws it. Dialogues have up to five items, so two
counts must not be mixed up: one per item weighs a dialogue by its items, as training does and as the published figures
do; one per dialogue takes each once.
"""

import dataclasses
import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from src.console.cli import UserError
from src.console.start import ours
from src.data import DATA, OUTPUTS, SPLITS, Item, dump_items, load_split, parse_items, split_path
from src.toy import corpus as sample
from src.worth.metrics import likeness

if TYPE_CHECKING:
    from src.prompt.encode import Encoder

RECIPES = ours("resource/recipes/published")
DATA_VARIABLE = "CCI_EDA_DATA"
"""In the environment of a notebook: the folder of the corpus, or SAMPLE."""
SAMPLE = "sample"

OFFICIAL_ITEMS = {"train": 758, "dev": 151, "test": 605}
PUBLISHED = {"turns": (20.816623, 4.788459), "words": (91.463061, 36.051528)}
"""Mean and standard deviation per item of the official train split, as the competition entry published them."""

SEED = 0
SHUFFLES = 300
SHORT_WINDOW_TURNS = 10


@dataclass(frozen=True)
class Corpus:
    """The three splits. `kind`: SAMPLE, or "own" for what lies on the disk, in `folder`. `sha256`: of all official
    objects.
    """

    kind: str
    splits: dict[str, list[Item]]
    sha256: str
    folder: str = str(DATA)

    @property
    def of_official_size(self) -> bool:
        return {split: len(items) for split, items in self.splits.items()} == OFFICIAL_ITEMS

    @property
    def as_published(self) -> bool:
        """Whether the train split has the published figures, to the last digit that was published."""
        found = length_figures(self.splits["train"])
        return all(
            abs(found[name].mean - mean) < 1e-6 and abs(found[name].std - std) < 1e-6
            for name, (mean, std) in PUBLISHED.items()
        )

    @property
    def name(self) -> str:
        """For people: which corpus this is. Only what has the official sizes and the published figures is called
        official: any file can lie in its place.
        """
        if self.kind == SAMPLE:
            return "지어낸 말뭉치(sample)"
        return "공식 말뭉치" if self.of_official_size and self.as_published else f"{self.folder}의 말뭉치"


def read_corpus(folder: str | Path | None = None) -> Corpus:
    """The splits in `folder` (by default the environment's, else resource/data), or the sample corpus when it has none.

    UserError when some splits are there and others are not, or when a file cannot be read.
    """
    place = str(folder or os.environ.get(DATA_VARIABLE) or DATA)
    there = [] if place == SAMPLE else [split for split in SPLITS if split_path(place, split).is_file()]
    if not there:
        return sample_corpus()
    missing = [split for split in SPLITS if split not in there]
    if missing:
        raise UserError(
            f"{place}: found {', '.join(there)}, but not {', '.join(missing)}; allowed: all three splits, or none for "
            "the sample corpus. Prepare the whole download: python -m run.prepare_data 대화맥락추론_데이터.zip"
        )
    return _corpus("own", {split: load_split(place, split) for split in SPLITS}, _shown(Path(place)))


def sample_corpus() -> Corpus:
    """The invented corpus, as `run.make_miniature` would write it."""
    splits = {}
    for split, raw in sample.make_corpus().items():
        splits[split], problems = parse_items(dump_items(raw).encode(), split)
        assert not problems, problems
    return _corpus(SAMPLE, splits)


def _corpus(kind: str, splits: dict[str, list[Item]], folder: str = "") -> Corpus:
    text = "".join(dump_items([item.source for item in items]) for items in splits.values())
    return Corpus(kind, splits, hashlib.sha256(text.encode()).hexdigest()[:16], folder)


def _shown(folder: Path) -> str:
    """A folder as pictures name it: from the project's root, or its name alone where it lies elsewhere."""
    whole, root = folder.resolve(), Path(__file__).resolve().parents[2]
    inside = whole != root and whole.is_relative_to(root)
    return whole.relative_to(root).as_posix() if inside else whole.name


@dataclass(frozen=True)
class View:
    """What a notebook looks at: a split, and the one that it is held against, if any."""

    corpus: Corpus
    split: str
    against: str | None = None

    @property
    def items(self) -> list[Item]:
        return self.corpus.splits[self.split]

    @cached_property
    def parts(self) -> dict[str, list[Item]]:
        """The split's items, then those of the other one."""
        return {split: self.corpus.splits[split] for split in (self.split, self.against) if split}

    @property
    def source(self) -> str:
        """Which corpus this is: the line below every picture."""
        counts = [f"{split} {len(items):,}문항" for split, items in self.parts.items()]
        return f"자료: {self.corpus.name} · {', '.join(counts)} · {self.corpus.sha256}"

    @cached_property
    def encoders(self) -> "dict[str, Encoder]":
        return find_encoders(self.corpus)

    @cached_property
    def tokens(self) -> dict[str, dict[str, list[int]]]:
        """Tokens of each item's prompt: [backbone][split]."""
        return {
            name: {split: [len(one.ids) for one in encoder.for_scoring(items)] for split, items in self.parts.items()}
            for name, encoder in self.encoders.items()
        }

    @cached_property
    def distances(self) -> "dict[str, Distance]":
        """For each measure how far the two splits are apart; empty with a single split."""
        if self.against is None:
            return {}
        read_words(text for items in self.parts.values() for text in texts_of(items))
        found = {name: compare(measure, *self.parts.values()) for name, measure in MEASURES.items()}
        if self.tokens:
            counts = next(iter(self.tokens.values()))
            lengths = {  # by the item itself: two splits may have given an id each
                item: float(count)
                for split, items in self.parts.items()
                for item, count in zip(items, counts[split], strict=True)
            }
            by_item = Measure(lambda items: [lengths[item] for item in items])
            found["토큰 수"] = compare(by_item, *self.parts.values())
        return found

    def titled(self, title: str, name: str) -> str:
        """A panel's title, with the distance of the splits in this measure where there are two."""
        return f"{title} · 거리 {self.distances[name].value:.2f}" if self.against else title

    def apart(self, *names: str) -> str:
        """A sentence on the distances of these measures; nothing with a single split."""
        if self.against is None:
            return ""
        told = [f"{name} {self.distances[name].text}" for name in names]
        return f" {self.against}과의 거리: {', '.join(told)}."


# Measures


class Summary(NamedTuple):
    """`std` is that of a sample (n - 1), as pandas computes it; 0 for a single value."""

    mean: float
    std: float
    low: float
    high: float


def describe(values: Sequence[float]) -> Summary:
    """Of at least one value."""
    array = np.asarray(values, dtype=float)
    std = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Summary(float(array.mean()), std, float(array.min()), float(array.max()))


def turn_count(item: Item) -> int:
    return len(item.dialogue)


def character_count(item: Item) -> int:
    """Characters of all utterances, blanks included."""
    return sum(len(utterance.text) for utterance in item.dialogue)


def word_count(item: Item) -> int:
    """Words by blanks (어절) of all utterances."""
    return sum(len(utterance.text.split()) for utterance in item.dialogue)


def length_figures(items: Sequence[Item]) -> dict[str, Summary]:
    """Turns, characters and words by blanks, per item: items of one dialogue count separately."""
    counts: dict[str, Callable[[Item], int]] = {
        "turns": turn_count,
        "characters": character_count,
        "words": word_count,
    }
    return {name: describe([count(item) for item in items]) for name, count in counts.items()}


def dialogues(items: Iterable[Item]) -> list[Item]:
    """One item (the first) for each dialogue, in order."""
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.dialogue_key, item)
    return list(first.values())


def items_of_dialogues(items: Iterable[Item]) -> list[int]:
    """The count of items of each dialogue, in order."""
    return list(Counter(item.dialogue_key for item in items).values())


def target_position(item: Item) -> float:
    """Where in the dialogue the target utterances are on average: 0 for the first turn, 1 for the last."""
    places = [place for place, utterance in enumerate(item.dialogue) if utterance.id in item.targets]
    return float(np.mean(places)) / max(1, len(item.dialogue) - 1)


def run_lengths(item: Item) -> list[int]:
    """How many turns each speaker keeps the floor, one number for each change of speaker and the end."""
    lengths: list[int] = []
    before = None
    for utterance in item.dialogue:
        if utterance.speaker == before:
            lengths[-1] += 1
        else:
            lengths.append(1)
        before = utterance.speaker
    return lengths


def option_likeness(item: Item) -> float:
    """Mean Jaccard similarity of two of the options, on pairs of neighbouring characters: 1 for equal ones."""
    return sum(likeness(item.options)) / 6


def overlap(item: Item, option: str) -> float:
    """The share of the option's content words that the dialogue has as well; 0 for an option without any."""
    own = content_words(option)
    said = {word for utterance in item.dialogue for word in content_words(utterance.text)}
    return sum(word in said for word in own) / len(own) if own else 0.0


def odd_values(items: Sequence[Item]) -> dict[str, int]:
    """How often the official text has something that a careless reader stumbles over. Dialogues count once."""
    raw = [turn["utterance"] for item in dialogues(items) for turn in item.source["input"]["conversation"]]
    options = [str(item.source["input"][key]) for item in items for key in OUTPUTS]
    texts = ["" if text is None else str(text) for text in raw]
    return {
        "빈 발화": sum(not text.strip() for text in texts),
        "글이 아니라 숫자인 발화": sum(isinstance(text, int | float) for text in raw),
        "줄바꿈이 든 발화": sum("\n" in text or "\r" in text for text in texts),
        "앞뒤에 빈칸이 있는 발화": sum(text != text.strip() and bool(text.strip()) for text in texts),
        "앞뒤에 빈칸이 있는 선택지": sum(option != option.strip() for option in options),
        "자모가 풀린 글(NFD)": sum(unicodedata.normalize("NFC", text) != text for text in [*texts, *options]),
        "이름을 가린 발화(name1 …)": sum(bool(MASKED_NAME.search(text)) for text in texts),
        "정답이 없는 문항": sum(item.label is None for item in items),
    }


MASKED_NAME = re.compile(r"name\d+")
MARKS = {
    "ㅋㅋ": re.compile("ㅋ"),
    "ㅎㅎ": re.compile("ㅎ"),
    "ㅠㅠ, ㅜㅜ": re.compile("[ㅠㅜ]"),
    "^^, 이모지": re.compile(r"\^\^|[☀-➿\U0001F300-\U0001FAFF]"),
    "~": re.compile("[~～]"),
    "!": re.compile("[!！]"),
    "?": re.compile("[?？]"),
    "…, ..": re.compile(r"…|\.\."),
}
FEELINGS = re.compile("|".join(MARKS[mark].pattern for mark in ("ㅋㅋ", "ㅎㅎ", "ㅠㅠ, ㅜㅜ", "^^, 이모지")))


def mark_rates(items: Sequence[Item]) -> dict[str, float]:
    """The share of utterances with each of `MARKS`; dialogues count once."""
    texts = [utterance.text for item in dialogues(items) for utterance in item.dialogue]
    return {name: sum(bool(mark.search(text)) for text in texts) / len(texts) for name, mark in MARKS.items()}


def seen_in_folds(items: Sequence[Item], folds: int = 5) -> float:
    """The share of items whose dialogue is in another fold too, when items are dealt to `folds` at random."""
    fold = np.random.default_rng(SEED).permutation(len(items)) % folds
    places = defaultdict(set)
    for item, place in zip(items, fold, strict=True):
        places[item.dialogue_key].add(int(place))
    return sum(len(places[item.dialogue_key]) > 1 for item in items) / len(items)


def lost_targets(items: Sequence[Item], turns: int = SHORT_WINDOW_TURNS) -> float:
    """The share of items that lose a target utterance when only the last `turns` turns are kept."""
    kept = [{utterance.id for utterance in item.dialogue[-turns:]} for item in items]
    return sum(not set(item.targets) <= ids for item, ids in zip(items, kept, strict=True)) / len(items)


# Words


CONTENT_TAGS = ("NNG", "NNP", "XR", "VV", "VA")
# Verbs and adjectives that say nothing by themselves, and would lead every list.
LIGHT_WORDS = frozenset(
    ("하다", "되다", "있다", "없다", "같다", "그렇다", "이렇다", "저렇다", "어떻다", "어쩌다", "그러다")
)
_words: dict[str, tuple[str, ...]] = {}


@cache
def _kiwi() -> Any:
    from kiwipiepy import Kiwi

    return Kiwi(num_workers=1)


def read_words(texts: Iterable[str]) -> None:
    """Reads the morphemes of many texts at once, which is quicker than one by one."""
    new = [text for text in dict.fromkeys(texts) if text not in _words]
    # A masked name is foreign letters and a number to Kiwi, neither of them content; without it, its particle would be
    # read as a noun.
    for text, morphemes in zip(new, _kiwi().tokenize(new), strict=True):
        forms = [
            morpheme.form + ("다" if morpheme.tag.startswith("V") else "")
            for morpheme in morphemes
            if morpheme.tag.split("-")[0] in CONTENT_TAGS
        ]
        _words[text] = tuple(form for form in forms if form not in LIGHT_WORDS)


def content_words(text: str) -> tuple[str, ...]:
    """Nouns, roots, and verbs and adjectives in their dictionary form, in order; none of `LIGHT_WORDS`."""
    if text not in _words:
        read_words([text])
    return _words[text]


def texts_of(items: Iterable[Item]) -> list[str]:
    """Every utterance and option."""
    items = list(items)
    said = [utterance.text for item in dialogues(items) for utterance in item.dialogue]
    return said + [option for item in items for option in item.options]


def spoken_words(items: Iterable[Item]) -> Counter[str]:
    """Content words of the utterances; dialogues count once."""
    lines = [utterance.text for item in dialogues(items) for utterance in item.dialogue]
    read_words(lines)
    return Counter(word for line in lines for word in content_words(line))


# How far two splits are apart


@dataclass(frozen=True)
class Measure:
    """`of(rows)` gives each row a number, or counts of things. Rows are items, or dialogues (their first items)."""

    of: Callable[[Sequence[Item]], Sequence[float | Mapping[str, int]]]
    per_dialogue: bool = False


def _each(of: Callable[[Item], float | Mapping[str, int]]) -> Callable[[Sequence[Item]], list[Any]]:
    return lambda items: [of(item) for item in items]


MEASURES = {
    "대화당 문항": Measure(items_of_dialogues, per_dialogue=True),
    "턴 수": Measure(_each(turn_count)),
    "글자 수": Measure(_each(character_count)),
    "어절 수": Measure(_each(word_count)),
    "발화 길이": Measure(_each(lambda item: character_count(item) / turn_count(item)), per_dialogue=True),
    "이어 말하기": Measure(_each(lambda item: 1 - len(run_lengths(item)) / turn_count(item)), per_dialogue=True),
    "대상 발화 수": Measure(_each(lambda item: len(item.targets))),
    "대상 발화 위치": Measure(_each(target_position)),
    "유형": Measure(_each(lambda item: {item.category: 1})),
    "선택지 길이": Measure(_each(lambda item: sum(map(len, item.options)) / len(OUTPUTS))),
    "선택지 닮음": Measure(_each(option_likeness)),
    "대화와 겹침": Measure(_each(lambda item: sum(overlap(item, option) for option in item.options) / len(OUTPUTS))),
    "내용어": Measure(_each(lambda item: spoken_words([item])), per_dialogue=True),
    "웃음과 울음": Measure(
        _each(lambda item: sum(bool(FEELINGS.search(one.text)) for one in item.dialogue) / turn_count(item)),
        per_dialogue=True,
    ),
    "가린 이름": Measure(_each(lambda item: len(masked_names(item))), per_dialogue=True),
}


class Distance(NamedTuple):
    """`value`: 0 for equal splits, 1 for those that share nothing. `luck`: what 95 % of random splits stay below."""

    value: float
    luck: float

    @property
    def text(self) -> str:
        return f"{self.value:.2f}(우연 {self.luck:.2f})"


def compare(measure: Measure, first: Sequence[Item], second: Sequence[Item]) -> Distance:
    """The distance of two splits: Kolmogorov-Smirnov's for numbers, total variation for counts.

    The luck is that of whole dialogues dealt to two splits of the same sizes at random, since items of one dialogue
    are no independent draws.
    """
    rows = [dialogues(items) if measure.per_dialogue else list(items) for items in (first, second)]
    # `items_of_dialogues` needs all items to count; the others look at the rows alone.
    counted = (first, second) if measure.of is items_of_dialogues else rows
    values = [*measure.of(counted[0]), *measure.of(counted[1])]
    # A dialogue that both splits have is one in each.
    keys = [(side, item.dialogue_key) for side, part in enumerate(rows) for item in part]
    place = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = np.array([place[key] for key in keys])
    ours = np.arange(len(keys)) < len(rows[0])
    chosen = len(set(keys[: len(rows[0])]))

    rng = np.random.default_rng(SEED)
    dealt = np.argsort(rng.random((SHUFFLES, len(place))), axis=1) < chosen
    sides = np.vstack([ours, dealt[:, group]])
    found = _total_variation(values, sides) if isinstance(values[0], Mapping) else _kolmogorov_smirnov(values, sides)
    return Distance(float(found[0]), float(np.quantile(found[1:], 0.95)))


def _kolmogorov_smirnov(values: Sequence[Any], sides: Any) -> Any:
    """For each row of `sides` (rows × values, true for the first split) the largest gap of the cumulated shares."""
    order = np.argsort(values, kind="stable")
    ordered = np.asarray(values, dtype=float)[order]
    sides = sides[:, order]
    first = np.cumsum(sides, axis=1) / sides.sum(axis=1, keepdims=True)
    second = np.cumsum(~sides, axis=1) / (~sides).sum(axis=1, keepdims=True)
    last_of_its_value = np.append(ordered[1:] != ordered[:-1], True)
    return np.abs(first - second)[:, last_of_its_value].max(axis=1)


def _total_variation(values: Sequence[Any], sides: Any) -> Any:
    """For each row of `sides` half the sum of the differences of the shares."""
    names = {name: column for column, name in enumerate(dict.fromkeys(name for row in values for name in row))}
    counts = np.zeros((len(values), len(names)))
    for row, value in enumerate(values):
        for name, count in value.items():
            counts[row, names[name]] = count
    first, second = sides.astype(float) @ counts, (~sides).astype(float) @ counts
    shares = [side / side.sum(axis=1, keepdims=True) for side in (first, second)]
    return np.abs(shares[0] - shares[1]).sum(axis=1) / 2


def masked_names(item: Item) -> set[str]:
    """The different masked names of the dialogue."""
    return {name for utterance in item.dialogue for name in MASKED_NAME.findall(utterance.text)}


# Tokens


PROMPT_PARTS = ("시스템", "대화", "대상 발화", "질문", "선택지", "틀")
"""틀: everything that the prompt and the chat template put around the others."""
_CLOSE, _FIRST_TURN = "\uf8ff", 0xE100
_OPEN = {"시스템": "\ue000", "질문": "\ue001", "선택지": "\ue002"}


def find_encoders(corpus: Corpus, recipes: Path = RECIPES) -> "dict[str, Encoder]":
    """Encoders of the published recipes whose tokenizer is on this disk; for the sample corpus the miniature's eight.

    Nothing is downloaded, and the miniature's tokenizers are made here: they know the words of the sample alone.
    """
    import transformers

    from src.model.recipes import load_recipes
    from src.prompt.encode import Encoder
    from src.prompt.prompts import load_prompt

    transformers.utils.logging.set_verbosity_error()
    found: dict[str, Encoder] = {}
    for recipe in load_recipes(recipes).values():
        tokenizer = _miniature_tokenizer(recipe.backbone) if corpus.kind == SAMPLE else _cached_tokenizer(recipe)
        if tokenizer is not None:
            name = f"mini-{recipe.backbone}" if corpus.kind == SAMPLE else recipe.name
            found[name] = Encoder(
                tokenizer,
                load_prompt(recipe.prompt),
                name=name,
                chat_template=recipe.chat_template,
                override=recipe.overrides_template,
                system_turn=recipe.system_turn,
            )
    return found


@cache
def _miniature_tokenizer(short: str) -> Any:
    from src.toy.miniature import load_values
    from src.toy.miniature_tokenizers import make_tokenizer, tokenizer_texts

    values = load_values()
    return make_tokenizer(values["backbones"][short]["tokenizer"], tokenizer_texts(values))


def _cached_tokenizer(recipe: Any) -> Any:
    """None when the tokenizer is not on the disk, or is too slow a kind to tell where its tokens come from."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoTokenizer

    source = recipe.tokenizer or recipe.model_id
    if not Path(source).is_dir():
        # Asking transformers for the name would have it ask the hub, for other things, even with local_files_only.
        file = try_to_load_from_cache(source, "tokenizer_config.json", revision=recipe.revision)
        if not isinstance(file, str):
            return None
        source = str(Path(file).parent)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):  # part of a download
        return None
    return tokenizer if tokenizer.is_fast else None


def prompt_parts(encoder: "Encoder", items: Sequence[Item]) -> list[Counter[str]]:
    """The tokens of each item's prompt by `PROMPT_PARTS`; their sum is the length of the prompt.

    The texts are rendered once more between private characters, which tell what each character of the prompt is.
    """
    from src.prompt.encode import Encoder

    prompt = dataclasses.replace(
        encoder.prompt,
        system=_marked(_OPEN["시스템"], encoder.prompt.system) if encoder.prompt.system else "",
        categories={key: _marked(_OPEN["질문"], text) for key, text in encoder.prompt.categories.items()},
    )
    marking = Encoder(
        encoder.tokenizer,
        prompt,
        name=encoder.name,
        chat_template=encoder.template,
        override=True,
        system_turn=encoder.system_turn,
    )
    counts = []
    for item, example in zip(items, encoder.for_scoring(items), strict=True):
        text, parts = _split_prompt(marking.prompt_text(_marked_item(item)))
        assert text == encoder.prompt_text(item), f"{encoder.name}: {item.id}"
        starts = encoder.token_starts(item)
        found = Counter(parts[min(start, len(parts) - 1)] for start in starts)
        found["틀"] += len(example.ids) - len(starts)  # a BOS in front
        counts.append(found)
    return counts


def _marked(opening: str, text: str) -> str:
    return f"{opening}{text}{_CLOSE}"


def _marked_item(item: Item) -> Item:
    first, second, third = (_marked(_OPEN["선택지"], option) for option in item.options)
    turns = tuple(
        dataclasses.replace(utterance, text=_marked(chr(_FIRST_TURN + turn), utterance.text))
        for turn, utterance in enumerate(item.dialogue)
    )
    return dataclasses.replace(item, dialogue=turns, options=(first, second, third))


def _split_prompt(rendered: str) -> tuple[str, list[str]]:
    """The text without its marks, and the part of each of its characters."""
    names = {character: part for part, character in _OPEN.items()}
    part, parts, text = "틀", [], []
    told: set[str] = set()
    for character in rendered:
        if character == _CLOSE:
            part = "틀"
        elif character in names:
            part = names[character]
        elif _FIRST_TURN <= ord(character) < ord(_CLOSE):
            # The prompt quotes the target utterances once more, behind the dialogue.
            part = "대상 발화" if character in told else "대화"
            told.add(character)
        else:
            parts.append(part)
            text.append(character)
    return "".join(text), parts
