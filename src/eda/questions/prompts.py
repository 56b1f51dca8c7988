"""The prompts: how many tokens they have, and what for."""

from collections import Counter

import numpy as np

from src.eda.corpus import SAMPLE
from src.eda.finding import Finding, percent
from src.eda.measures import dialogues
from src.eda.view import View
from src.figures import style as figures
from src.prompt.parts import PROMPT_PARTS, prompt_parts


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
