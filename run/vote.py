"""Many runs → one submission: a hard vote, its ties decided by a stated rule and listed.

    python -m run.vote                                  # all finished runs in resource/results with test scores
    python -m run.vote qwen2 bllossom --split dev       # these two, on the labelled split: what is their vote worth?
    python -m run.vote qwen2 ../colleague/predictions_test.json --out resource/results/vote_two

Writes predictions_<split>.json (the official submission format), votes_<split>.jsonl (a line per item) and record.json.
"""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, UserError, new_folder, run_main
from src.data import DATA, SPLITS, dump_items, predictions
from src.files import writing
from src.files.digests import Digest
from src.files.locks import lock_folder
from src.files.paths import RESULTS, predictions_path, record_path
from src.runs.facts import TaskFacts, digests_json
from src.runs.record import Record
from src.vote.decision import Decision, decide, unlike_earlier, vote_line
from src.vote.voters import Request, Voters, earlier_votes, gather_voters
from src.vote.voting import RULE

if TYPE_CHECKING:
    from rich.console import Console

TIES_SHOWN = 30


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.vote")
    parser.add_argument("runs", nargs="*", metavar="RUN_OR_FILE", help="a run's name or folder, or a predictions file")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    own = f"folder or file; default: what the runs' records name, else {DATA}"
    parser.add_argument("--data", type=Path, help=own)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the runs' folder; default: %(default)s")
    parser.add_argument("--out", type=new_folder, help="default: the folder vote in --results")
    orders = "orders of the options; default: the most that all runs have on dev and test alike, else the fewest"
    parser.add_argument("--orders", type=int, metavar="N", help=orders)
    expect = "runs that ought to vote: says who is missing; without RUN_OR_FILE, those of them that are there vote"
    parser.add_argument("--expect", nargs="+", default=[], metavar="NAME", help=expect)
    task.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    from src.console.tables import make_console

    args = make_parser().parse_args(argv)
    if args.orders:
        task.current().orders(args.orders)
    out = args.out or args.results / "vote"
    earlier_votes(out)
    voters = gather_voters(Request(args.runs, args.expect, args.split, args.results, args.data, args.orders))
    predicted, votes = predictions_path(out, args.split), out / f"votes_{args.split}.jsonl"
    refuse_own_file(voters, predicted)
    decision = decide(voters)
    texts = {
        predicted: dump_items(predictions(voters.items, decision.answers)),
        votes: writing.as_jsonl(vote_line(verdict, voters.sources) for verdict in decision.verdicts),
    }
    files = digests_json({path.name: Digest.of_text(text) for path, text in texts.items()})
    with lock_folder(out) as held:
        earlier = earlier_votes(out)
        # The record keeps the votes on other splits that lie in the same folder.
        record = earlier or Record(run=out.name, task=TaskFacts.current())
        writing.write_texts(texts)
        held.refuse_gone()
        record.with_result(args.split, replace(decision.result, files=files)).save(out)

    # Printed after everything is written: the command ends here if the output's reader is gone.
    console = make_console()
    console.print(f"{args.split}: {len(voters.items)} items of {voters.data}; voters: {len(voters.sources)}")
    console.print(f"\n{RULE}\n")
    for name, reason in {**voters.left_out, **voters.missing}.items():
        console.print(f"{'missing' if name in voters.missing else 'left out'}: {name} ({reason})")
    for note in [*voters.notes, *unlike_earlier(earlier, args.split, voters.sources)]:
        console.print(f"note: {note}")
    show(console, decision)
    console.print(f"\nwritten: {predicted}\n         {votes}\n         {record_path(out)}", soft_wrap=True)
    evaluation = f"python -m run.evaluate {predicted} --data {voters.data}{task.flag()}"
    submission = "hand in the first; the same command with --split dev shows what such a vote is worth"
    console.print(f"next: {evaluation if decision.result.interval else submission}", soft_wrap=True)


def refuse_own_file(voters: Voters, predicted: Path) -> None:
    if any(source.file.resolve() == predicted.resolve() for source in voters.sources):
        raise UserError(f"{predicted} cannot vote: it is what this vote writes. Name another folder with --out.")


def show(console: "Console", decision: Decision) -> None:
    """The voters, how the items were decided, those that were tied, and the accuracy."""
    from rich.table import Table

    from src.console.tables import Fitted

    table = Table("run", "items", "scores", "dev accuracy", "agrees with vote", "accuracy")
    for voter in decision.voters:
        shares = (voter.dev_accuracy, voter.agreement, voter.accuracy)
        words = ["–" if share is None else f"{share:.2%}" for share in shares]
        table.add_row(voter.run, str(voter.items), "yes" if voter.scores else "no", *words)
    console.print(Fitted(table))
    decided = Counter(verdict.decided_by for verdict in decision.verdicts)
    console.print("decided by " + ", ".join(f"{name}: {count}" for name, count in decided.most_common()))
    alike = decision.alike
    if alike.pairs:
        (one, other), least = min(alike.pairs.items(), key=lambda pair: pair[1])
        console.print(f"unanimous: {alike.unanimous:.1%} of the items; least alike: {one} and {other}, {least:.1%}")
    options = task.current().options
    ties = [verdict for verdict in decision.verdicts if verdict.tied]
    if ties:
        numbers = "–".join(str(number) for number, _ in enumerate(options, start=1))
        table = Table("tied item", f"ballots {numbers}", "answer", "decided by")
        for tie in ties[:TIES_SHOWN]:
            table.add_row(tie.id, "–".join(map(str, tie.counts)), options[tie.answer], tie.decided_by)
        console.print(Fitted(table))
    if len(ties) > TIES_SHOWN:
        console.print(f"… and {len(ties) - TIES_SHOWN} more ties, all in the votes file")
    if interval := decision.result.interval:
        low, high = interval
        console.print(f"accuracy of the vote: {decision.result.accuracy:.2%} (95 % interval {low:.1%} to {high:.1%})")


if __name__ == "__main__":
    sys.exit(run_main(main))
