"""The splits: their sizes, odd values, shared dialogues, and the distances of two of them."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from src.data import SPLITS, Item
from src.eda.distances import Distance
from src.eda.finding import Finding, percent
from src.eda.measures import items_of_dialogues, odd_values, seen_in_folds
from src.eda.view import View
from src.figures import style
from src.figures.canvas import Axes

FOLDS = 5


def sizes(view: View) -> Finding:
    """How large the splits are, and whether they share dialogues."""
    splits = view.corpus.splits
    keys = {split: {item.dialogue_key for item in items} for split, items in splits.items()}
    shared = np.array([[len(keys[one] & keys[other]) for other in SPLITS] for one in SPLITS])
    figure, (left, right) = style.panels(
        ["문항과 대화의 수", "겹치는 대화의 수"], "데이터는 얼마나 크고, 서로 겹치지 않나?", view.source, widths=(3, 2)
    )
    counts = {"문항": [len(splits[split]) for split in SPLITS], "대화": [len(keys[split]) for split in SPLITS]}
    style.bars(left, SPLITS, counts)
    style.heatmap(right, shared, SPLITS, SPLITS)
    told = ", ".join(f"{split} {len(splits[split]):,}문항({len(keys[split]):,}대화)" for split in SPLITS)
    says = f"{told}입니다. 대화 하나에 문항이 평균 {len(view.items) / len(keys[view.split]):.1f}개 달려 있습니다."
    pairs = [(one, other) for one, other in combinations(SPLITS, 2) if keys[one] & keys[other]]
    if pairs:
        met = ", ".join(f"{one}–{other} {len(keys[one] & keys[other])}개" for one, other in pairs)
        seen = sum(item.dialogue_key in keys["train"] for item in splits["dev"]) / len(splits["dev"])
        so = (
            f"서로 다른 split에 같은 대화가 들어 있습니다({met}). "
            f"dev 문항의 {percent(seen)}는 학습에서 본 대화에 대한 것이라 그만큼 쉽습니다."
        )
    else:
        so = "겹치는 대화가 없으므로 dev 정확도는 처음 보는 대화에서 잰 값입니다."
    so += " `run.prepare_data`는 데이터를 준비할 때 겹치는 대화의 수를 알려 줍니다."
    return Finding("sizes", figure, says, so)


def odd(view: View) -> Finding:
    """Missing and odd values."""
    counts = {split: odd_values(items) for split, items in view.parts.items()}
    names = list(counts[view.split])
    figure, (axes,) = style.panels(
        ["개수 (같은 대화의 발화는 한 번만 셈)"], "비어 있거나 이상한 값은 어디에 있나?", view.source, height=3.4
    )
    style.bars(axes, names, {split: list(found.values()) for split, found in counts.items()})
    found = [f"{name} {count:,}개" for name, count in counts[view.split].items() if count]
    says = f"{view.split}에서 찾은 값: {', '.join(found)}." if found else f"{view.split}에는 이상한 값이 없습니다."
    so = (
        "`src/data.py`는 읽을 때 숫자를 문자열로, 분리된 자모를 완성형(NFC)으로 바꾸고 선택지 앞뒤의 공백을 지웁니다. "
        "발화의 공백과 줄바꿈은 그대로 두고, 제출 파일에는 원문을 한 글자도 바꾸지 않고 내보냅니다."
    )
    return Finding("odd_values", figure, says, so)


def items_per_dialogue(view: View) -> Finding:
    """How many items share a dialogue, and what that does to folds."""
    counts = {split: items_of_dialogues(items) for split, items in view.parts.items()}
    figure, (left, right) = style.panels(
        [view.titled("문항 수별 대화 비율 (%)", "대화당 문항 수"), "학습에서 본 대화로 평가되는 문항 (%)"],
        "한 대화에 문항이 몇 개 달려 있나?",
        view.source,
        widths=(3, 2),
    )
    numbers = range(1, max(map(max, counts.values())) + 1)
    shares = {split: [100 * found.count(number) / len(found) for number in numbers] for split, found in counts.items()}
    style.bars(left, [str(number) for number in numbers], shares, form="{:.0f}", horizontal=False)
    left.set_xlabel("대화에 달린 문항 수")
    seen = seen_in_folds(view.items, FOLDS)
    names = [f"문항 단위 {FOLDS}-fold", f"대화 단위 {FOLDS}-fold"]
    style.bars(right, names, {view.split: [100 * seen, 0]}, form="{:.0f}", horizontal=False)
    says = (
        f"대화마다 문항이 {min(counts[view.split])}–{max(counts[view.split])}개이고, 문항이 둘 이상인 대화의 "
        f"{percent(_asked_alike(view.items))}에서는 모든 문항이 같은 대상 발화에 대해 묻습니다."
        f"{view.apart('대화당 문항 수')}"
    )
    so = (
        f"문항을 무작위로 {FOLDS}-fold로 나누면 {percent(seen)}가 학습에서 본 대화로 평가됩니다. "
        "따라서 대화 단위로 나누어야 하며, `Item.dialogue_key`는 id와 상관없이 같은 대화를 알아봅니다. "
        "학습과 채점에서는 여러 문항이 함께 쓰는 대화를 한 번만 계산합니다(`share_prefixes`)."
    )
    return Finding("items_per_dialogue", figure, says, so)


def _asked_alike(items: Sequence[Item]) -> float:
    """Of the dialogues with several items, the share whose items all have the same target utterances."""
    groups = defaultdict(list)
    for item in items:
        groups[item.dialogue_key].append(frozenset(item.targets))
    several = [targets for targets in groups.values() if len(targets) > 1]
    return sum(len(set(targets)) == 1 for targets in several) / max(1, len(several))


def distances(view: View) -> Finding:
    """All distances between the two splits at a glance."""
    assert view.against, "there is no split to hold this one against"
    found = view.distances
    figure, (axes,) = style.panels(
        ["수치형은 콜모고로프–스미르노프 거리, 범주형은 총변동 거리 (0: 같음, 1: 겹치지 않음)"],
        f"{view.split}와 {view.against}은 어디가 다른가?",
        view.source,
        height=4.6,
    )
    _draw_distances(axes, found)
    far = [name for name, distance in found.items() if distance.value > distance.luck]
    says = (
        f"{len(found)}가지 측정값 가운데 {len(far)}가지의 거리가 우연 수준보다 큽니다"
        f"{': ' + ', '.join(far) if far else ''}. "
        f"우연만으로도 {len(found)}가지 가운데 {0.05 * len(found):.1f}가지쯤은 선을 넘습니다."
    )
    so = (
        f"선을 넘은 값이 많거나 크게 넘었다면, dev 정확도로 {view.split} 정확도를 짐작할 때 조심해야 합니다. "
        "유형이 선을 넘었다면 `run.evaluate`의 유형별 정확도를 이 비율로 가중 평균해 보면 됩니다."
    )
    return Finding("distances", figure, says, so)


def _draw_distances(axes: Axes, found: dict[str, Distance]) -> None:
    """A bar for each distance, in colour where it is beyond luck, which is a line across the bar."""
    positions = np.arange(len(found))
    shades = [style.VERMILLION if distance.value > distance.luck else "#B8B8B8" for distance in found.values()]
    axes.barh(positions, [distance.value for distance in found.values()], 0.62, color=shades)
    for position, distance in zip(positions, found.values(), strict=True):
        axes.text(
            max(distance) + 0.006, float(position), f"{distance.value:.2f}", va="center", fontsize=8.5, color="#333333"
        )
        axes.plot([distance.luck] * 2, [position - 0.4, position + 0.4], color=style.BLACK, linewidth=1.8)
    luck = "우연 수준: 대화를 무작위로 나누면 95 %가 이보다 가까움"
    axes.plot([], [], color=style.BLACK, linewidth=1.8, label=luck)
    axes.set_yticks(positions, list(found))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.legend(loc="lower right")
