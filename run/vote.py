"""Many runs → one submission: a hard vote, its ties decided by a stated rule and listed.

    python -m run.vote                                  # all finished runs in resource/results with test scores
    python -m run.vote qwen2 bllossom --split dev       # these two, on the labelled split: what is their vote worth?
    python -m run.vote qwen2 ../colleague/predictions_test.json --out resource/results/vote_two

Leaves predictions_<split>.json (the official submission format), votes_<split>.jsonl (a line per item) and record.json.
"""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, UserError, new_folder, run_main
from src.console.words import counted
from src.data import DATA, OUTPUTS, SPLITS, Item, dump_items, predictions, sha256
from src.files import writing
from src.files.paths import RESULTS, predictions_path, record_path, run_names
from src.runs import record as records
from src.runs.inputs import load_own
from src.runs.versions import git_commit, versions
from src.vote.ballots import (
    Source,
    absence,
    join_experts,
    other_items,
    partly_scored,
    read_sources,
    run_folders,
)
from src.vote.voting import RULE, Agreement, Verdict, agreement, hard_vote
from src.worth.metrics import evaluate

TIES_SHOWN = 30
ORDERS_HELP = "of the options; default: 6 where all runs have those scores on dev and test, else 1"


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.vote")
    parser.add_argument("runs", nargs="*", metavar="RUN_OR_FILE", help="a run's name or folder, or a predictions file")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    own = f"folder or file; default: what the runs' records name, else {DATA}"
    parser.add_argument("--data", type=Path, help=own)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the runs' folder; default: %(default)s")
    parser.add_argument("--out", type=new_folder, help="default: the folder vote in --results")
    parser.add_argument("--orders", type=int, choices=(1, 6), help=ORDERS_HELP)
    expect = "runs that ought to vote: says who is missing; without RUN_OR_FILE, those of them that are there vote"
    parser.add_argument("--expect", nargs="+", default=[], metavar="NAME", help=expect)
    return parser


def main(argv: list[str] | None = None) -> None:
    from src.console.tables import make_console

    args = make_parser().parse_args(argv)
    console = make_console()
    out = args.out or args.results / "vote"
    if (out / "recipe.yaml").exists():
        raise UserError(
            f"--out {out} is the folder of a trained run; allowed: a new folder or that of an earlier vote."
        )

    # Who votes
    given = args.runs or [name for name in args.expect or run_names(args.results) if not absence_of(name, args)]
    if not given:
        choose(args, [])  # says why nobody can
    items, data, notes = load_own(args.data, args.split, run_folders(given, args.results))
    arguments, left_out = choose(args, items)
    sources = join_experts(read_sources(arguments, items, data, args.split, args.results, args.orders), items)
    predicted, votes = predictions_path(out, args.split), out / f"votes_{args.split}.jsonl"
    if any(source.file.resolve() == predicted.resolve() for source in sources):
        raise UserError(f"{predicted} cannot vote: it is what this vote writes. Name another folder with --out.")
    ballots = [source.ballot for source in sources]
    voters = [ballot.run for ballot in ballots]
    missing = {
        name: absence_of(name, args) or left_out.get(name) or "not named" for name in args.expect if name not in voters
    }
    earlier = records.read_record(out).get("splits", {}) if record_path(out).is_file() else {}
    orders = {source.orders for source in sources if source.orders}
    notes += [source.note for source in sources if source.note] + mixture(args.split, sources, earlier)

    # The vote
    ids = [item.id for item in items]
    verdicts = hard_vote(ids, ballots)
    alike = agreement(ids, ballots)
    answers = [verdict.answer for verdict in verdicts]
    rows = [voter_row(source, verdicts) for source in sources]
    result: dict[str, Any] = {"accuracy": None, "correct": None, "interval": None}
    if all(item.label is not None for item in items):
        worth = evaluate(items, answers)
        result = {"accuracy": worth.accuracy, "correct": worth.correct, "interval": worth.interval}
        for row, ballot in zip(rows, ballots, strict=True):
            row["accuracy"] = evaluate(items, [ballot.answers[item_id] for item_id in ids]).accuracy

    # What it leaves; the record keeps the votes on other splits that lie in the same folder
    result |= {"items": len(items), "data": data, "data_sha256": sha256(data), "rule": RULE}
    result |= {"orders": orders.pop() if len(orders) == 1 else None}
    result |= {"voters": rows, "missing": missing, "unanimous": alike.unanimous}
    result |= {"pairs": [{"runs": pair, "agreement": share} for pair, share in alike.pairs.items()]}
    result |= {"decided_by": Counter(verdict.decided_by for verdict in verdicts)}
    result |= {"versions": versions(), "git_commit": git_commit()}
    writing.write_text(predicted, dump_items(predictions(items, answers)))
    writing.write_jsonl(votes, (vote_row(verdict, sources) for verdict in verdicts))
    writing.write_json(record_path(out), {"run": out.name, "splits": earlier | {args.split: result}})

    # Said once it is safe: whoever reads the output may go away
    console.print(f"{args.split}: {len(items)} items of {data}; voters: {len(voters)}\n\n{RULE}\n")
    for name, reason in (left_out | missing).items():
        console.print(f"{'missing' if name in missing else 'left out'}: {name} ({reason})")
    for note in notes:
        console.print(f"note: {note}")
    show(console, rows, verdicts, alike)
    if result["interval"]:
        low, high = result["interval"]
        console.print(f"accuracy of the vote: {result['accuracy']:.2%} (95 % interval {low:.1%} to {high:.1%})")
    console.print(f"\nwritten: {predicted}\n         {votes}\n         {record_path(out)}", soft_wrap=True)
    evaluation = f"python -m run.evaluate {predicted} --data {data}"
    submission = "hand in the first; the same command with --split dev shows what such a vote is worth"
    console.print(f"next: {evaluation if result['interval'] else submission}", soft_wrap=True)


def absence_of(name: str, args: Namespace) -> str:
    return absence(args.results / name, args.split)


def choose(args: Namespace, items: Sequence[Item]) -> tuple[list[str], dict[str, str]]:
    """The arguments, or without any the runs that can vote on the split; and why others cannot."""
    if args.runs:
        return list(args.runs), {}
    reasons = {
        name: absence_of(name, args) or other_items(args.results / name, args.split, items)
        for name in args.expect or run_names(args.results)
    }
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if able := [args.results / name for name in reasons if name not in left_out]:
        left_out |= partly_scored(able, args.split, items, args.orders)
    if len(left_out) == len(reasons):
        found = ", ".join(f"{name} ({reason})" for name, reason in left_out.items()) or "no runs"
        raise UserError(
            f"Nobody can vote on {args.split}. Found in {args.results}: {found}. Allowed: finished runs with "
            f"scores_{args.split}.jsonl (python -m run.train, then run.test), or predictions files named here."
        )
    return [name for name in reasons if name not in left_out], left_out


def mixture(split: str, sources: Sequence[Source], earlier: Mapping[str, Any]) -> list[str]:
    """What to say where this is hardly a vote, or answers of one order and of six come together."""
    notes = []
    if len(sources) == 1:
        notes.append(f"a single voter: these are the answers of {sources[0].ballot.run}, and no vote of several")
    by_orders: dict[int, list[str]] = {}
    for source in sources:
        if source.orders:
            by_orders.setdefault(source.orders, []).append(source.ballot.run)
    if len(by_orders) > 1:
        told = ", ".join(f"{counted(count, 'order')} of {', '.join(runs)}" for count, runs in by_orders.items())
        notes.append(f"scores of one order and of six vote together: {told}")
    for other, result in earlier.items():
        before = result.get("orders") or 1
        if other != split and len(by_orders) == 1 and before not in by_orders:
            (now,) = by_orders
            notes.append(
                f"this vote on {split} is by {counted(now, 'order')} of the options, that on {other} in the same "
                f"folder by {counted(before, 'order')}; --orders makes them alike"
            )
    return notes


def voter_row(source: Source, verdicts: list[Verdict]) -> dict[str, Any]:
    ballot = source.ballot
    same = sum(ballot.answers[verdict.id] == verdict.answer for verdict in verdicts)
    row = {"run": ballot.run, "file": source.file, "sha256": source.sha256, "scores": ballot.logprobs is not None}
    row |= {"items": len(verdicts), "dev_accuracy": ballot.dev_accuracy, "agreement": same / len(verdicts)}
    return row | {"accuracy": None}


def vote_row(verdict: Verdict, sources: list[Source]) -> dict[str, Any]:
    runs = {source.ballot.run: OUTPUTS[source.ballot.answers[verdict.id]] for source in sources}
    row = {"id": verdict.id, "answer": OUTPUTS[verdict.answer], "counts": verdict.counts}
    row |= {"tied": [OUTPUTS[option] for option in verdict.tied], "decided_by": verdict.decided_by}
    return row | {"runs": runs}


def show(console: Any, rows: list[dict[str, Any]], verdicts: list[Verdict], alike: Agreement) -> None:
    """The voters, how the items were decided, and those that were tied."""
    from rich.table import Table

    from src.console.tables import Fitted

    table = Table("run", "items", "scores", "dev accuracy", "agrees with vote", "accuracy")
    for row in rows:
        shares = ["–" if row[key] is None else f"{row[key]:.2%}" for key in ("dev_accuracy", "agreement", "accuracy")]
        table.add_row(row["run"], str(row["items"]), "yes" if row["scores"] else "no", *shares)
    console.print(Fitted(table))
    decided = Counter(verdict.decided_by for verdict in verdicts)
    console.print("decided by " + ", ".join(f"{name}: {count}" for name, count in decided.most_common()))
    if alike.pairs:
        (one, other), least = min(alike.pairs.items(), key=lambda pair: pair[1])
        console.print(f"unanimous: {alike.unanimous:.1%} of the items; least alike: {one} and {other}, {least:.1%}")
    ties = [verdict for verdict in verdicts if verdict.tied]
    if ties:
        table = Table("tied item", "ballots 1–2–3", "answer", "decided by")
        for tie in ties[:TIES_SHOWN]:
            table.add_row(tie.id, "–".join(map(str, tie.counts)), OUTPUTS[tie.answer], tie.decided_by)
        console.print(Fitted(table))
    if len(ties) > TIES_SHOWN:
        console.print(f"… and {len(ties) - TIES_SHOWN} more ties, all in the votes file")


if __name__ == "__main__":
    sys.exit(run_main(main))
