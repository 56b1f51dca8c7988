"""Many runs → one submission: by ballots or by probabilities, ties decided by a stated rule and listed.

    python -m run.vote                                  # all finished runs in resource/results with test scores
    python -m run.vote qwen2 bllossom --split dev       # these two, on the labelled split: what is their vote worth?
    python -m run.vote qwen2 ../colleague/predictions_test.json --out resource/results/vote_two
    python -m run.vote --rule weighted --split dev      # weights fitted on dev, tried on dialogues not fitted on
    python -m run.vote --who_helps                      # which runs help the vote on dev, and can that be told?

Writes predictions_<split>.json (the official submission format), votes_<split>.jsonl (a line per item) and record.json;
with --who_helps nothing but the file of --json. Rules other than hard are fitted on the labels of dev, never of test.
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, UserError, new_file, new_folder, run_main
from src.data import DATA, SPLITS, dump_items, predictions, refuse_unlabelled, sha256
from src.files import writing
from src.files.digests import Digest
from src.files.locks import lock_folder
from src.files.paths import RESULTS, predictions_path, record_path
from src.runs.facts import TaskFacts, digests_json
from src.runs.record import Record
from src.vote.decision import Decision, decide, other_rules, unlike_earlier, vote_line
from src.vote.voters import Request, Voters, earlier_votes, gather_voters
from src.vote.voting import RULES

if TYPE_CHECKING:
    from rich.console import Console

TIES_SHOWN = 30


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.vote")
    parser.add_argument("runs", nargs="*", metavar="RUN_OR_FILE", help="a run's name or folder, or a predictions file")
    parser.add_argument("--split", choices=SPLITS, help="default: test; with --who_helps dev")
    rules = "by ballots, by mean probabilities, by weighted ones, by a regression over them; default: %(default)s"
    parser.add_argument("--rule", choices=RULES, default="hard", help=rules)
    helps = "no vote, but which runs help it on dev: each left out, a greedy choice tried on other dialogues, likeness"
    parser.add_argument("--who_helps", action="store_true", help=helps)
    parser.add_argument("--json", type=new_file, metavar="OUT", help="with --who_helps: write everything here")
    own = f"folder or file; default: what the runs' records name, else {DATA}"
    parser.add_argument("--data", type=Path, help=own)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the runs' folder; default: %(default)s")
    parser.add_argument(
        "--out", type=new_folder, help="default: the folder vote in --results, for other rules vote-RULE"
    )
    orders = "orders of the options; default: the most that all runs have on dev and test alike, else the fewest"
    parser.add_argument("--orders", type=int, metavar="N", help=orders)
    expect = "runs that ought to vote: says who is missing; without RUN_OR_FILE, those of them that are there vote"
    parser.add_argument("--expect", nargs="+", default=[], metavar="NAME", help=expect)
    task.add_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    check(parser, args)
    split = args.split or ("dev" if args.who_helps else "test")
    request = Request(args.runs, args.expect, split, args.results, args.data, args.orders)
    if args.who_helps:
        tell_who_helps(request, args.rule, args.json)
    else:
        vote(request, args.rule, args.out or args.results / ("vote" if args.rule == "hard" else f"vote-{args.rule}"))


def check(parser: Parser, args: argparse.Namespace) -> None:
    if args.orders:
        task.current().orders(args.orders)
    if args.json and not args.who_helps:
        parser.error("--json: allowed with --who_helps; a vote writes its record as JSON anyway")
    if args.out and args.who_helps:
        parser.error("--out: --who_helps makes no vote; to keep what it prints, give --json OUT")
    if args.who_helps and args.split not in (None, "dev"):
        parser.error(f"--who_helps --split {args.split}: allowed: dev. Runs are chosen by its labels alone")


def vote(request: Request, rule: str, out: Path) -> None:
    from src.console.tables import make_console

    earlier_votes(out)
    voters = gather_voters(request)
    predicted, votes = predictions_path(out, request.split), out / f"votes_{request.split}.jsonl"
    refuse_own_file(voters, predicted)
    fit = None
    if rule != "hard":
        from src.vote.fits import fit_voters

        fit = fit_voters(rule, request, voters)
    decision = decide(voters, fit)
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
        record.with_result(request.split, replace(decision.result, files=files)).save(out)

    # Printed after everything is written: the command ends here if the output's reader is gone.
    console = make_console()
    console.print(f"{request.split}: {len(voters.items)} items of {voters.data}; voters: {len(voters.sources)}")
    console.print(f"\n{decision.result.rule}\n")
    notes = [*unlike_earlier(earlier, request.split, voters.sources), *other_rules(earlier, request.split, rule)]
    show_notes(console, voters, [*(fit.notes if fit else ()), *notes])
    if fit:
        from src.vote.fits import how_fitted

        console.print(how_fitted(fit.entry))
    show(console, decision)
    console.print(f"\nwritten: {predicted}\n         {votes}\n         {record_path(out)}", soft_wrap=True)
    file, data = shlex.quote(str(predicted)), shlex.quote(str(voters.data))
    evaluation = f"python -m run.evaluate {file} --data {data}{task.flag()}"
    submission = "hand in the first; the same command with --split dev shows what such a vote is worth"
    console.print(f"next: {evaluation if decision.result.interval else submission}", soft_wrap=True)


def tell_who_helps(request: Request, rule: str, out: Path | None) -> None:
    from src.console.cli import announced
    from src.console.tables import make_console

    voters = gather_voters(request)
    refuse_unlabelled(voters.items, voters.data)
    if len(voters.sources) < 2:
        raise UserError(
            f"--who_helps: found a single voter, {voters.sources[0].ballot.run}. Allowed: two or more; what one alone "
            f"is worth shows python -m run.evaluate{task.flag()}."
        )
    from src.vote.contribution_table import show_contributions
    from src.vote.contributions import contributions
    from src.vote.fits import refuse_answers_alone, refuse_few_dialogues

    refuse_few_dialogues(voters.items, voters.data, least=3)
    if rule != "hard":
        refuse_answers_alone(rule, voters.sources)
    with announced("trying votes"):
        found = contributions(rule, voters.items, voters.sources)
    if out:
        files = {source.ballot.run: {"file": source.file, "sha256": source.sha256} for source in voters.sources}
        data = {"path": voters.data, "sha256": sha256(voters.data), "split": request.split}
        writing.write_json(out, {"data": data, "inputs": files, **found.as_json()})
    console = make_console()
    console.print(
        f"{request.split}: {len(voters.items)} items in {found.dialogues} dialogues of {voters.data}; "
        f"voters: {len(voters.sources)}"
    )
    show_notes(console, voters)
    show_contributions(console, found)
    if out:
        console.print(f"\nwritten: {out}", soft_wrap=True)


def show_notes(console: "Console", voters: Voters, more: Sequence[str] = ()) -> None:
    for name, reason in {**voters.left_out, **voters.missing}.items():
        console.print(f"{'missing' if name in voters.missing else 'left out'}: {name} ({reason})")
    for note in [*voters.notes, *more]:
        console.print(f"note: {note}")


def refuse_own_file(voters: Voters, predicted: Path) -> None:
    if any(source.file.resolve() == predicted.resolve() for source in voters.sources):
        raise UserError(f"{predicted} cannot vote: it is what this vote writes. Name another folder with --out.")


def show(console: "Console", decision: Decision) -> None:
    """The voters, how the items were decided, those that were tied, and the accuracy."""
    from rich.table import Table

    from src.console.tables import Fitted

    fitted = decision.result.fitted
    table = Table("run", "items", "scores", "dev accuracy", "agrees with vote", "accuracy")
    if fitted:
        table.add_column("temperature")
        table.add_column("weight")
    for voter in decision.voters:
        shares = (voter.dev_accuracy, voter.agreement, voter.accuracy)
        words = ["–" if share is None else f"{share:.2%}" for share in shares]
        if fitted:
            words += [f"{fitted['temperatures'][voter.run]:.2f}", f"{fitted['weights'][voter.run]:.3f}"]
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
