"""The questions and their options: categories, where the right option stands, what the options alone give away."""

from collections import defaultdict
from itertools import combinations

import numpy as np

from src.data import CATEGORIES, SPLITS
from src.eda.distances import MEASURES, compare
from src.eda.finding import Finding, percent
from src.eda.measures import option_likeness
from src.eda.view import View
from src.eda.words import overlap, read_words, texts_of
from src.figures import style as figures
from src.worth.metrics import floor_answers, wilson


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
