"""Speed and memory of the entry's settings, of stock TRL and of ours, on one device, in one table.

    python -m run.bench
    python -m run.bench --backbone polar --cap 24
    python -m run.bench --rows entry lora-64 qlora-64 --layers 8 --seconds 5
    python -m run.bench --device cpu

Backbones have their true shapes and random weights made on the device, so nothing is downloaded; on a CPU they have
two layers of the miniature's shape, and the numbers are the miniature's. The sample corpus is lengthened to the
official length statistics, and a tokenizer is made for it that spends and shares tokens as the backbone's kind does on
the official one. Each row is a process of its own, and one that fails is a line in the table. Rows:

    entry  entry-full  trl  lora-64  lora-64-dropout  qlora-64  lora-16  lora-1  full-16      training
    entry-score  score-1  score-6                                                             scoring
    full-1  growth                                                                            when asked for
    trl-orpo  orpo-16  orpo-16-trl-loss  orpo-full-16                                         when asked for: pairs

Ratios are to the entry's row of the same kind, or to trl-orpo, measured in the same call. The numbers also go to
resource/results/bench_DEVICE.json, the output of the rows to the .log beside it.
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, UserError, nearest, new_file, run_main
from src.console.jobs import run_job
from src.data import dump_items, load_items
from src.files.paths import RESULTS
from src.files.writing import write_json, write_text
from src.model import shapes
from src.model.recipes import backbones
from src.plan import estimates as plan
from src.plan.kinds import Kind
from src.prompt.prompts import load_prompt
from src.runs.versions import made_with

if TYPE_CHECKING:
    from rich.console import RenderableType

PROMPT = "entry"
SECONDS = {"cuda": 15.0, "cpu": 1.0}
LAYERS = {"cuda": None, "cpu": 2}
"""Of the stack, where nothing is asked for: a CPU is to be done in two minutes."""
NO_MEMORY = "out of memory"
WIDTH = 100
"""Columns of the table where there is no terminal, and at most."""


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.bench")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows (default: what suits the device)")
    parser.add_argument("--backbone", default="bllossom", metavar="NAME", help="a row of resource/backbones.yaml")
    parser.add_argument("--layers", type=int, metavar="N", help="shorten the stack to N layers, for a quick look")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="timed work of a row, at least (default: 15, on a CPU 1)"
    )
    parser.add_argument("--cap", type=float, metavar="GIB", help="let each row use only so much of the GPU's memory")
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="where the numbers go")
    child = parser.add_argument_group("what the command starts for each row")
    child.add_argument("--row", metavar="NAME", help="measure this row in this process and write its numbers to --json")
    child.add_argument("--corpus", type=Path, metavar="DIR", help="the lengthened corpus and its tokenizer")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    check(arguments)
    if arguments.row:
        measure(arguments)
        return 0
    return compare(arguments)


def check(arguments: argparse.Namespace) -> None:
    known = backbones()
    if arguments.backbone not in known:
        raise UserError(
            f"--backbone: found {arguments.backbone!r}, known: {', '.join(known)}.{nearest(arguments.backbone, known)}"
        )
    for name in ("layers", "seconds", "cap"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name}: found {value}, allowed: above 0.")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", arguments.device or "cpu"):
        raise UserError(f"--device: found {arguments.device!r}, allowed: cpu, cuda, cuda:0 …")
    if arguments.cap and arguments.device == "cpu":
        raise UserError("--cap is the GPU's; leave it out with --device cpu.")
    if arguments.row and not (arguments.json and arguments.corpus):
        raise UserError(
            f"--row: found {arguments.row!r}; --row is what this command starts for itself, with --json and --corpus; "
            f"to measure single rows: --rows {arguments.row}"
        )


def compare(arguments: argparse.Namespace) -> int:
    """Measures the rows one after the other, each in a process of its own; 1 when one of them failed. Memory that does
    not suffice is a finding, not a failure.
    """
    from src.console.tables import make_console

    gpus = plan.gpus() if arguments.device != "cpu" else []
    device = arguments.device or ("cuda" if gpus else "cpu")
    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= len(gpus):
        found = f"there are {len(gpus)} GPUs here, numbered from 0" if gpus else "there is no GPU here"
        raise UserError(f"--device {device}: {found}.")
    if arguments.cap and not gpus:
        raise UserError("--cap is the GPU's, and there is none here.")
    words = gpus[int(number or 0)].name if kind == "cuda" else "CPU, one thread"
    arguments.layers = arguments.layers or LAYERS[kind]

    from src.toy import bench
    from src.toy import bench_inputs as standins

    rows = choose(arguments.rows, bench.ROWS, kind)
    whole = standins.model_config(arguments.backbone, kind).num_hidden_layers
    if (arguments.layers or 0) > whole:
        raise UserError(f"--layers: found {arguments.layers}, but {arguments.backbone} has {whole} here.")
    path = arguments.json or RESULTS / f"bench_{slug(words if kind == 'cuda' else 'cpu')}.json"
    log = path.with_suffix(".log")
    log.unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = make_console(markup=True)
    with tempfile.TemporaryDirectory() as folder:
        facts = write_corpus(Path(folder), standins.kind_for(arguments.backbone))
        config = standins.model_config(arguments.backbone, kind, arguments.layers)
        record: dict[str, Any] = {
            "device": words,
            "backbone": arguments.backbone,
            "weights": "random, the miniature's shape" if kind == "cpu" else "random, the true shape",
            "layers": config.num_hidden_layers,
            "of_layers": whole,
            "cap_gib": arguments.cap,
            "seconds": arguments.seconds or SECONDS[kind],
            "corpus": facts,
            **made_with(),
            "rows": {},
        }
        console.print("\n".join(title(record)))
        for name in rows:
            started = time.monotonic()
            record["rows"][name] = one = run_row(name, arguments, record["seconds"], device, Path(folder), log)
            write_json(path, record)
            done = f"failed: {one['failed']}" if "failed" in one else f"{one['sequences_per_second']:.2f} items/s"
            console.print(f"{name}: {done} ({time.monotonic() - started:.0f} s)", soft_wrap=True, markup=False)
    add_ratios(record["rows"])
    write_json(path, record)
    if points := record["rows"].get("growth", {}).get("points"):
        draw_growth(points, title(record)[0], path.with_suffix(".png"))
    console.print(table(record), width=min(console.width, WIDTH))
    console.print(f"The numbers lie in {path}.", soft_wrap=True)
    reasons = [one["failed"] for one in record["rows"].values() if "failed" in one]
    return 1 if any(not reason.startswith(NO_MEMORY) for reason in reasons) else 0


def choose(asked: Sequence[str] | None, known: Mapping[str, Any], kind: str) -> list[str]:
    """The rows to measure, in the table's order."""
    for name in asked or ():
        if name not in known:
            raise UserError(f"--rows: found {name!r}, known: {', '.join(known)}.{nearest(name, known)}")
    usual = [name for name, row in known.items() if not row.asked and (kind != "cpu" or row.cpu)]
    return [name for name in known if name in (asked or usual)]


def write_corpus(folder: Path, kind: Kind) -> dict[str, Any]:
    """Leaves the splits and a tokenizer of that kind in `folder` for the rows, and returns what they are like."""
    from src.toy import bench_inputs as standins

    for split, items in standins.make_corpus().items():
        write_text(folder / f"{split}.json", dump_items(items))
    train, test = (load_items(folder / f"{split}.json") for split in ("train", "test"))
    prompt = load_prompt(PROMPT)
    tokenizer = standins.train_tokenizer(train, prompt, kind)
    write_text(folder / "tokenizer.json", tokenizer.to_str())
    facts = standins.corpus_statistics(standins.make_encoder(tokenizer, prompt), train, test)
    return {"tokenizer": kind.what, **facts}


def run_row(
    name: str, arguments: argparse.Namespace, seconds: float, device: str, folder: Path, log: Path
) -> dict[str, Any]:
    """The row's numbers, or why it `failed`."""
    kind, _, number = device.partition(":")
    result = folder / f"{name}.json"
    command = [sys.executable, "-m", "run.bench", "--row", name, "--corpus", str(folder), "--json", str(result)]
    command += ["--backbone", arguments.backbone, "--seconds", str(seconds), "--device", kind]
    for flag in ("layers", "cap"):
        value = getattr(arguments, flag)
        command += [f"--{flag}", str(value)] if value is not None else []
    # One thread: at the miniature's size more gain little, and on a machine that is busy otherwise they lose a lot.
    environment = {"OMP_NUM_THREADS": "1"}
    if kind == "cuda":  # the row's process sees this GPU alone
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        environment = {"CUDA_VISIBLE_DEVICES": visible.split(",")[int(number or 0)] if visible else number or "0"}
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            reason = pool.submit(run_job, command, log, environment, lambda event: None, stop).result()
        except KeyboardInterrupt:
            stop.set()
            raise
    if reason:
        short = NO_MEMORY if NO_MEMORY in reason else reason
        return {"failed": short + (f" under {arguments.cap:g} GiB" if arguments.cap and short != reason else "")}
    return with_rates(json.loads(result.read_text(encoding="utf-8")))


def measure(arguments: argparse.Namespace) -> None:
    """The process of one row."""
    import torch
    from tokenizers import Tokenizer

    from src.model import load as model
    from src.toy import bench
    from src.toy import bench_inputs as standins

    device = model.pick_device(arguments.device)
    if arguments.cap:
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.cap * shapes.GIB / total), device)
    config = standins.model_config(arguments.backbone, device.type, arguments.layers)
    tokenizer = Tokenizer.from_file(str(arguments.corpus / "tokenizer.json"))
    encoder = standins.make_encoder(tokenizer, load_prompt(PROMPT), model.context_length(config))
    train, test = (load_items(arguments.corpus / f"{split}.json") for split in ("train", "test"))
    setting = bench.Setting(arguments.backbone, config, device, encoder, train, test)
    row = bench.ROWS[arguments.row]
    write_json(arguments.json, bench.measure(row, setting, arguments.seconds or SECONDS[device.type]))


def with_rates(one: dict[str, Any]) -> dict[str, Any]:
    """The row with what follows from its counts: rates a second, and the share of the measured matmul peak."""
    seconds = one["seconds"]
    useful = one["unique_tokens"] * one["flops"] * one["linear_parameters"]
    return one | {
        "items_per_second": one["items"] / seconds,
        "sequences_per_second": one["sequences"] / seconds,
        "unique_tokens_per_second": one["unique_tokens"] / seconds,
        "raw_tokens_per_second": one["raw_tokens"] / seconds,
        "share_of_peak": useful / seconds / one["matmul_flops"],
    }


def add_ratios(rows: dict[str, dict[str, Any]]) -> None:
    """Adds to each row its `ratio` of sequences a second to the entry's row, None when that was not measured."""
    for one in rows.values():
        base = rows.get(one.get("base", ""), {}).get("sequences_per_second")
        if "failed" not in one:
            one["ratio"] = one["sequences_per_second"] / base if base else None


def draw_growth(points: Sequence[tuple[int, float]], heading: str, path: Path) -> None:
    """Seconds over tokens computed, with the line through the origin that fits the points best."""
    from src.figures.canvas import Figure

    tokens, seconds = zip(*points, strict=True)
    slope = sum(x * y for x, y in points) / sum(x * x for x in tokens)
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, max(tokens)], [0, slope * max(tokens)], color="#999999", label=f"{1 / slope:,.0f} tokens a second")
    axes.plot(tokens, seconds, "o", color="#0072B2", label="1, 2, 4, 8 and 16 test splits")
    axes.set(xlabel="tokens computed, shared ones once", ylabel="seconds", xlim=0, ylim=0)
    axes.set_title(heading, fontsize=9)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def title(record: dict[str, Any]) -> list[str]:
    """What was measured on what, a line each."""
    facts, layers = record["corpus"], f"{record['layers']} layers"
    if record["layers"] < record["of_layers"]:
        layers += f" of {record['of_layers']} (shortened)"
    cap = f", at most {record['cap_gib']:g} GiB" if record["cap_gib"] else ""
    return [
        f"{record['device']}{cap}: {record['backbone']}, {layers}, {record['weights']}",
        f"Sample corpus, lengthened: {facts['train_items']} items on {facts['dialogues']} dialogues of "
        f"{facts['turns_mean']:.1f} turns and {facts['characters_mean']:.0f} characters",
        f"Tokenizer: made here, to spend and to share tokens as {facts['tokenizer']} does; prompt {facts['prompt']}",
        f"A training item has {facts['tokens_mean']:.0f} tokens (at most {facts['tokens_max']}), of which all share "
        f"the first {facts['shared_prompt_tokens']};",
        f"64 a step by dialogue leave {facts['computed_tokens']:.0f} to compute. "
        f"{facts['characters_per_token']:.2f} characters of talk a token",
    ]


def table(record: dict[str, Any]) -> "RenderableType":
    """The table, and below it what each row is."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from src.console.tables import Fitted, frameless

    rows: dict[str, dict[str, Any]] = record["rows"]
    shown = frameless(Table())
    shown.add_column("row", no_wrap=True)
    for name in ("items/s", "ratio", "unique\ntok/s", "raw\ntok/s", "share of\npeak", "peak\nGiB", "warm-up\ns"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("note", overflow="fold")
    for name, one in rows.items():
        if "failed" in one:
            shown.add_row(f"[bold]{name}[/]", *[""] * 7, f"[red]failed:[/] {escape(one['failed'])}")
            continue
        shown.add_row(
            f"[bold]{name}[/]",
            f"{one['sequences_per_second']:.2f}",
            f"{one['ratio']:.2f}×" if one["ratio"] else "",
            f"{one['unique_tokens_per_second']:,.0f}",
            f"{one['raw_tokens_per_second']:,.0f}",
            f"{one['share_of_peak']:.1%}",
            f"{one['peak_memory_bytes'] / shapes.GIB:.1f}",
            f"{one['warm_seconds']:.1f}",
            escape(one["note"]),
        )
    peaks = [one["matmul_flops"] for one in rows.values() if "failed" not in one]
    lines = [f"[bold]{name}[/]: {escape(one['what'])}" for name, one in rows.items() if "failed" not in one]
    lines += ["ratio: items/s to the entry's row of the same kind; unique: computed once sharing is done; raw: summed"]
    if peaks:
        lines += [
            f"share: FLOPs of the linear layers that are of use (4 a weight and token for adapters, 6 for all weights, "
            f"2 for scoring) against a matmul's, {min(peaks) / 1e12:.3g} to {max(peaks) / 1e12:.3g} TFLOP/s here"
        ]
    if record["device"].startswith("CPU"):
        lines += ["on a CPU: the miniature's numbers, computed in fp32; memory of the whole process"]
    heading, *facts = map(escape, title(record))
    return Group(f"[bold]{heading}[/]", "\n".join(facts), "", Fitted(shown), "", "\n".join(lines))


def slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(run_main(main))
