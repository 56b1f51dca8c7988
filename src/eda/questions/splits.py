"""The splits: how large they are, what is odd in them, what their items share, how far two of them are apart."""

from collections import defaultdict
from itertools import combinations

import numpy as np

from src.data import SPLITS
from src.eda.finding import Finding, percent
from src.eda.measures import items_of_dialogues, odd_values, seen_in_folds
from src.eda.view import View
from src.figures import style as figures


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
