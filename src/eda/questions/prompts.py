"""The prompts: their tokens, by backbone and part."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from src.eda.corpus import SAMPLE, of_shipped_kind
from src.eda.finding import Finding, percent
from src.eda.measures import dialogues
from src.eda.view import View
from src.figures import style
from src.figures.canvas import Axes
from src.prompt.parts import PROMPT_PARTS, prompt_parts

SHADES = dict(zip(PROMPT_PARTS, ("#B8B8B8", style.BLUE, style.SKY, style.ORANGE, style.GREEN, "#5A5A5A"), strict=True))
DARK = ("대화", "틀", "선택지")
"""Parts whose shade takes a white number."""
LEAST_NUMBERED = 28
"""Least tokens of a bar that has room for its number."""


def tokens(view: View) -> Finding:
    """Tokens of a prompt, by backbone and by part of the prompt."""
    if not view.encoders:
        if of_shipped_kind():
            says = "이 디스크에는 백본의 토크나이저가 없어서 세지 않았습니다."
            so = "모델을 하나라도 내려받은 뒤 다시 실행하면 그 모델의 토큰 수가 나옵니다."
        else:
            says = "저장소의 프롬프트에 이 과제의 유형이 없거나, 이 디스크에 토크나이저가 없어서 세지 않았습니다."
            so = "`run.prompts`에 `--task`, `--lengths`와 이 과제의 프롬프트를 주면 토큰 수가 나옵니다."
        return Finding("tokens", None, says, so)
    figure, (axes,) = style.panels(
        [view.titled("막대는 평균(대화마다 첫 문항), 마름모는 가장 긴 문항", "토큰 수")],
        "프롬프트는 몇 토큰이고, 어디에 쓰이나?",
        view.source,
        height=3.9,
    )
    parts = {
        name: sum(prompt_parts(encoder, dialogues(view.items)), Counter[str]())
        for name, encoder in view.encoders.items()
    }
    talks = len(dialogues(view.items))
    _draw_parts(axes, {name: {part: found[part] / talks for part in PROMPT_PARTS} for name, found in parts.items()})
    for split in view.parts:
        peaks = [max(view.tokens[name][split]) for name in parts]
        colour = style.colour(split)
        filled, marker = (colour, "D") if split == view.split else ("none", "s")
        axes.scatter(
            peaks, list(parts), 26, c=filled, edgecolors=colour, marker=marker, label=f"{split} 최대", zorder=3
        )
    axes.invert_yaxis()
    axes.set_xlabel("토큰")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), handlelength=1.0)

    average = {name: float(np.mean(view.tokens[name][view.split])) for name in parts}
    longest = {name: max(view.tokens[name][view.split]) for name in parts}
    low, high = min(average, key=average.__getitem__), max(average, key=average.__getitem__)
    widest = max(longest, key=longest.__getitem__)
    shared = [(found["시스템"] + found["대화"]) / found.total() for found in parts.values()]
    says = (
        f"문항마다 평균 {average[low]:.0f}토큰({low})에서 {average[high]:.0f}토큰({high})까지이고, "
        f"가장 긴 문항은 {longest[widest]:,}토큰({widest})입니다. '틀'은 화자 이름, 채팅 형식 등 나머지입니다."
        f"{view.apart('토큰 수')}"
    )
    if view.corpus.kind == SAMPLE:
        says += " 미니어처의 토크나이저라 실제 모델의 토큰 수와는 다릅니다."
    so = (
        f"시스템 메시지와 대화가 프롬프트의 {percent(min(shared))}–{percent(max(shared))}이고 "
        "한 대화의 문항은 이 부분이 같으므로, 한 번만 계산합니다(`share_prefixes`). "
        "문맥을 넘는 문항은 자르지 않고 알립니다."
    )
    return Finding("tokens", figure, says, so)


def _draw_parts(axes: Axes, means: Mapping[str, Mapping[str, float]]) -> None:
    """A bar for each backbone, put together from the mean tokens of each part."""
    names = list(means)
    start = np.zeros(len(names))
    for part in PROMPT_PARTS:
        widths = np.array([means[name][part] for name in names])
        axes.barh(names, widths, 0.7, left=start, color=SHADES[part], label=part, edgecolor="white", linewidth=0.6)
        for position, width in enumerate(widths):
            if width > LEAST_NUMBERED:
                middle, colour = start[position] + width / 2, "white" if part in DARK else style.BLACK
                axes.text(middle, position, f"{width:.0f}", ha="center", va="center", fontsize=8, color=colour)
        start += widths
