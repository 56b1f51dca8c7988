"""The dialogues: how long they are, who speaks, and which utterances the items ask about."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from src.data import Item
from src.eda.corpus import PUBLISHED, SAMPLE
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
from src.figures import style as figures


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


def _interval(shares: Sequence[float]) -> tuple[float, float]:
    """Mean ± 1.96 standard errors."""
    one = describe(shares)
    reach = 1.96 * one.std / max(1, len(shares)) ** 0.5
    return one.mean - reach, one.mean + reach


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
