"""The dialogues: how long they are, who speaks, and which utterances the items ask about."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from src.data import Item
from src.eda.corpus import SAMPLE, published
from src.eda.finding import Finding, percent
from src.eda.measures import (
    SHORT_WINDOW_TURNS,
    character_count,
    describe,
    dialogues,
    length_figures,
    lost_targets,
    run_lengths,
    target_position,
    turn_count,
    word_count,
)
from src.eda.view import View
from src.figures import style
from src.figures.canvas import Axes

TENTHS = 10
LONGEST_RUN = 4
"""Most turns of one speaker without a break; longer runs are counted with these."""


def lengths(view: View) -> Finding:
    """Turns, characters and words of a dialogue."""
    figure, axes = style.panels(
        [view.titled(unit, f"{unit} 수") for unit in ("턴", "글자", "어절")], "대화는 얼마나 긴가?", view.source
    )
    counts: dict[str, Callable[[Item], int]] = {"턴": turn_count, "글자": character_count, "어절": word_count}
    for one, (unit, count) in zip(axes, counts.items(), strict=True):
        values = {split: [count(item) for item in items] for split, items in view.parts.items()}
        whole = range(min(map(min, values.values())), max(map(max, values.values())) + 2)
        edges = (np.array(whole) - 0.5).tolist() if len(whole) < 40 else 24
        style.histogram(one, values, label=f"문항에 딸린 대화의 {unit} 수", bins=edges)
        if one is not axes[0]:
            one.set_ylabel("")
    found = length_figures(view.items)
    turns, characters, words = found["turns"], found["characters"], found["words"]
    says = (
        f"문항마다 평균 {turns.mean:.6f}턴(표준편차 {turns.std:.6f}), "
        f"{characters.mean:.1f}자(최대 {characters.high:,.0f}), "
        f"{words.mean:.6f}어절(표준편차 {words.std:.6f})입니다."
    )
    corpus, known = view.corpus, published()
    if known and corpus.of_official_size and view.split == "train" and corpus.kind != SAMPLE:
        told = ", ".join(f"{mean} (표준편차 {std})" for mean, std in known.values())
        equal = corpus.as_published
        says += f" 발표된 값 {told}과 {'같습니다' if equal else '다릅니다. 파일이 공식 데이터인지 확인하세요'}."
    says += view.apart("턴 수", "글자 수", "어절 수")
    so = (
        f"가장 긴 대화도 {characters.high:,.0f}자이므로 자를 이유가 없습니다. "
        "코드는 아무것도 자르지 않으며, 모델의 문맥보다 긴 문항이 있으면 id와 길이를 알리고 멈춥니다"
        "(`src/prompt/encode.py`)."
    )
    return Finding("lengths", figure, says, so)


def turn_lengths(view: View) -> Finding:
    """How the length of turns changes within a dialogue."""
    figure, (left, right) = style.panels(
        [view.titled("대화 안의 위치별 발화 길이", "발화 길이"), "바로 앞 발화와의 길이 차이"],
        "발화 길이는 대화 안에서 어떻게 달라지나?",
        view.source,
    )
    by_place = {split: _lengths_by_tenth(dialogues(items)) for split, items in view.parts.items()}
    for split, tenths in by_place.items():
        _draw_tenths(left, tenths, split, "-o" if split == view.split else "--s")
    left.set_xlabel("대화 안의 위치 (%), 띠는 95 % 신뢰구간")
    left.set_ylabel("발화의 글자 수")
    left.set_ylim(bottom=0)
    changes: dict[str, list[int]] = {}
    for split, items in view.parts.items():
        lines = [[len(utterance.text) for utterance in item.dialogue] for item in dialogues(items)]
        changes[split] = [after - before for line in lines for before, after in pairwise(line)]
    style.histogram(right, changes, label="글자 수 차이", bins=25)

    means = [float(np.mean(found)) for found in by_place[view.split].values()]
    asked, others = _target_lengths(view.items)
    ratio = float(np.mean(asked)) / max(1.0, float(np.mean(others)))
    says = (
        f"대화의 처음 5분의 1에서는 발화가 평균 {np.mean(means[:2]):.1f}자, "
        f"마지막 5분의 1에서는 {np.mean(means[-2:]):.1f}자입니다. "
        f"이웃한 발화끼리는 평균 {np.mean(np.abs(changes[view.split])):.1f}자 차이가 납니다.{view.apart('발화 길이')}"
    )
    so = (
        f"대상 발화는 평균 {np.mean(asked):.1f}자로 나머지({np.mean(others):.1f}자)의 {ratio:.1f}배"
        f"{'에 그쳐 길이로는 구별할 수 없습니다' if 0.8 < ratio < 1.25 else '이지만 길이로 정해지지는 않습니다'}. "
        "따라서 프롬프트가 대상 발화를 따로 인용하거나 표시해 줍니다."
    )
    return Finding("turn_lengths", figure, says, so)


def _lengths_by_tenth(talks: Sequence[Item]) -> dict[int, list[float]]:
    """Tenth of the dialogue → the mean length of its turns in each dialogue. Dialogues of fewer than ten turns skip
    some tenths; a tenth that all of them skip is left out.
    """
    by_place: dict[int, list[float]] = {tenth: [] for tenth in range(TENTHS)}
    for item in talks:
        own: list[list[int]] = [[] for _ in range(TENTHS)]
        for position, utterance in enumerate(item.dialogue):
            own[position * TENTHS // len(item.dialogue)].append(len(utterance.text))
        for tenth, found in enumerate(own):
            if found:
                by_place[tenth].append(float(np.mean(found)))
    return {tenth: found for tenth, found in by_place.items() if found}


def _draw_tenths(axes: Axes, tenths: dict[int, list[float]], split: str, look: str) -> None:
    """A line through the means, and a band of 1.96 standard errors around it."""
    positions = [100 * (tenth + 0.5) / TENTHS for tenth in tenths]
    found = [describe(lengths) for lengths in tenths.values()]
    reach = [1.96 * one.std / len(lengths) ** 0.5 for one, lengths in zip(found, tenths.values(), strict=True)]
    low = [one.mean - beyond for one, beyond in zip(found, reach, strict=True)]
    high = [one.mean + beyond for one, beyond in zip(found, reach, strict=True)]
    colour = style.colour(split)
    axes.plot(positions, [one.mean for one in found], look, color=colour, markersize=4, label=split)
    axes.fill_between(positions, low, high, color=colour, alpha=0.18, linewidth=0)


def _target_lengths(items: Sequence[Item]) -> tuple[list[int], list[int]]:
    """Characters of the target utterances, and of all others; each dialogue once."""
    targets = {item.dialogue_key: {one.id for one in item.target_utterances} for item in items}
    asked: list[int] = []
    others: list[int] = []
    for item in dialogues(items):
        for utterance in item.dialogue:
            (asked if utterance.id in targets[item.dialogue_key] else others).append(len(utterance.text))
    return asked, others


def speakers(view: View) -> Finding:
    """Who speaks, and for how many turns without a break."""
    figure, (left, right) = style.panels(
        ["화자1의 비중 (%)", view.titled("한 화자가 연달아 말한 턴 수 (%)", "연달아 말하기")],
        "두 화자는 고르게 번갈아 말하나?",
        view.source,
    )
    shares, runs = {}, {}
    for split, items in view.parts.items():
        talks = dialogues(items)
        turns = [utterance for item in talks for utterance in item.dialogue]
        targets = [utterance for item in items for utterance in item.target_utterances]
        text = sum(len(utterance.text) for utterance in turns if utterance.speaker == 1)
        shares[split] = [
            100 * sum(item.dialogue[0].speaker == 1 for item in talks) / len(talks),
            100 * sum(utterance.speaker == 1 for utterance in turns) / len(turns),
            100 * text / max(1, sum(len(utterance.text) for utterance in turns)),
            100 * sum(utterance.speaker == 1 for utterance in targets) / len(targets),
        ]
        found = [min(length, LONGEST_RUN) for item in talks for length in run_lengths(item)]
        runs[split] = [100 * found.count(length) / len(found) for length in range(1, LONGEST_RUN + 1)]
    style.bars(left, ["첫 턴", "모든 턴", "모든 글자", "대상 발화"], shares, form="{:.0f}")
    left.axvline(50, color=style.GREY, linewidth=1, linestyle=":", zorder=0)
    for number in left.texts:
        number.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    names = [*map(str, range(1, LONGEST_RUN)), f"{LONGEST_RUN} 이상"]
    style.bars(right, names, runs, form="{:.1f}", horizontal=False)
    again = sum(runs[view.split][1:]) / 100
    says = (
        f"화자1이 턴의 {shares[view.split][1]:.1f} %, 글자의 {shares[view.split][2]:.1f} %를 말하고, "
        f"말차례의 {percent(again)}에서는 한 화자가 두 턴 이상 연달아 말합니다.{view.apart('연달아 말하기')}"
    )
    so = (
        "한 화자가 연달아 말하기도 하므로, 번갈아 말해야 하는 채팅 템플릿의 user와 assistant로는 대화를 옮길 수 "
        "없습니다. 프롬프트는 대화 전체를 사용자 메시지 하나에 넣고 줄마다 화자 번호를 붙입니다."
    )
    return Finding("speakers", figure, says, so)


def targets(view: View) -> Finding:
    """How many target utterances there are, and where."""
    figure, (left, right) = style.panels(
        [view.titled("대상 발화 수 (%)", "대상 발화 수"), view.titled("대상 발화의 위치", "대상 발화 위치")],
        "대상 발화는 몇 개이고, 대화의 어디에 있나?",
        view.source,
        widths=(2, 3),
    )
    counts = {split: [len(item.targets) for item in items] for split, items in view.parts.items()}
    numbers = range(1, max(map(max, counts.values())) + 1)
    shares = {split: [100 * found.count(n) / len(found) for n in numbers] for split, found in counts.items()}
    style.bars(left, [str(n) for n in numbers], shares, form="{:.0f}", horizontal=False)
    positions = {split: [100 * target_position(item) for item in items] for split, items in view.parts.items()}
    style.histogram(right, positions, label="대화 안의 위치 (%, 0은 첫 턴)", bins=list(range(0, 101, 5)))
    own = positions[view.split]
    several = sum(count > 1 for count in counts[view.split]) / len(view.items)
    says = (
        f"문항의 {percent(several)}는 대상 발화가 둘 이상이고, 위치의 평균은 {np.mean(own):.0f} %, "
        f"사분위 범위는 {np.quantile(own, 0.25):.0f}–{np.quantile(own, 0.75):.0f} %입니다."
        f"{view.apart('대상 발화 수', '대상 발화 위치')}"
    )
    so = (
        f"마지막 {SHORT_WINDOW_TURNS}턴만 남기면 "
        f"문항의 {percent(lost_targets(view.items))}에서 대상 발화가 사라집니다. "
        "따라서 대화의 앞도 뒤도 자르지 않고, 대상 발화가 여럿이면 모두 대화 순서대로 보여 줍니다."
    )
    return Finding("targets", figure, says, so)
