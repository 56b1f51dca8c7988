"""The sections of the page that stand above its items: numbers with their intervals, as texts and pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from src import task
from src.console.words import p_text
from src.report import charts
from src.report.findings import Findings
from src.report.groups import error_groups
from src.report.item_data import missed
from src.report.words import say, words
from src.vote.pair_table import MOST_FOR_ALL_PAIRS, about
from src.worth.calibration import CALIBRATED, OVER, UNDER, UNEVEN
from src.worth.metrics import SIGNIFICANT, Evaluation, chance_range
from src.worth.paired import Pair

Row = dict[str, Any]
VERDICTS = {OVER: "over", UNDER: "under", UNEVEN: "uneven", CALIBRATED: "calibrated"}
HELPS = {"helps": "helps", "hurts": "hurts", "not told apart": "not_told"}


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def points(share: float) -> str:
    """With a sign, in percentage points."""
    return f"{100 * share + 0.0:+.1f}".replace("-", "−")


def between(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * low:.1f}–{100 * high:.1f}"


def run_rows(found: Findings) -> Row:
    """The answers in falling accuracy, and below the line the floors."""
    if found.compared is None:
        return {"rows": [_facts(found, name) for name in found.names], "floors": []}
    compared = found.compared
    low, high = chance_range(len(found.items))
    floors = {**compared.floors, **{one.name: one.result for one in compared.changed[0]}}
    ends = [end for result in compared.results.values() for end in result.interval]
    scale = charts.scale_of([*ends, *(result.accuracy for result in floors.values()), low])
    ranked = sorted(found.names, key=lambda name: -compared.results[name].accuracy)
    chance = Row(name=say("chance"), correct="–", accuracy=percent(1 / len(task.current().options)))
    chance |= {
        "interval": between((low, high)),
        "picture": charts.dot_and_interval(1 / len(task.current().options), (low, high), scale, "chance"),
    }
    return {
        "rows": [_facts(found, name) | _accuracy(name, compared.results[name], scale) for name in ranked],
        "floors": [
            chance,
            *(_accuracy(name, result, scale) | {"name": _floor(name)} for name, result in floors.items()),
        ],
    }


def _floor(name: str) -> str:
    """In both languages; runs on changed dialogues keep their names."""
    key = f"floor_{name.replace(' ', '_')}"
    return say(key) if key in words() else name


def _facts(found: Findings, name: str) -> Row:
    place = found.names.index(name)
    return {
        "name": name,
        "vote": name in found.votes,
        "orders": found.sources[place].orders,
        "settings": {key: value for key, value in found.settings.get(name, {}).items() if value != "–"},
    }


def _accuracy(name: str, result: Evaluation, scale: charts.Interval) -> Row:
    told = f"{percent(result.accuracy)}, {between(result.interval)}"
    return {
        "name": name,
        "correct": f"{result.correct}/{result.items}",
        "accuracy": percent(result.accuracy),
        "interval": between(result.interval),
        "picture": charts.dot_and_interval(result.accuracy, result.interval, scale, told),
    }


def pair_rows(found: Findings) -> Row | None:
    """Tests with the most accurate answers, then the others; None where there is nothing to compare."""
    if found.compared is None or not found.compared.pairs:
        return None
    pairs = found.compared.pairs
    best = pairs[0].one
    ends = [end for pair in pairs for end in pair.interval]
    scale = charts.scale_of([*ends, 0.0], 0.05)
    few = len(found.names) > MOST_FOR_ALL_PAIRS
    first = [pair for pair in pairs if pair.one == best or not few]
    return {
        "best": best if few else None,
        "better": sum(pair.better == best for pair in pairs if best in (pair.one, pair.other)),
        "others": len(found.names) - 1,
        "first": [_pair(pair, scale) for pair in first],
        "rest": [_pair(pair, scale) for pair in pairs if pair not in first],
    }


def _pair(pair: Pair, scale: charts.Interval) -> Row:
    p = max(pair.corrected_p, pair.corrected_by_dialogue)
    verdict = say("verdict_better", one=pair.better, other=pair.other if pair.better == pair.one else pair.one)
    if pair.better is None:
        verdict = say("verdict_not", one=pair.one, other=pair.other)
    more = say("verdict_more", more=about(pair.more_items)) if pair.more_items else ""
    told = f"{pair.one} − {pair.other}: {points(pair.difference)}"
    return {
        "better": pair.better is not None,
        "verdict": verdict,
        "more": more if pair.better is None else "",
        "points": points(pair.difference),
        "interval": f"{points(pair.interval[0])} … {points(pair.interval[1])}",
        "picture": charts.dot_and_interval(pair.difference, pair.interval, scale, told, zero=True),
        "alone": f"{pair.only_one} : {pair.only_other}",
        "p": p_text(p),
    }


def category_rows(found: Findings) -> Row | None:
    if found.compared is None:
        return None
    results = found.compared.results
    categories = list(next(iter(results.values())).per_category)
    rows = []
    for name in found.names:
        shares = results[name].per_category
        cells = [
            {
                "share": percent(shares[one].accuracy, 0),
                "counts": f"{shares[one].correct}/{shares[one].total}",
                "picture": charts.bar(
                    shares[one].accuracy,
                    shares[one].interval,
                    f"{name}, {one}: {percent(shares[one].accuracy)}, {between(shares[one].interval)}",
                ),
            }
            for one in categories
        ]
        rows.append({"name": name, "vote": name in found.votes, "cells": cells})
    return {"categories": categories, "rows": rows}


def error_rows(found: Findings) -> list[Row] | None:
    if found.compared is None or not found.runs:
        return None
    divisions = error_groups(found)
    ends = [end for groups in divisions.values() for group in groups for end in group.interval]
    scale = charts.scale_of(ends)
    return [
        {
            "division": say(key),
            "groups": [
                {
                    "name": group.name,
                    "items": group.items,
                    "mean": percent(group.mean),
                    # Of a single dialogue, or where all are right, the bootstrap has nothing to draw from.
                    "interval": between(group.interval) if group.interval[0] < group.interval[1] else "–",
                    "picture": charts.dot_and_interval(group.mean, group.interval, scale, f"{group.name}"),
                    "missed_by": group.missed_by,
                }
                for group in groups
            ],
        }
        for key, groups in divisions.items()
    ]


def alike_picture(found: Findings) -> Markup | None:
    if found.alike is None:
        return None
    names, same = found.runs, found.alike.pairs
    faults = {pair.runs: pair.double_fault for pair in found.who_helps.pairs} if found.who_helps else None
    return charts.matrix(names, _square(names, same), _square(names, faults) if faults else None)


def _square(names: Sequence[str], pairs: Mapping[tuple[str, str], float]) -> list[list[float]]:
    return [[pairs.get((one, other), 1.0) for other in names] for one in names]


def calibration_rows(found: Findings) -> list[Row]:
    rows = []
    for one in found.calibration.judged if found.calibration else ():
        after = one.after.measured if one.after else None
        low, high = one.before.ece_if_calibrated
        told = f"ECE {percent(one.before.ece)} ({100 * low:.1f}–{100 * high:.1f})"
        rows.append(
            {
                "name": one.name,
                "shares": one.shares,
                "picture": charts.reliability(one.before, after, f"{one.name}: {told}"),
                "told": told,
                "after": f"T {one.after.temperature:.2f} → ECE {percent(one.after.measured.ece)}" if one.after else "",
                "verdict": say(VERDICTS[one.before.verdict]),
                "fine": one.before.verdict == CALIBRATED,
            }
        )
    return rows


def voter_rows(found: Findings) -> Row | None:
    helping = found.who_helps
    if helping is None:
        return None
    scale = charts.scale_of([0.0, *(end for one in helping.voters for end in one.gain.interval)], 0.01)
    chosen = helping.selection
    return {
        "all": say(
            "vote_of_all",
            accuracy=percent(helping.accuracy),
            oracle=percent(helping.oracle),
            all_right=percent(helping.all_right),
        ),
        "choice": say(
            "choice",
            folds=chosen.folds,
            accuracy=percent(chosen.accuracy),
            points=points(chosen.gain.difference),
            low=points(chosen.gain.interval[0]),
            high=points(chosen.gain.interval[1]),
        ),
        "choice_told": max(chosen.gain.p, chosen.gain.p_by_dialogue) <= SIGNIFICANT,
        "rows": [
            {
                "name": one.run,
                "accuracy": percent(one.accuracy),
                "without": percent(one.without),
                "gain": points(one.gain.difference),
                "interval": f"{points(one.gain.interval[0])} … {points(one.gain.interval[1])}",
                "picture": charts.dot_and_interval(one.gain.difference, one.gain.interval, scale, one.run, zero=True),
                "p": p_text(one.larger_p),
                "verdict": say(HELPS[one.verdict]),
                "told": one.verdict != "not told apart",
            }
            for one in sorted(helping.voters, key=lambda voter: -voter.gain.difference)
        ],
    }


def curve_pictures(found: Findings) -> list[Row]:
    rows = []
    for name in found.runs:
        training = found.records[name].training if name in found.records else None
        losses, accuracies = curves(training)
        rates = found.rates.get(name, ())
        if losses or accuracies or rates:
            told = f"{name}: " + ", ".join(f"{step} {percent(share)}" for step, share in accuracies)
            rows.append({"name": name, "picture": charts.curve(losses, accuracies, rates, told)})
    return rows


def curves(training: Any) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """(step, loss) and (step, accuracy on dev) of what a record holds of the training; what else stands there (an
    older version's, say) is left out.
    """
    if not isinstance(training, Mapping):
        return [], []
    losses = [(int(one[0]), float(one[1])) for one in _list(training.get("loss")) if _numbers(one, 2)]
    accuracies = [
        (int(one["step"]), float(one["eval_accuracy"]))
        for one in _list(training.get("evaluations"))
        if isinstance(one, Mapping) and _numbers([one.get("step"), one.get("eval_accuracy")], 2)
    ]
    return losses, accuracies


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    )


def key_figures(found: Findings, pairs: Row | None) -> list[Row]:
    """A few numbers to begin with, each with what it is worth."""
    figures = []
    if found.compared is not None:
        results = found.compared.results
        best = max(results, key=lambda name: results[name].accuracy)
        figures.append(
            {
                "what": say("best_is"),
                "value": percent(results[best].accuracy),
                "note": say("best_note", name=best, interval=between(results[best].interval)),
            }
        )
        if pairs:
            told = say("of_others", better=pairs["better"], others=pairs["others"])
            figures.append({"what": say("told_apart"), "value": f"{pairs['better']}/{pairs['others']}", "note": told})
    wrong = missed(found)
    if wrong is not None:
        count = sum(one == len(found.runs) for one in wrong)
        told = say("of_items", count=count, items=len(wrong))
        figures.append({"what": say("missed_by_all"), "value": str(count), "note": told})
    if found.alike is not None:
        figures.append(
            {
                "what": say("unanimous"),
                "value": percent(found.alike.unanimous),
                "note": say("of_items", count=round(found.alike.unanimous * len(found.items)), items=len(found.items)),
            }
        )
    return figures
