"""The questions that the notebooks in `eda/` ask of a corpus, one function each.

A question takes a `View` and gives a `Finding`: a picture, what it shows, and what follows for modelling. Every number
in a sentence is computed, and so is what the sentence makes of it.
"""

import base64
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.console.start import ours
from src.data import CATEGORIES, SPLITS, Item
from src.eda.measures import (
    FEELINGS,
    MARKS,
    MASKED_NAME,
    MEASURES,
    PUBLISHED,
    SAMPLE,
    SEED,
    SHORT_WINDOW_TURNS,
    View,
    character_count,
    compare,
    content_words,
    describe,
    dialogues,
    items_of_dialogues,
    length_figures,
    lost_targets,
    mark_rates,
    masked_names,
    odd_values,
    option_likeness,
    overlap,
    read_corpus,
    read_words,
    run_lengths,
    seen_in_folds,
    spoken_words,
    target_position,
    texts_of,
    turn_count,
    word_count,
)
from src.figures import style as figures
from src.figures.canvas import Figure
from src.prompt.parts import PROMPT_PARTS, prompt_parts
from src.worth.metrics import floor_answers, wilson

OUT_VARIABLE = "CCI_EDA_OUT"
"""In the environment of a notebook: the folder for pictures."""
PRIVATE_OUT = ours("resource/results/eda")
"""Where pictures of any other corpus than the sample go: git ignores it."""

TOP_WORDS = 15
CLOUD_WORDS = 60


class Finding(NamedTuple):
    """The answer to one question. `slug` names the picture's file; `says` what it shows, `so` what follows."""

    slug: str
    figure: Figure | None
    says: str
    so: str


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(shares: Sequence[float]) -> tuple[float, float]:
    """Mean ± 1.96 standard errors."""
    one = describe(shares)
    reach = 1.96 * one.std / max(1, len(shares)) ** 0.5
    return one.mean - reach, one.mean + reach


def sizes(view: View) -> Finding:
    """How large the splits are, and whether they share dialogues."""
    splits = view.corpus.splits
    keys = {split: {item.dialogue_key for item in items} for split, items in splits.items()}
    shared = np.array([[len(keys[one] & keys[other]) for other in SPLITS] for one in SPLITS])
    figure, (left, right) = figures.panels(
        ["문항과 대화의 수", "함께 가진 대화의 수"], "자료는 얼마나 크고, 서로 겹치지 않나?", view.source, widths=(3, 2)
    )
    counts = {"문항": [len(splits[split]) for split in SPLITS], "대화": [len(keys[split]) for split in SPLITS]}
    figures.bars(left, SPLITS, counts)
    figures.heatmap(right, shared, SPLITS, SPLITS)
    told = ", ".join(f"{split} {len(splits[split]):,}문항({len(keys[split]):,}대화)" for split in SPLITS)
    says = f"{told}입니다. 대화 하나에 문항이 평균 {len(view.items) / len(keys[view.split]):.1f}개 달려 있습니다."
    pairs = [(one, other) for one, other in combinations(SPLITS, 2) if keys[one] & keys[other]]
    if pairs:
        met = ", ".join(f"{one}–{other} {len(keys[one] & keys[other])}개" for one, other in pairs)
        seen = sum(item.dialogue_key in keys["train"] for item in splits["dev"]) / len(splits["dev"])
        so = (
            f"나뉜 자료가 대화를 함께 가집니다({met}). dev 문항의 {percent(seen)}는 학습에서 본 대화라 그만큼 쉽습니다."
        )
    else:
        so = "함께 가진 대화가 없으니 dev 정확도는 처음 보는 대화에 대한 것입니다."
    return Finding("sizes", figure, says, f"{so} `run.prepare_data`가 자료를 넣을 때 겹치는 대화를 세어 보여 줍니다.")


def odd(view: View) -> Finding:
    """Missing and odd values."""
    counts = {split: odd_values(items) for split, items in view.parts.items()}
    names = list(counts[view.split])
    figure, (axes,) = figures.panels(
        ["개수 (발화는 대화마다 한 번만)"], "빠지거나 이상한 값은 어디에 있나?", view.source, height=3.4
    )
    figures.bars(axes, names, {split: list(found.values()) for split, found in counts.items()})
    found = [f"{name} {count:,}개" for name, count in counts[view.split].items() if count]
    says = f"{view.split}에서 찾은 것: {', '.join(found)}." if found else f"{view.split}에는 이상한 값이 없습니다."
    so = (
        "`src/data.py`는 읽을 때 숫자를 글로, 풀린 자모를 완성형으로 바꾸고 선택지의 앞뒤 빈칸을 뗍니다. "
        "발화의 빈칸과 줄바꿈은 그대로 두고, 제출 파일에는 받은 글을 한 글자도 바꾸지 않고 내보냅니다."
    )
    return Finding("odd_values", figure, says, so)


def items_per_dialogue(view: View) -> Finding:
    """How many items share a dialogue, and what that does to folds."""
    counts = {split: items_of_dialogues(items) for split, items in view.parts.items()}
    most = max(max(found) for found in counts.values())
    figure, (left, right) = figures.panels(
        [view.titled("문항 수마다의 대화 비율 (%)", "대화당 문항"), "학습에서 본 대화로 평가되는 문항 (%)"],
        "한 대화를 문항 몇 개가 함께 쓰나?",
        view.source,
        widths=(3, 2),
    )
    sizes = [str(size) for size in range(1, most + 1)]
    shares = {split: [100 * found.count(int(size)) / len(found) for size in sizes] for split, found in counts.items()}
    figures.bars(left, sizes, shares, form="{:.0f}", horizontal=False)
    left.set_xlabel("대화에 달린 문항 수")
    seen = seen_in_folds(view.items)
    figures.bars(
        right, ["문항 단위 5겹", "대화 단위 5겹"], {view.split: [100 * seen, 0]}, form="{:.0f}", horizontal=False
    )
    groups = defaultdict(set)
    for item in view.items:
        groups[item.dialogue_key].add(frozenset(item.targets))
    many = [targets for key, targets in groups.items() if sum(item.dialogue_key == key for item in view.items) > 1]
    one_target = sum(len(targets) == 1 for targets in many) / max(1, len(many))
    says = (
        f"대화마다 문항이 {min(counts[view.split])}–{max(counts[view.split])}개이고, 문항이 둘 이상인 대화의 "
        f"{percent(one_target)}는 모든 문항이 같은 대상 발화를 묻습니다.{view.apart('대화당 문항')}"
    )
    so = (
        f"문항을 무작위로 다섯 겹에 나누면 {percent(seen)}가 학습에서 본 대화로 평가됩니다. 그래서 대화 단위로 "
        "나누어야 "
        "하고, `Item.dialogue_key`가 id와 상관없이 같은 대화를 알아봅니다. 학습과 채점은 함께 쓰는 대화를 한 번만 "
        "계산합니다(`share_prefixes`)."
    )
    return Finding("items_per_dialogue", figure, says, so)


def lengths(view: View) -> Finding:
    """Turns, characters and words of a dialogue."""
    figure, axes = figures.panels(
        [view.titled(unit, f"{unit} 수") for unit in ("턴", "글자", "어절")], "대화는 얼마나 긴가?", view.source
    )
    counts: dict[str, Callable[[Item], int]] = {"턴": turn_count, "글자": character_count, "어절": word_count}
    for one, (unit, count) in zip(axes, counts.items(), strict=True):
        values = {split: [count(item) for item in items] for split, items in view.parts.items()}
        whole = range(min(map(min, values.values())), max(map(max, values.values())) + 2)
        edges = np.array(whole) - 0.5 if len(whole) < 40 else None
        figures.histogram(
            one, values, label=f"문항의 대화에 든 {unit} 수", bins=24 if edges is None else edges.tolist()
        )
        if one is not axes[0]:
            one.set_ylabel("")
    found = length_figures(view.items)
    turns, characters, words = found["turns"], found["characters"], found["words"]
    says = (
        f"문항마다 평균 {turns.mean:.6f}턴(표준편차 {turns.std:.6f}), {characters.mean:.1f}자(최대 "
        f"{characters.high:,.0f}), "
        f"{words.mean:.6f}어절(표준편차 {words.std:.6f})입니다."
    )
    if view.corpus.of_official_size and view.split == "train" and view.corpus.kind != SAMPLE:
        told = ", ".join(f"{mean} (표준편차 {std})" for mean, std in PUBLISHED.values())
        equal = view.corpus.as_published
        says += f" 발표된 값 {told}과 {'같습니다' if equal else '다릅니다. 파일이 공식 자료인지 확인하세요'}."
    says += view.apart("턴 수", "글자 수", "어절 수")
    so = (
        f"가장 긴 대화도 {characters.high:,.0f}자이니 자를 까닭이 없습니다. 아무것도 자르지 않으며, 모델의 문맥보다 "
        "긴 문항이 "
        "있으면 id와 길이를 알리고 멈춥니다(`src/prompt/encode.py`)."
    )
    return Finding("lengths", figure, says, so)


def turn_lengths(view: View) -> Finding:
    """How the length of turns changes within a dialogue."""
    tenths = 10
    figure, (left, right) = figures.panels(
        [view.titled("대화 속 위치와 발화 길이", "발화 길이"), "바로 앞 발화와의 길이 차이"],
        "발화 길이는 대화 안에서 어떻게 바뀌나?",
        view.source,
    )
    changes = {}
    ends = {}
    for split, items in view.parts.items():
        rows = dialogues(items)
        by_place: list[list[float]] = [[] for _ in range(tenths)]
        for item in rows:
            own: list[list[int]] = [[] for _ in range(tenths)]
            for place, utterance in enumerate(item.dialogue):
                own[place * tenths // len(item.dialogue)].append(len(utterance.text))
            for tenth, found in enumerate(own):
                if found:
                    by_place[tenth].append(float(np.mean(found)))
        # Dialogues of fewer than ten turns leave some of the tenths empty.
        filled = [tenth for tenth, found in enumerate(by_place) if found]
        means = [describe(by_place[tenth]).mean for tenth in filled]
        ranges = np.array([_interval(by_place[tenth]) for tenth in filled])
        places = np.array(filled) * 10 + 5
        own_colour = figures.colour(split)
        look = "-o" if split == view.split else "--s"
        left.plot(places, means, look, color=own_colour, markersize=4, label=split)
        left.fill_between(places, ranges[:, 0], ranges[:, 1], color=own_colour, alpha=0.18, linewidth=0)
        lines = [[len(utterance.text) for utterance in item.dialogue] for item in rows]
        changes[split] = [after - before for line in lines for before, after in pairwise(line)]
        ends[split] = (float(np.mean(means[:2])), float(np.mean(means[-2:])))
    left.set_xlabel("대화 속 위치 (%), 띠는 95 % 구간")
    left.set_ylabel("발화의 글자 수")
    left.set_ylim(bottom=0)
    figures.histogram(right, changes, label="글자 수의 차이", bins=25)
    hits = {item.dialogue_key: {one.id for one in item.target_utterances} for item in view.items}
    asked: list[int] = []
    others: list[int] = []
    for item in dialogues(view.items):
        for utterance in item.dialogue:
            (asked if utterance.id in hits[item.dialogue_key] else others).append(len(utterance.text))
    first, last = ends[view.split]
    ratio = float(np.mean(asked)) / max(1.0, float(np.mean(others)))
    says = (
        f"대화의 처음 5분의 1에서는 발화가 평균 {first:.1f}자, 마지막 5분의 1에서는 {last:.1f}자입니다. 이웃한 발화는 "
        "평균 "
        f"{float(np.mean(np.abs(changes[view.split]))):.1f}자 차이가 납니다.{view.apart('발화 길이')}"
    )
    so = (
        f"대상 발화는 평균 {np.mean(asked):.1f}자로 나머지({np.mean(others):.1f}자)의 {ratio:.1f}배"
        f"{'에 그쳐 길이로는 알아볼 수 없습니다' if 0.8 < ratio < 1.25 else '이지만 길이로 정해지지는 않습니다'}. "
        "그래서 프롬프트가 대상 발화를 따로 인용하거나 표시해 줍니다."
    )
    return Finding("turn_lengths", figure, says, so)


def speakers(view: View) -> Finding:
    """Who speaks, and for how many turns in a row."""
    figure, (left, right) = figures.panels(
        ["화자1의 몫 (%)", view.titled("한 화자가 잇달아 말한 턴 수 (%)", "이어 말하기")],
        "두 화자는 고르게 번갈아 말하나?",
        view.source,
    )
    names = ["첫 턴", "모든 턴", "모든 글자", "대상 발화"]
    shares, runs, longest = {}, {}, 4
    for split, items in view.parts.items():
        rows = dialogues(items)
        turns = [utterance for item in rows for utterance in item.dialogue]
        targets = [utterance for item in items for utterance in item.target_utterances]
        text = sum(len(utterance.text) for utterance in turns if utterance.speaker == 1)
        shares[split] = [
            100 * sum(item.dialogue[0].speaker == 1 for item in rows) / len(rows),
            100 * sum(utterance.speaker == 1 for utterance in turns) / len(turns),
            100 * text / max(1, sum(len(utterance.text) for utterance in turns)),
            100 * sum(utterance.speaker == 1 for utterance in targets) / len(targets),
        ]
        found = [min(length, longest) for item in rows for length in run_lengths(item)]
        runs[split] = [100 * found.count(length) / len(found) for length in range(1, longest + 1)]
    figures.bars(left, names, shares, form="{:.0f}")
    left.axvline(50, color=figures.GREY, linewidth=1, linestyle=":", zorder=0)
    for number in left.texts:
        number.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    figures.bars(right, ["1", "2", "3", "4 이상"], runs, form="{:.1f}", horizontal=False)
    again = sum(runs[view.split][1:]) / 100
    says = (
        f"화자1이 턴의 {shares[view.split][1]:.1f} %, 글자의 {shares[view.split][2]:.1f} %를 말하고, 말차례의 "
        f"{percent(again)}에서는 한 화자가 두 턴 이상 이어 말합니다.{view.apart('이어 말하기')}"
    )
    so = (
        "이어 말하는 턴이 있으니 번갈아 말해야 하는 채팅 템플릿의 user와 assistant로는 대화를 옮길 수 없습니다. "
        "프롬프트는 대화 전체를 사용자 메시지 하나에 넣고 줄마다 화자 번호를 붙입니다."
    )
    return Finding("speakers", figure, says, so)


def targets(view: View) -> Finding:
    """How many target utterances there are, and where."""
    figure, (left, right) = figures.panels(
        [view.titled("대상 발화 수 (%)", "대상 발화 수"), view.titled("대상 발화의 위치", "대상 발화 위치")],
        "무엇을, 대화의 어디를 묻나?",
        view.source,
        widths=(2, 3),
    )
    counts = {split: [len(item.targets) for item in items] for split, items in view.parts.items()}
    numbers = range(1, max(map(max, counts.values())) + 1)
    shares = {split: [100 * found.count(n) / len(found) for n in numbers] for split, found in counts.items()}
    figures.bars(left, [str(n) for n in numbers], shares, form="{:.0f}", horizontal=False)
    places = {split: [100 * target_position(item) for item in items] for split, items in view.parts.items()}
    figures.histogram(right, places, label="대화 속 위치 (%, 0은 첫 턴)", bins=list(range(0, 101, 5)))
    several = sum(count > 1 for count in counts[view.split]) / len(view.items)
    says = (
        f"문항의 {percent(several)}는 대상 발화가 둘 이상이고, 위치의 평균은 {np.mean(places[view.split]):.0f} %, "
        f"사분위 범위는 {np.quantile(places[view.split], 0.25):.0f}–{np.quantile(places[view.split], 0.75):.0f} "
        "%입니다."
        f"{view.apart('대상 발화 수', '대상 발화 위치')}"
    )
    so = (
        f"마지막 {SHORT_WINDOW_TURNS}턴만 남기면 문항의 {percent(lost_targets(view.items))}가 대상 발화를 잃습니다. "
        "그래서 앞도 뒤도 자르지 않고, 대상 발화가 여럿이면 모두 대화 순서대로 보여 줍니다."
    )
    return Finding("targets", figure, says, so)


def categories(view: View) -> Finding:
    """The mix of categories in all splits."""
    splits = view.corpus.splits
    shares = {
        split: [100 * sum(item.category == category for item in items) / len(items) for category in CATEGORIES]
        for split, items in splits.items()
    }
    figure, (axes,) = figures.panels(
        [view.titled("유형의 비율 (%)", "유형")], "다섯 유형은 고르게 나오나?", view.source, height=3.0
    )
    figures.bars(axes, CATEGORIES, shares, form="{:.1f}", horizontal=False)
    apart = []
    for one, other in combinations(SPLITS, 2):
        distance = compare(MEASURES["유형"], splits[one], splits[other])
        apart.append((f"{one}–{other} {distance.text}", distance))
    own = dict(zip(CATEGORIES, shares[view.split], strict=True))
    most, least = max(own, key=own.__getitem__), min(own, key=own.__getitem__)
    says = (
        f"{view.split}에서 가장 많은 유형은 {most}({own[most]:.1f} %), 가장 적은 유형은 {least}({own[least]:.1f} "
        "%)입니다. "
        f"두 자료의 거리: {', '.join(text for text, _ in apart)}."
    )
    far = [text.split()[0] for text, distance in apart if distance.value > distance.luck]
    mixed = f"{', '.join(far)}에서 비율이 우연보다 크게 다르므로" if far else "비율의 차이는 우연의 범위이지만"
    so = (
        f"{mixed}, 한 자료의 정확도를 다른 자료로 옮겨 읽을 때는 유형별로 보아야 합니다. `run.evaluate`는 유형마다의 "
        "정확도와 "
        "유형을 똑같이 친 평균(mean of categories)을 함께 보여 줍니다."
    )
    return Finding("categories", figure, says, so)


def labels(view: View) -> Finding:
    """Where the right option stands, over all and by category. Needs labels."""
    from scipy.stats import chi2_contingency, chisquare

    answered = [item for item in view.items if item.label is not None]
    table = np.array(
        [
            [sum(item.category == one and item.label == label for item in answered) for label in range(3)]
            for one in CATEGORIES
        ]
    )
    counts = table.sum(axis=0)
    figure, (left, right) = figures.panels(
        ["정답의 자리 (%), 95 % 구간", "유형마다 정답의 자리 (문항)"],
        "정답은 한쪽에 쏠려 있나?",
        view.source,
        widths=(1, 1),
    )
    errors = [tuple(100 * end for end in wilson(int(count), len(answered))) for count in counts]
    spots = ["1", "2", "3"]
    shares = [100 * count / len(answered) for count in counts]
    places = np.arange(3)
    reach = np.abs(np.array(errors).T - np.array(shares))
    left.bar(places, shares, 0.6, color=figures.colour(view.split), yerr=reach, ecolor="#444444", capsize=4)
    left.axhline(100 / 3, color=figures.GREY, linewidth=1, linestyle=":")
    for place, share in zip(places, shares, strict=True):
        left.text(
            float(place), share / 2, f"{share:.1f}", ha="center", va="center", color="white", fontweight=figures.BOLD
        )
    left.set_xticks(places, [f"inference_{spot}" for spot in spots])
    left.set_yticks([])
    left.spines["left"].set_visible(False)
    figures.heatmap(right, table, CATEGORIES, [f"inference_{spot}" for spot in spots])
    alone, together = float(chisquare(counts).pvalue), float(chi2_contingency(table).pvalue)
    says = (
        f"정답은 1번 {counts[0]}, 2번 {counts[1]}, 3번 {counts[2]}개로 고르다는 가정의 p값은 {alone:.2f}, 유형과 "
        "자리가 "
        f"무관하다는 가정의 p값은 {together:.2f}입니다."
    )
    even = alone > 0.05 and together > 0.05
    so = (
        f"자리만 보고 {'얻을 것은 없습니다' if even else '얻을 것이 있습니다'}: 가장 흔한 자리만 골라도 정확도는 "
        f"{percent(max(counts) / len(answered))}입니다. 모델이 자리를 좋아하는 버릇은 따로 있으므로 `run.test "
        "--orders 6`이 "
        "선택지를 여섯 순서로 보여 주고 평균 냅니다."
    )
    return Finding("labels", figure, says, so)


def options(view: View) -> Finding:
    """Options: their length, how alike they are, how much of them the dialogue says. By label where there are "
    "labels."""
    read_words(text for items in view.parts.values() for text in texts_of(items))
    by_label = view.against is None
    figure, axes = figures.panels(
        [
            view.titled("글자 수", "선택지 길이"),
            view.titled("닮은 정도", "선택지 닮음"),
            view.titled("대화와 겹침", "대화와 겹침"),
        ],
        "선택지만 보고도 맞힐 수 있나?",
        view.source,
    )
    long: dict[str, list[float]] = defaultdict(list)
    said: dict[str, list[float]] = defaultdict(list)
    for split, items in view.parts.items():
        for item in items:
            for place, option in enumerate(item.options):
                kind = ("정답" if place == item.label else "오답") if by_label else split
                long[kind].append(len(option))
                said[kind].append(100 * overlap(item, option))
    if by_label:
        long, said = ({kind: found[kind] for kind in ("정답", "오답")} for found in (long, said))
    alike = {split: [option_likeness(item) for item in items] for split, items in view.parts.items()}
    figures.histogram(axes[0], long, label="선택지의 글자 수", bins=20)
    figures.histogram(axes[1], alike, label="두 선택지의 자카드 유사도", bins=[step / 20 for step in range(21)])
    figures.histogram(axes[2], said, label="대화에도 나온 내용어 (%)", bins=list(range(0, 111, 10)))
    for one in axes[1:]:
        one.set_ylabel("")
    own = alike[view.split]
    if by_label:
        answers = floor_answers(view.items)
        shares = [[overlap(item, option) for option in item.options] for item in view.items]
        answers["most said"] = [found.index(max(found)) for found in shares]
        right = {
            rule: sum(answer == item.label for answer, item in zip(given, view.items, strict=True)) / len(view.items)
            for rule, given in answers.items()
        }
        best = max(right, key=right.__getitem__)
        names = {
            "longest option": "가장 긴 것",
            "shortest option": "가장 짧은 것",
            "most alike option": "나머지와 가장 닮은 것",
            "most said": "대화와 가장 겹치는 것",
        }
        told = ", ".join(f"{names[rule]} {percent(share)}" for rule, share in right.items())
        says = (
            f"두 선택지의 유사도는 평균 {np.mean(own):.2f}이고, 정답은 평균 {np.mean(long['정답']):.1f}자, 오답은 "
            f"{np.mean(long['오답']):.1f}자입니다. 한 가지 규칙으로 고르면: {told}."
        )
        so = (
            f"{names[best]}을 고르기만 해도 {percent(right[best])}입니다(찍으면 33.3 %). 정확도는 이 바닥과 함께 "
            "읽어야 하므로 "
            "`run.evaluate`가 대화를 읽지 않는 규칙들을 늘 나란히 보여 줍니다."
        )
    else:
        says = (
            f"두 선택지의 유사도는 평균 {np.mean(own):.2f}, 선택지는 평균 {np.mean(long[view.split]):.1f}자, 내용어의 "
            f"{np.mean(said[view.split]):.1f} %가 대화에도 "
            f"나옵니다.{view.apart('선택지 길이', '선택지 닮음', '대화와 겹침')}"
        )
        so = (
            f"선택지가 만들어진 방식이 {view.against}과 같은지 여기서 봅니다. 우연보다 멀면 dev에서 잰 "
            "바닥(`run.evaluate`)이 "
            f"{view.split}에서는 다를 수 있습니다."
        )
    return Finding("options", figure, says, so)


def words(view: View) -> Finding:
    """The commonest content words, and what splitting on blanks would have shown."""
    counted = {split: spoken_words(items) for split, items in view.parts.items()}
    top = [word for word, _ in sorted(counted[view.split].items(), key=lambda pair: (-pair[1], pair[0]))[:TOP_WORDS]]
    lines = [utterance.text for item in dialogues(view.items) for utterance in item.dialogue]
    blanks = Counter(word for line in lines for word in line.split())
    split_top = sorted(blanks.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP_WORDS]
    figure, (left, right) = figures.panels(
        [view.titled("형태소로 나눈 내용어 (1,000개당)", "내용어"), "빈칸으로 나눈 말 (개)"],
        "무엇을 이야기하나?",
        view.source,
        height=5.2 if view.against else 4.2,
        widths=(3, 2),
    )
    rates = {split: [1000 * found[word] / max(1, found.total()) for word in top] for split, found in counted.items()}
    figures.bars(left, top, rates, form="{:.1f}")
    figures.bars(right, [word for word, _ in split_top], {"어절": [count for _, count in split_top]})
    for patch in right.patches:
        patch.set_color("#9A9A9A")
    read_words(blanks)
    empty = [word for word, _ in split_top if not content_words(word)]
    says = (
        f"내용어 {counted[view.split].total():,}개, 서로 다른 것은 {len(counted[view.split]):,}개이고 가장 잦은 것은 "
        f"{', '.join(top[:5])}입니다. 빈칸으로 나누면 위에서부터 {TOP_WORDS}개 가운데 {len(empty)}개"
        f"{'(' + ', '.join(empty[:4]) + ' …)' if empty else ''}에는 내용어가 없습니다.{view.apart('내용어')}"
    )
    so = (
        "무엇에 대한 대화인지는 형태소로 나누어야 보입니다(kiwipiepy). 세는 데에만 쓰고, 모델에는 글을 나누거나 "
        "지우지 않고 그대로 "
        "넣습니다."
    )
    return Finding("words", figure, says, so)


def word_cloud(view: View) -> Finding:
    """The same words as a cloud."""
    titles = [f"{split}의 내용어" for split in view.parts]
    figure, axes = figures.panels(titles, "한눈에 보면?", view.source, height=3.6)
    counted = {split: spoken_words(items) for split, items in view.parts.items()}
    for one, (split, found) in zip(axes, counted.items(), strict=True):
        picture = _cloud(found, wide=len(axes) == 1)
        one.imshow(picture, interpolation="bilinear")
        one.set_axis_off()
        one.set_title(f"{split}의 내용어")
    ours = counted[view.split]
    ranked = sorted(ours.values(), reverse=True)
    half = int(np.searchsorted(np.cumsum(ranked), sum(ranked) / 2)) + 1
    once = sum(count == 1 for count in ours.values()) / max(1, len(ours))
    says = f"가장 잦은 {half:,}개 낱말이 내용어의 절반을 차지하고, 낱말의 {percent(once)}는 한 번만 나옵니다."
    asked = "dev" if view.split == "train" else view.split
    known = spoken_words(view.corpus.splits["train"])
    met = spoken_words(view.corpus.splits[asked])
    new = 1 - sum(count for word, count in met.items() if word in known) / max(1, met.total())
    so = (
        f"{asked}에 나온 내용어의 {percent(new)}는 train에 없어서 학습으로는 그 뜻을 알 수 없습니다. 그래서 한국어를 "
        "이미 아는 "
        "사전 학습 모델에서 시작하고, 대부분은 어댑터만 학습합니다(QLoRA)."
    )
    return Finding("word_cloud", figure, says, so)


def _cloud(counted: Mapping[str, int], wide: bool) -> Any:
    """A picture as an array; equal words give an equal one."""
    from wordcloud import WordCloud

    colours = (figures.BLUE, figures.VERMILLION, figures.GREEN, figures.BLACK, "#9C4F7E")
    shades = {word: colours[place % len(colours)] for place, word in enumerate(sorted(counted))}
    return (
        WordCloud(
            font_path=str(figures.regular_font()),
            width=1160 if wide else 570,
            height=520,
            background_color="white",
            max_words=CLOUD_WORDS,
            prefer_horizontal=1.0,
            # Room around the words, and none inside the letters of large ones.
            margin=6,
            max_font_size=88,
            min_font_size=20,
            relative_scaling=0.3,
            random_state=SEED,
            color_func=lambda word, **_: shades[word],
        )
        .generate_from_frequencies(dict(sorted(counted.items())))
        .to_array()
    )


def marks(view: View) -> Finding:
    """Laughter, tears, other marks of chat, and masked names."""
    rates = {split: mark_rates(items) for split, items in view.parts.items()}
    figure, (left, right) = figures.panels(
        [view.titled("표시가 든 발화 (%)", "웃음과 울음"), view.titled("대화 속 가린 이름의 수 (%)", "가린 이름")],
        "채팅의 흔적은 얼마나 있나?",
        view.source,
        height=3.6,
    )
    figures.bars(
        left,
        list(MARKS),
        {split: [100 * rate for rate in found.values()] for split, found in rates.items()},
        form="{:.1f}",
    )
    counts = {split: [len(masked_names(item)) for item in dialogues(items)] for split, items in view.parts.items()}
    most = min(5, max(map(max, counts.values())))
    shares = {
        split: [100 * sum(min(count, most) == n for count in found) / len(found) for n in range(most + 1)]
        for split, found in counts.items()
    }
    names = [str(n) for n in range(most)] + [f"{most} 이상"]
    figures.bars(right, names, shares, form="{:.0f}", horizontal=False)
    rows = dialogues(view.items)
    felt = sum(any(FEELINGS.search(one.text) for one in item.dialogue) for item in rows) / len(rows)
    named = [(item, name) for item in view.items for option in item.options for name in MASKED_NAME.findall(option)]
    known = sum(name in masked_names(item) for item, name in named) / max(1, len(named))
    says = (
        f"웃음이나 울음이 한 번이라도 나오는 대화는 {percent(felt)}, 가린 이름이 나오는 대화는 "
        f"{percent(sum(count > 0 for count in counts[view.split]) / len(rows))}입니다."
    )
    if named:
        says += f" 선택지에 나오는 가린 이름의 {percent(known)}는 그 대화에 있습니다."
    says += view.apart("웃음과 울음", "가린 이름")
    asked = [utterance for item in view.items for utterance in item.target_utterances]
    in_targets = sum(bool(FEELINGS.search(utterance.text)) for utterance in asked) / len(asked)
    so = (
        f"대상 발화의 {percent(in_targets)}에도 웃음이나 울음이 들어 있으므로, 지우면 묻는 말 자체가 바뀝니다. 가린 "
        "이름은 대화와 "
        "선택지를 잇습니다. 그래서 코드는 이런 표시를 하나도 지우거나 바꾸지 않습니다."
    )
    return Finding("marks", figure, says, so)


def tokens(view: View) -> Finding:
    """Tokens of a prompt, by backbone and by part of the prompt."""
    if not view.encoders:
        says = "이 디스크에는 여덟 백본의 토크나이저가 없어서 세지 않았습니다."
        so = "모델을 하나라도 내려받은 뒤 다시 실행하면 그 모델의 토큰 수가 나옵니다."
        return Finding("tokens", None, says, so)
    heading = "프롬프트는 몇 토큰이고, 어디에 쓰이나?"
    figure, (axes,) = figures.panels(
        [view.titled("막대는 평균(대화마다 첫 문항), 마름모는 가장 긴 문항", "토큰 수")],
        heading,
        view.source,
        height=3.9,
    )
    names = list(view.encoders)
    parts = {name: Counter[str]() for name in names}
    rows = dialogues(view.items)
    for name, encoder in view.encoders.items():
        for found in prompt_parts(encoder, rows):
            parts[name].update(found)
    start = np.zeros(len(names))
    shades = dict(
        zip(PROMPT_PARTS, ("#B8B8B8", figures.BLUE, figures.SKY, figures.ORANGE, figures.GREEN, "#5A5A5A"), strict=True)
    )
    for part in PROMPT_PARTS:
        means = np.array([parts[name][part] / len(rows) for name in names])
        axes.barh(names, means, 0.7, left=start, color=shades[part], label=part, edgecolor="white", linewidth=0.6)
        for place, mean in enumerate(means):
            if mean > 28:
                dark = part in ("대화", "틀", "선택지")
                axes.text(
                    start[place] + mean / 2, place, f"{mean:.0f}", ha="center", va="center", fontsize=8,
                    color="white" if dark else figures.BLACK,
                )  # fmt: skip
        start += means
    for split in view.parts:
        peaks = [max(view.tokens[name][split]) for name in names]
        filled = figures.colour(split) if split == view.split else "none"
        marker = "D" if split == view.split else "s"
        axes.scatter(
            peaks, names, 26, c=filled, edgecolors=figures.colour(split), marker=marker, label=f"{split} 최대", zorder=3
        )
    axes.invert_yaxis()
    axes.set_xlabel("토큰")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), handlelength=1.0)
    average = {name: float(np.mean(view.tokens[name][view.split])) for name in names}
    longest = {name: max(view.tokens[name][view.split]) for name in names}
    low, high = min(average, key=average.__getitem__), max(average, key=average.__getitem__)
    widest = max(longest, key=longest.__getitem__)
    shared = [(parts[name]["시스템"] + parts[name]["대화"]) / parts[name].total() for name in names]
    says = (
        f"문항마다 평균 {average[low]:.0f}토큰({low})에서 {average[high]:.0f}토큰({high})까지이고, 가장 긴 문항은 "
        f"{longest[widest]:,}토큰({widest})입니다. 틀은 화자 이름과 채팅 형식입니다.{view.apart('토큰 수')}"
    )
    if view.corpus.kind == SAMPLE:
        says += " 미니어처의 토크나이저라 진짜 모델의 토큰 수와는 다릅니다."
    so = (
        f"시스템과 대화가 프롬프트의 {percent(min(shared))}–{percent(max(shared))}이고 한 대화의 문항은 이 부분이 "
        "같으므로, 한 번만 "
        "계산합니다(`share_prefixes`). 문맥을 넘는 문항은 자르지 않고 알립니다."
    )
    return Finding("tokens", figure, says, so)


def distances(view: View) -> Finding:
    """All distances between the two splits at a glance."""
    assert view.against, "there is no split to hold this one against"
    found = view.distances
    figure, (axes,) = figures.panels(
        ["거리: 숫자는 콜모고로프–스미르노프, 나머지는 총변동. 0은 같음, 1은 겹치지 않음"],
        f"{view.split}와 {view.against}은 어디가 다른가?",
        view.source,
        height=4.6,
    )
    names = list(found)
    places = np.arange(len(names))
    far = [distance.value > distance.luck for distance in found.values()]
    shades = [figures.VERMILLION if one else "#B8B8B8" for one in far]
    axes.barh(places, [distance.value for distance in found.values()], 0.62, color=shades)
    for place, distance in zip(places, found.values(), strict=True):
        axes.text(
            max(distance) + 0.006, float(place), f"{distance.value:.2f}", va="center", fontsize=8.5, color="#333333"
        )
        axes.plot([distance.luck] * 2, [place - 0.4, place + 0.4], color=figures.BLACK, linewidth=1.8)
    axes.plot([], [], color=figures.BLACK, linewidth=1.8, label="우연의 95 %: 대화를 무작위로 나누었을 때")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.legend(loc="lower right")
    differing = [name for name, one in zip(names, far, strict=True) if one]
    says = (
        f"잰 것 {len(names)}가지 가운데 {len(differing)}가지가 우연보다 멉니다"
        f"{': ' + ', '.join(differing) if differing else ''}. 우연만으로도 {len(names)}가지 가운데 "
        f"{0.05 * len(names):.1f}가지쯤은 선을 넘습니다."
    )
    so = (
        f"선을 넘은 것이 많거나 멀리 넘었다면 dev 정확도를 {view.split}의 정확도로 읽을 때 조심해야 합니다. 유형이 "
        "그렇다면 "
        "`run.evaluate`의 유형별 정확도를 이 비율로 다시 더해 보면 됩니다."
    )
    return Finding("distances", figure, says, so)


# In a notebook


def open_view(split: str, against: str | None = None) -> View:
    """The first cell of a notebook: reads the corpus and says which one it is."""
    view = View(read_corpus(), split, against)
    _display({"text/markdown": f"**{view.source}**"}, view)
    return view


def show(view: View, finding: Finding) -> None:
    """Shows the picture and the two sentences, and keeps the picture as a file."""
    if finding.figure is not None:
        png = figures.to_png(finding.figure, view.corpus.sha256, finding.says)
        file = picture_path(view, finding.slug)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        part.write_bytes(png)
        part.replace(file)
        _display({"image/png": png, "text/plain": finding.says}, view, file=file.name)
    _display({"text/markdown": f"{finding.says}\n\n**그래서** {finding.so}"}, view)


def picture_path(view: View, slug: str) -> Path:
    """Beside the notebook for the sample corpus; else in a folder that git ignores. The environment has its way."""
    home = ours("eda") if view.corpus.kind == SAMPLE else PRIVATE_OUT
    return Path(os.environ.get(OUT_VARIABLE) or home) / view.split / f"{view.split}_{slug}.png"


def _display(data: dict[str, Any], view: View, **more: str) -> None:
    """Shows it, stamped with the corpus: src/eda/notebooks.py refuses to have outputs of another one committed."""
    from IPython.display import display

    encoded = {
        kind: base64.b64encode(value).decode() if isinstance(value, bytes) else value for kind, value in data.items()
    }
    display(encoded, raw=True, metadata={"cci": {"corpus": view.corpus.sha256, **more}})
