"""The questions and their options: categories, where the right option stands, what the options alone give away."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from src import task
from src.data import SPLITS, Item
from src.eda.distances import MEASURES, compare
from src.eda.finding import Finding, percent
from src.eda.measures import option_likeness
from src.eda.view import View
from src.eda.words import overlap, read_words, texts_of
from src.figures import style
from src.figures.canvas import Axes
from src.worth.floors import floor_answers
from src.worth.metrics import wilson

MOST_SAID = "most said"
RULES = {
    "longest option": "가장 긴 선택지",
    "shortest option": "가장 짧은 선택지",
    "most alike option": "나머지와 가장 비슷한 선택지",
    MOST_SAID: "대화와 가장 많이 겹치는 선택지",
}
"""Rules that pick an option: those of `floor_answers`, and one more that reads the dialogue's words."""
FEW_OPTIONS = 3
"""Up to so many options all orders are few enough to score."""


def categories(view: View) -> Finding:
    """The mix of categories in all splits."""
    splits, names = view.corpus.splits, task.current().categories
    shares = {
        split: [100 * sum(item.category == name for item in items) / len(items) for name in names]
        for split, items in splits.items()
    }
    figure, (axes,) = style.panels(
        [view.titled("유형별 비율 (%)", "유형")], "모든 유형이 고르게 나오나?", view.source, height=3.0
    )
    style.bars(axes, names, shares, form="{:.1f}", horizontal=False)
    apart = {
        f"{one}–{other}": compare(MEASURES["유형"], splits[one], splits[other])
        for one, other in combinations(SPLITS, 2)
    }
    own = dict(zip(names, shares[view.split], strict=True))
    most, least = max(own, key=own.__getitem__), min(own, key=own.__getitem__)
    says = (
        f"{view.split}에서 가장 많은 유형은 {most}({own[most]:.1f} %), "
        f"가장 적은 유형은 {least}({own[least]:.1f} %)입니다. "
        f"split 사이의 거리: {', '.join(f'{two} {distance.text}' for two, distance in apart.items())}."
    )
    far = [two for two, distance in apart.items() if distance.value > distance.luck]
    mixed = (
        f"{', '.join(far)}에서 비율이 우연 수준보다 크게 다르므로"
        if far
        else "비율의 차이는 우연히 나올 수 있는 정도이지만"
    )
    so = (
        f"{mixed}, 한 split의 정확도로 다른 split의 정확도를 짐작할 때는 유형별로 보아야 합니다. "
        "`run.evaluate`는 유형별 정확도와, 모든 유형에 같은 가중치를 준 평균(mean of categories)을 함께 보여 줍니다."
    )
    return Finding("categories", figure, says, so)


def labels(view: View) -> Finding:
    """Where the right option stands, over all and by category. Needs labels."""
    from scipy.stats import chi2_contingency, chisquare

    names, options = task.current().categories, task.current().options
    answered = [item for item in view.items if item.label is not None]
    table = np.array(
        [[sum((item.category, item.label) == (name, label) for item in answered) for label in range(len(options))]
         for name in names]
    )  # fmt: skip
    counts = table.sum(axis=0)
    figure, (left, right) = style.panels(
        ["정답의 위치 (%), 95 % 신뢰구간", "유형별 정답의 위치 (문항 수)"],
        "정답의 위치는 한쪽에 쏠려 있나?",
        view.source,
        widths=(1, 1),
    )
    numbered = [f"{position}번" for position in range(1, len(options) + 1)]
    _draw_shares(left, counts, numbered, style.colour(view.split))
    style.heatmap(right, table, names, numbered)
    # The test of independence takes no category, and no position, that never comes up.
    seen = table[table.any(axis=1)][:, table.any(axis=0)]
    alone, together = float(chisquare(counts).pvalue), float(chi2_contingency(seen).pvalue)
    told = ", ".join(f"{name} {count}개" for name, count in zip(numbered, counts, strict=True))
    says = (
        f"정답은 {told}입니다. 위치가 고르다는 가설의 p값은 {alone:.2f}, "
        f"유형과 위치가 서로 독립이라는 가설의 p값은 {together:.2f}입니다."
    )
    even = alone > 0.05 and together > 0.05
    orders = math.factorial(len(options)) if len(options) <= FEW_OPTIONS else len(options)
    so = (
        f"위치만 보고{'는 맞힐 수 없습니다' if even else '도 어느 정도 맞힐 수 있습니다'}: "
        f"가장 흔한 위치만 골라도 정확도는 {percent(max(counts) / len(answered))}입니다. "
        "모델이 특정 위치를 선호하는 편향은 이와 별개입니다. "
        f"`run.test`에 `--orders {orders}` 옵션을 주면 선택지를 {orders}가지 순서로 보여 주고 평균을 냅니다."
    )
    return Finding("labels", figure, says, so)


def _draw_shares(axes: Axes, counts: NDArray[np.int_], names: Sequence[str], colour: str) -> None:
    """A bar for each count's share of all, with its 95 % interval; a dotted line where equal shares would end."""
    total, positions = int(counts.sum()), np.arange(len(counts))
    shares = 100 * counts / total
    ends = 100 * np.array([wilson(int(count), total) for count in counts])
    axes.bar(positions, shares, 0.6, color=colour, yerr=np.abs(ends.T - shares), ecolor="#444444", capsize=4)
    axes.axhline(100 / len(counts), color=style.GREY, linewidth=1, linestyle=":")
    for position, share in enumerate(shares):
        axes.text(position, share / 2, f"{share:.1f}", ha="center", va="center", color="white", fontweight=style.BOLD)
    axes.set_xticks(positions, names)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def options(view: View) -> Finding:
    """Options: how long they are, how alike, and how much of them the dialogue says. Alone, a split is shown by label;
    with another one beside it, by split.
    """
    read_words(text for items in view.parts.values() for text in texts_of(items))
    panels = {"글자 수": "선택지 길이", "서로 비슷한 정도": "선택지 유사도", "대화와 겹치는 정도": "대화와의 겹침"}
    figure, axes = style.panels(
        [view.titled(title, name) for title, name in panels.items()], "선택지만 보고도 맞힐 수 있나?", view.source
    )
    kinds: dict[str, list[tuple[Item, str]]] = {}
    if view.against is None:
        for kind, right in (("정답", True), ("오답", False)):
            kinds[kind] = [
                (item, option)
                for item in view.items
                for position, option in enumerate(item.options)
                if (position == item.label) == right
            ]
    else:
        kinds = {split: [(item, one) for item in items for one in item.options] for split, items in view.parts.items()}
    long = {kind: [len(option) for _, option in found] for kind, found in kinds.items()}
    said = {kind: [100 * overlap(item, option) for item, option in found] for kind, found in kinds.items()}
    alike = {split: [option_likeness(item) for item in items] for split, items in view.parts.items()}
    style.histogram(axes[0], long, label="선택지의 글자 수", bins=20)
    style.histogram(axes[1], alike, label="두 선택지의 자카드 유사도", bins=[step / 20 for step in range(21)])
    style.histogram(axes[2], said, label="대화에도 나오는 내용어 (%)", bins=list(range(0, 111, 10)))
    for one in axes[1:]:
        one.set_ylabel("")
    start = f"두 선택지의 유사도는 평균 {np.mean(alike[view.split]):.2f}"
    if view.against is None:
        told, so = _told_by_rules(view.items)
        lengths = f"정답은 평균 {np.mean(long['정답']):.1f}자, 오답은 {np.mean(long['오답']):.1f}자입니다"
        return Finding("options", figure, f"{start}이고, {lengths}. {told}", so)
    says = (
        f"{start}, 선택지는 평균 {np.mean(long[view.split]):.1f}자이고, "
        f"내용어의 {np.mean(said[view.split]):.1f} %가 대화에도 나옵니다."
        f"{view.apart('선택지 길이', '선택지 유사도', '대화와의 겹침')}"
    )
    so = (
        f"선택지가 {view.against}과 같은 방식으로 만들어졌는지 여기서 봅니다. "
        f"거리가 우연 수준보다 크면, dev에서 잰 기준선(`run.evaluate`)이 {view.split}에서는 다를 수 있습니다."
    )
    return Finding("options", figure, says, so)


def _told_by_rules(items: Sequence[Item]) -> tuple[str, str]:
    """How often each of `RULES` is right, and what follows."""
    answers = floor_answers(items)
    shares = [[overlap(item, option) for option in item.options] for item in items]
    answers[MOST_SAID] = [found.index(max(found)) for found in shares]
    right = {
        rule: sum(answer == item.label for answer, item in zip(given, items, strict=True)) / len(items)
        for rule, given in answers.items()
    }
    best = max(right, key=right.__getitem__)
    told = ", ".join(f"{RULES[rule]} {percent(share)}" for rule, share in right.items())
    says = f"한 가지 규칙만으로 골랐을 때의 정확도: {told}."
    so = (
        f"{RULES[best]}를 고르기만 해도 {percent(right[best])}입니다"
        f"(무작위로 고르면 {percent(1 / len(task.current().options))}). 정확도는 이런 기준선과 함께 읽어야 하므로 "
        "`run.evaluate`가 대화를 읽지 않는 규칙들의 정확도를 늘 나란히 보여 줍니다."
    )
    return says, so
