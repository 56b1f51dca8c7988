"""The words: topics of the dialogues, and marks of chat."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from src.eda.finding import Finding, percent
from src.eda.measures import FEELINGS, MARKS, MASKED_NAME, SEED, dialogues, mark_rates, masked_names
from src.eda.view import View
from src.eda.words import content_words, read_words, spoken_words
from src.figures import style

TOP_WORDS = 15
CLOUD_WORDS = 60
MOST_NAMES = 5
"""Most masked names of a dialogue; more are counted with these."""


def words(view: View) -> Finding:
    """The commonest content words, and what splitting on blanks would have shown."""
    counted = {split: spoken_words(items) for split, items in view.parts.items()}
    own = counted[view.split]
    top = _commonest(own)
    said = Counter(word for item in dialogues(view.items) for one in item.dialogue for word in one.text.split())
    top_said = _commonest(said)
    figure, (left, right) = style.panels(
        [view.titled("형태소로 나눈 내용어 (1,000개당)", "내용어"), "공백으로 나눈 어절 (개)"],
        "무엇을 이야기하나?",
        view.source,
        height=5.2 if view.against else 4.2,
        widths=(3, 2),
    )
    rates = {split: [1000 * found[word] / max(1, found.total()) for word in top] for split, found in counted.items()}
    style.bars(left, top, rates, form="{:.1f}")
    style.bars(right, top_said, {"어절": [said[word] for word in top_said]})
    for patch in right.patches:
        patch.set_color("#9A9A9A")
    read_words(said)
    empty = [word for word in top_said if not content_words(word)]
    says = (
        f"내용어는 {own.total():,}개(서로 다른 것은 {len(own):,}개)이고, "
        f"가장 자주 나오는 것은 {', '.join(top[:5])}입니다. "
        f"공백으로 나누면 상위 {TOP_WORDS}개 가운데 {len(empty)}개"
        f"{'(' + ', '.join(empty[:4]) + ' …)' if empty else ''}에는 내용어가 없습니다.{view.apart('내용어')}"
    )
    so = (
        "무엇에 대한 대화인지는 형태소로 나누어야 보입니다(kiwipiepy). "
        "형태소는 세는 데에만 쓰고, 모델에는 텍스트를 나누거나 지우지 않고 그대로 넣습니다."
    )
    return Finding("words", figure, says, so)


def _commonest(counted: Mapping[str, int]) -> list[str]:
    """The `TOP_WORDS` commonest, equally common ones in alphabetical order."""
    return [word for word, _ in sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP_WORDS]]


def word_cloud(view: View) -> Finding:
    """The same words as a cloud."""
    figure, axes = style.panels([f"{split}의 내용어" for split in view.parts], "한눈에 보면?", view.source, height=3.6)
    counted = {split: spoken_words(items) for split, items in view.parts.items()}
    for one, (split, found) in zip(axes, counted.items(), strict=True):
        one.imshow(_cloud(found, wide=len(axes) == 1), interpolation="bilinear")
        one.set_axis_off()
        one.set_title(f"{split}의 내용어")
    own = counted[view.split]
    ranked = sorted(own.values(), reverse=True)
    half = int(np.searchsorted(np.cumsum(ranked), sum(ranked) / 2)) + 1
    once = sum(count == 1 for count in own.values()) / max(1, len(own))
    says = f"가장 자주 나오는 단어 {half:,}개가 내용어의 절반을 차지하고, 단어의 {percent(once)}는 한 번만 나옵니다."
    asked = "dev" if view.split == "train" else view.split
    known = spoken_words(view.corpus.splits["train"])
    met = spoken_words(view.corpus.splits[asked])
    new = 1 - sum(count for word, count in met.items() if word in known) / max(1, met.total())
    so = (
        f"{asked}에 나오는 내용어의 {percent(new)}는 train에 없어서 학습만으로는 그 뜻을 알 수 없습니다. "
        "따라서 한국어를 이미 아는 사전 학습 모델에서 시작하고, 대부분은 어댑터만 학습합니다(QLoRA)."
    )
    return Finding("word_cloud", figure, says, so)


def _cloud(counted: Mapping[str, int], wide: bool) -> NDArray[np.uint8]:
    """A picture (height, width, 3). Equal words give an equal picture."""
    from wordcloud import WordCloud

    colours = (style.BLUE, style.VERMILLION, style.GREEN, style.BLACK, "#9C4F7E")
    shades = {word: colours[position % len(colours)] for position, word in enumerate(sorted(counted))}
    cloud = WordCloud(
        font_path=str(style.regular_font()),
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
    return cloud.generate_from_frequencies(dict(sorted(counted.items()))).to_array()


def marks(view: View) -> Finding:
    """Laughter, tears, other marks of chat, and masked names."""
    panels = {"표현이 나오는 발화 (%)": "웃음과 울음", "대화별 마스킹된 이름 수 (%)": "마스킹된 이름"}
    figure, (left, right) = style.panels(
        [view.titled(title, name) for title, name in panels.items()],
        "채팅의 흔적은 얼마나 있나?",
        view.source,
        height=3.6,
    )
    rates = {split: mark_rates(items) for split, items in view.parts.items()}
    shares = {split: [100 * rate for rate in found.values()] for split, found in rates.items()}
    style.bars(left, list(MARKS), shares, form="{:.1f}")
    counts = {split: [len(masked_names(item)) for item in dialogues(items)] for split, items in view.parts.items()}
    most = min(MOST_NAMES, max(map(max, counts.values())))
    shares = {
        split: [100 * sum(min(count, most) == n for count in found) / len(found) for n in range(most + 1)]
        for split, found in counts.items()
    }
    style.bars(right, [*map(str, range(most)), f"{most} 이상"], shares, form="{:.0f}", horizontal=False)

    talks, own = dialogues(view.items), counts[view.split]
    felt = sum(any(FEELINGS.search(one.text) for one in item.dialogue) for item in talks) / len(talks)
    says = (
        f"웃음이나 울음이 한 번이라도 나오는 대화는 {percent(felt)}, "
        f"마스킹된 이름이 나오는 대화는 {percent(sum(count > 0 for count in own) / len(own))}입니다."
    )
    named = [(item, name) for item in view.items for option in item.options for name in MASKED_NAME.findall(option)]
    if named:
        known = sum(name in masked_names(item) for item, name in named) / len(named)
        says += f" 선택지에 나오는 마스킹된 이름의 {percent(known)}는 그 대화에도 나옵니다."
    says += view.apart("웃음과 울음", "마스킹된 이름")
    asked = [utterance for item in view.items for utterance in item.target_utterances]
    in_targets = sum(bool(FEELINGS.search(utterance.text)) for utterance in asked) / len(asked)
    so = (
        f"대상 발화의 {percent(in_targets)}에도 웃음이나 울음이 있으므로, 지우면 묻는 발화 자체가 달라집니다. "
        "마스킹된 이름은 대화와 선택지를 이어 줍니다. 따라서 코드는 이런 표현을 하나도 지우거나 바꾸지 않습니다."
    )
    return Finding("marks", figure, says, so)
