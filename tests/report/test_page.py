import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from run import evaluate as evaluate_command
from run import report, vote
from src.console.cli import UserError
from src.figures import style
from src.files.writing import write_json
from src.report.findings import Findings, find
from src.report.groups import MISSED_BY, error_groups, missed_by
from src.report.item_data import flips
from src.report.page import embedded, page
from src.report.sections import curve_pictures, curves
from src.report.words import LANGUAGES, say, script_words, words
from src.score.item_scores import ItemScores
from src.vote.voters import Request
from tests.made_page import SCRIPT, full_findings, make_items, make_page_run
from tests.made_runs import stored

SOURCES = Path(report.__file__).parents[1] / "src" / "report"
LOSS = {"loss": [[10, 2.5], [20, 1.0]], "evaluations": [{"step": 20, "eval_accuracy": 0.75}]}
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's script in Node")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 labelled items, three runs (one of them scored by six orders), and four items without labels."""
    folder = tmp_path_factory.mktemp("page")
    make_items(folder / "data", "dev", 24)
    for name, right, orders in (("good", 0.95, 6), ("fair", 0.7, 1), ("poor", 0.4, 1)):
        make_page_run(folder / "results" / name, folder / "data", "dev", right=right, orders=orders, **LOSS)
    reasoning = folder / "results" / "good" / "reasoning_dev.jsonl"
    reasoning.write_text(
        json.dumps({"id": "made-0003", "text": "생각해 보면 <b>비</b>가 온다."}) + "\n", encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> Findings:
    return find(Request([], [], "dev", place / "results"))


@pytest.fixture(scope="module")
def text(found: Findings) -> str:
    return page(found)


def data_of(text: str) -> dict[str, Any]:
    found = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[0])
    assert isinstance(found, dict)
    return found


def play(page: Path, steps: str, where: str = "") -> Any:
    """The value of the last of `steps`, which are JavaScript, in the page."""
    command = ["node", str(Path(__file__).parent / "dom.js"), str(page), where]
    done = subprocess.run(command, input=steps, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_numbers_are_those_of_evaluate(place: Path, text: str, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    names = ["good", "fair", "poor"]
    evaluate_command.main([*names, "--results", str(place / "results"), "--json", str(told)])
    said = json.loads(told.read_text(encoding="utf-8"))
    rows = re.sub(r"<svg.*?</svg>", "", text, flags=re.S)
    for one in said["inputs"]:
        low, high = one["interval"]
        cells = f'{one["correct"]}/24</td><td class="number main">{100 * one["accuracy"]:.1f} %</td>'
        assert f'{cells}<td class="number">{100 * low:.1f}–{100 * high:.1f}</td>' in rows
        place_of = data_of(text)["runs"].index(one["name"])
        items, answers = data_of(text)["items"], data_of(text)["answers"][place_of]
        missed = [item["id"] for item, answer in zip(items, answers, strict=True) if item["label"] != answer]
        assert missed == [item["id"] for item in one["missed"]]
    assert len(said["pairs"]) == 3
    for pair in said["pairs"]:
        other = pair["other"] if pair["better"] == pair["one"] else pair["one"]
        verdict = say("verdict_not", one=pair["one"], other=pair["other"])
        assert (say("verdict_better", one=pair["better"], other=other) if pair["better"] else verdict) in text
        assert f"{pair['only_one']} : {pair['only_other']}" in text
    assert said["floors"].keys() > {"longest option", "trained on options"}
    assert all(f'<span class="en" lang="en">{name}</span>' in text for name in said["floors"])


def test_what_somebody_wrote_stays_text(text: str) -> None:
    assert "alert(1)" in text and "<script>alert" not in text and "<b>비" not in text
    assert text.count("<script") == 3 == text.count("</script>")
    item = data_of(text)["items"][0]
    assert SCRIPT in data_of(text)["dialogues"][item["dialogue"]][0][1]
    assert item["options"][1].startswith(SCRIPT)
    assert json.loads(embedded({"<": "</script>&\u2028"})) == {"<": "</script>&\u2028"}


def test_names_of_runs_are_escaped(place: Path) -> None:
    make_page_run(place / "odd" / "<i>a&b", place / "data", "dev", right=0.5)
    text = page(find(Request([], [], "dev", place / "odd")))
    assert "&lt;i&gt;a&amp;b" in text and "<i>" not in text


def test_nothing_but_its_own_style_and_script_is_allowed(text: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(policy).split(";"))
    assert rules["default-src"] == "'none'" and rules.keys() - {"base-uri", "form-action"} == {
        "default-src",
        "style-src",
        "script-src",
    }
    for rule, (own,) in (
        ("style-src", re.findall(r"<style>(.*?)</style>", text, re.S)),
        ("script-src", re.findall(r"<script>(.*?)</script>", text, re.S)),
    ):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'"
    # The policy would forbid these, too, and the page would be without them.
    assert not re.findall(r"<[^>]* (?:style|src|on\w+)=|url\(|@import|https?://", text.split('id="words"')[0])


def test_the_page_says_what_it_holds(found: Findings, text: str) -> None:
    assert all(words in text for words in words()["licence"])
    spoken = {turn.text for item in found.items for turn in item.dialogue}
    spoken |= {option for item in found.items for option in item.options}
    bare = page(found, text=False)
    assert "생각해 보면" in text and "생각해 보면" not in bare
    inside = json.dumps([*spoken], ensure_ascii=False)
    assert "비가 쏟아지네" in inside
    unescaped = json.dumps(data_of(bare), ensure_ascii=False)
    assert not [one for one in spoken if one in bare or one in unescaped or html.escape(one) in bare]
    assert data_of(bare)["answers"] == data_of(text)["answers"] and words()["licence"][1] not in bare


def test_votes_miss_nothing_of_their_own(place: Path, tmp_path: Path) -> None:
    runs, results = [str(place / "results" / name) for name in ("good", "fair", "poor")], place / "results"
    vote.main([*runs, "--split", "dev", "--results", str(results), "--out", str(tmp_path / "vote")])
    both = find(Request([*runs, str(tmp_path / "vote")], [], "dev", results))
    assert len(both.votes) == 1 and both.runs == both.names[:3] and len(both.names) == 4
    data = data_of(page(both))
    assert data["votes"] == [False] * 3 + [True] and max(data["missed"]) <= 3
    assert data["byOrder"][3] is data["margins"][3] is None
    counts = [[own[place] for own in data["answers"][:3]] for place in range(24)]
    assert data["shares"][3][0] == [round(1000 * counts[0].count(option) / 3) for option in range(3)]
    alone = data_of(page(find(Request([str(tmp_path / "vote")], [], "dev", results))))
    assert (alone["labelled"], alone["missed"], alone["missedBy"]) == (True, None, None)


def test_without_names_all_that_answered_the_items_are_shown(tmp_path: Path) -> None:
    make_items(tmp_path / "data", "dev", 12)
    for name in ("one", "two"):
        make_page_run(tmp_path / name, tmp_path / "data", "dev", right=0.7)
    make_page_run(tmp_path / "unfinished", tmp_path / "data", "dev", right=0.7)
    (tmp_path / "unfinished" / "record.json").unlink()
    vote.main(["one", "two", "--split", "dev", "--results", str(tmp_path)])
    found = find(Request([], [], "dev", tmp_path))
    assert (found.names, found.votes) == (["one", "two", "vote"], ["vote"])
    assert found.left_out == {"unfinished": "not finished"}
    record = stored(tmp_path / "vote")
    record["splits"]["dev"]["data_sha256"] = "0" * 64
    write_json(tmp_path / "vote" / "record.json", record)
    found = find(Request([], [], "dev", tmp_path))
    assert found.names == ["one", "two"] and found.left_out["vote"] == "voted on other items"


def test_what_is_damaged_does_not_keep_the_others_from_being_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_items(tmp_path / "data", "dev", 12)
    for name in ("one", "two", "record", "scores", "edited", "reasoning"):
        make_page_run(tmp_path / name, tmp_path / "data", "dev", right=0.7)
    (tmp_path / "record" / "record.json").write_text('{"run": 3', encoding="utf-8")
    scores = tmp_path / "scores" / "scores_dev.jsonl"
    scores.write_text(scores.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    edited = tmp_path / "edited" / "scores_dev.jsonl"
    edited.write_text(edited.read_text(encoding="utf-8").replace("-0.", "-9.", 1), encoding="utf-8")
    (tmp_path / "reasoning" / "reasoning_dev.jsonl").write_text('{"id": 1\n', encoding="utf-8")
    report.main(["--results", str(tmp_path)])
    said = capsys.readouterr().out
    for name in ("record", "scores", "edited", "reasoning"):
        assert re.search(rf"^left out: {re.escape(str(tmp_path / name))}\b", said, re.M), said
    found = find(Request([], [], "dev", tmp_path))
    assert found.names == ["one", "two"]
    assert found.left_out.keys() == found.damaged.keys() == {"record", "scores", "edited", "reasoning"}
    with pytest.raises(UserError, match="is damaged"):  # named, it has to be right
        find(Request(["one", "record"], [], "dev", tmp_path))


def test_items_without_labels_have_neither_right_nor_wrong(tmp_path: Path) -> None:
    make_items(tmp_path / "data", "test", 4, labelled=False)
    for name in ("one", "two"):
        make_page_run(tmp_path / name, tmp_path / "data", "test", right=0.5)
    report.main(["--split", "test", "--results", str(tmp_path)])
    text = (tmp_path / "report_test.html").read_text(encoding="utf-8")
    data = data_of(text)
    assert (data["labelled"], data["missed"], data["missedBy"]) == (False, None, None)
    assert say("no_labels") in text and "sec-tests" not in text and 'id="sec-alike"' in text


def test_both_languages_say_everything() -> None:
    fields = re.compile(r"\{\w+\}")
    for key, both in words().items():
        assert len(both) == len(LANGUAGES) == 2, key
        assert sorted(fields.findall(both[0])) == sorted(fields.findall(both[1])), key
    template = (SOURCES / "page.html.jinja").read_text(encoding="utf-8")
    sections = (SOURCES / "sections.py").read_text(encoding="utf-8")
    script = (SOURCES / "page.js").read_text(encoding="utf-8")
    unused = [key for key in words() if not key.startswith("js_") and key not in template + sections]
    derived = ("to_", "by_", "group_all", "missed_", "floor_")
    heads = re.compile(r"(\w+)_title")
    assert [key for key in unused if not key.startswith(derived) and not heads.fullmatch(key)] == []
    used = re.findall(r'(?:say|inLanguage|button)\("(\w+)"', script)
    assert set(used) <= script_words().keys()


def test_the_page_has_the_colours_of_the_pictures() -> None:
    sheet = (SOURCES / "page.css").read_text(encoding="utf-8")
    assert f"--accent: light-dark({style.BLUE.lower()}, {style.SKY.lower()})" in sheet


@pytest.mark.parametrize(
    ("count", "runs", "words"),
    [(3, 3, "all"), (2, 3, "most"), (1, 3, "one"), (0, 3, "none"), (4, 8, "some"), (5, 8, "most"), (1, 1, "all")],
)
def test_missed_by_how_many(count: int, runs: int, words: str) -> None:
    assert MISSED_BY[missed_by(count, runs)] == words


def test_every_division_holds_every_item(found: Findings) -> None:
    divisions = error_groups(found)
    assert {"by_category", "by_turns", "by_targets", "by_margin", "by_flips"} <= divisions.keys()
    (whole,) = divisions["group_all"]
    assert found.compared is not None
    accuracies = [result.accuracy for result in found.compared.results.values()]
    assert whole.mean == pytest.approx(sum(accuracies) / 3)
    for groups in divisions.values():
        assert sum(group.items for group in groups) == 24
        assert [sum(counts) for counts in zip(*(group.missed_by for group in groups), strict=True)] == [
            *whole.missed_by
        ]


def test_an_order_that_chooses_another_option_is_a_flip() -> None:
    # Under 012 option 0 is ahead by 3, under 120 (A shows option 1) option 1 by 1: together option 0.
    assert flips(ItemScores("x", ("012", "120"), ((3.0, 0.0, 0.0), (1.0, 0.0, 0.0)))) == 1
    assert flips(ItemScores("x", ("012", "120"), ((3.0, 0.0, 0.0), (0.0, 0.0, 1.0)))) == 0


def test_curves_leave_out_what_is_no_number() -> None:
    assert curves(LOSS) == ([(10, 2.5), (20, 1.0)], [(20, 0.75)])
    assert curves({"loss": [[1, None], "x", [2, 0.5]], "evaluations": [{"step": 1}, 3]}) == ([(2, 0.5)], [])
    assert curves(None) == curves({"loss": None}) == ([], [])


def test_mistakes_are_named(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to show of dev"):
        report.main(["--results", str(tmp_path)])
    with pytest.raises(UserError, match="no such run"):
        report.main(["nobody", "--results", str(place / "results")])
    with pytest.raises(SystemExit) as stopped:
        report.main(["--out", str(tmp_path / "page.txt")])
    assert stopped.value.code == 2 and not list(tmp_path.iterdir())
    broken = place / "results" / "fair" / "reasoning_dev.jsonl"
    broken.write_text('{"id": 1\n', encoding="utf-8")
    try:
        with pytest.raises(UserError, match=r"reasoning_dev\.jsonl is damaged: line 1"):
            report.main(["fair", "--results", str(place / "results"), "--out", str(tmp_path / "page.html")])
    finally:
        broken.unlink()


@pytest.fixture(scope="module")
def file(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "page.html"
    path.write_text(text, encoding="utf-8")
    return path


@needs_node
def test_filters_keep_what_they_say(file: Path, text: str) -> None:
    data = data_of(text)
    ids = [item["id"] for item in data["items"]]
    answers, labels = data["answers"], [item["label"] for item in data["items"]]
    good, poor = data["runs"].index("good"), data["runs"].index("poor")
    everything = range(24)
    wanted = {
        "pick('category', '2')": [one for one in everything if data["items"][one]["category"] == 2],
        "pick('missed', 'none')": [one for one in everything if data["missed"][one] == 0],
        "pick('missed', 'some')": [one for one in everything if data["missed"][one]],
        "pick('only', 'disagree')": [one for one in everything if len({own[one] for own in answers}) > 1],
        "pick('only', 'flipped')": [one for one in everything if data["flips"][good][one]],
        f"pick('focus', '{poor}'); pick('margin', '<1')": [one for one in everything if data["margins"][poor][one] < 1],
        f"pick('right', '{good}'); pick('wrong', '{poor}')": [
            one for one in everything if answers[good][one] == labels[one] != answers[poor][one]
        ],
        "type('MADE-0007')": [7],
        "type('<script>alert 1')": [0],
    }
    for steps, places in wanted.items():
        kept = play(file, f"{steps}; pick('sort', 'file'); shown.map((place) => items[place].id)")
        assert kept == [ids[one] for one in places], steps
        assert 0 < len(places) < 24, steps


@needs_node
def test_confident_mistakes_come_first(file: Path, text: str) -> None:
    data = data_of(text)
    sure = play(file, "shown.map((place) => facts[place].confident)")
    assert sure == sorted(sure, reverse=True) and sure[0] > 0
    wrong = [
        sum(
            shares[place][own[place]] / 1000
            for own, shares in zip(data["answers"], data["shares"], strict=True)
            if own[place] != item["label"]
        )
        / 3
        for place, item in enumerate(data["items"])
    ]
    assert sure == pytest.approx(sorted(wrong, reverse=True))


@needs_node
def test_keys_move_search_and_clear(file: Path) -> None:
    steps = """
    const seen = [items[current].id];
    for (const key of ["j", "j", "k", "ArrowDown", "ArrowUp"]) { press(key); seen.push(items[current].id); }
    press("/");
    const searching = document.focused === search;
    press("j", { tagName: "INPUT" });
    seen.push(items[current].id);
    type("made-0005");
    const few = shown.length;
    press("Escape", search);
    ({ seen, order: shown.map((place) => items[place].id), searching, few, all: shown.length, hash: location.hash })
    """
    done = play(file, steps)
    assert [done["order"].index(id) for id in done["seen"]] == [0, 1, 2, 1, 2, 1, 1]
    assert (done["searching"], done["few"], done["all"]) == (True, 1, 24)
    assert done["hash"] == f"#{done['seen'][-1]}"


@needs_node
def test_a_link_shows_its_item(file: Path) -> None:
    shown = "[items[current].id, byClass('item', 'bubble').map((one) => one.textContent)]"
    id, bubbles = play(file, shown, "#made-0000")
    assert id == "made-0000" and bubbles[0].startswith(SCRIPT)
    assert play(file, shown, "#made-0017")[0] == "made-0017"
    assert play(file, shown, "#%E0%A4%A")[0] == play(file, shown)[0]


@needs_node
def test_an_item_shows_targets_answers_orders_and_reasoning(file: Path, text: str) -> None:
    data = data_of(text)
    good = data["runs"].index("good")
    steps = """
    const marked = byClass("item", "target").length;
    const chosen = byClass("item", "chosen").map((one) => one.className);
    const orders = byId("item").find((one) => one.tagName === "BUTTON" && one.attributes["aria-expanded"]);
    orders.forEach((one) => one.click());
    const told = byClass("item", "grid").map((one) => one.children.length);
    ({ marked, chosen, told, reasoning: byClass("item", "reasoning").map((one) => one.textContent) })
    """.replace("byId(", "document.getElementById(")
    done = play(file, steps, "#made-0003")
    worth = ["good" if own[3] == data["items"][3]["label"] else "bad" for own in data["answers"]]
    assert done["marked"] == 1 and [one.split()[-1] for one in done["chosen"]] == worth
    assert done["told"] == [6] and data["orders"][good] == ["012", "021", "102", "120", "201", "210"]
    assert done["reasoning"] == ["생각해 보면 <b>비</b>가 온다."]


@needs_node
def test_the_language_can_be_switched(file: Path) -> None:
    steps = "const before = search.placeholder; document.getElementById('language').click(); "
    steps += "[before, root.dataset.lang, search.placeholder, root.lang]"
    korean, language, english, told = play(file, steps)
    assert (language, told) == ("en", "en")
    assert (korean, english) == script_words()["search"]
    assert play(file, "[root.dataset.lang, root.dataset.theme]", "?lang=en&theme=dark") == ["en", "dark"]


def test_learning_rates_are_drawn_where_a_training_left_them(place: Path, tmp_path: Path) -> None:
    rows = [f"{step},0.1,{2 / step},{2e-5 * step / 400}," for step in range(1, 401)]
    file = place / "results" / "poor" / "training.csv"
    file.write_text("step,epoch,loss,lr,items_per_second\n" + "\n".join(rows) + "\n", encoding="utf-8")
    try:
        found = find(Request(["poor"], [], "dev", place / "results"))
        assert 100 < len(found.rates["poor"]) <= 300 and found.rates["poor"][-1] == (400, 2e-5)
        (drawn,) = curve_pictures(found)
        assert drawn["picture"].count('class="rate-line"') == 1 and "lr 2e-05" in drawn["picture"]
        file.write_text("damaged", encoding="utf-8")
        assert "rate-line" not in page(find(Request(["poor"], [], "dev", place / "results"))).split("</style>")[1]
    finally:
        file.unlink()


def test_runs_have_one_name() -> None:
    assert not [key for key, (korean, _) in words().items() if "모델" in korean]


def test_a_place_that_cannot_be_written_is_told_first(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(SystemExit) as stopped:
        report.main(["nobody", "--results", str(place / "results")])
    assert stopped.value.code == 2 and "may not be written to" in capsys.readouterr().err


@pytest.mark.slow
@needs_node
def test_a_full_set_stays_small_and_filters_at_once(found: Findings, tmp_path: Path) -> None:
    """The time is that of the script, without that of a browser's drawing."""
    path = tmp_path / "page.html"
    path.write_text(page(full_findings(found, tmp_path)), encoding="utf-8")
    assert 1e6 < path.stat().st_size < 10e6
    steps = """
    const times = [];
    const timed = (act) => { const start = performance.now(); act(); times.push(performance.now() - start); };
    for (const text of ["시장", "made-06", ""]) timed(() => type(text));
    for (const value of ["1", "2", ""]) timed(() => pick("category", value));
    [shown.length, Math.min(...times), times]
    """
    shown, quickest, times = play(path, steps)
    # Other processes may slow some of them down.
    assert shown == 605 and quickest < 100 and sorted(times)[2] < 100, times
