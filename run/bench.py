"""Speed and memory of the entry's settings, of stock TRL and of ours, on one device, in one table.

    python -m run.bench
    python -m run.bench --backbone polar --cap 24
    python -m run.bench --rows entry lora-64 qlora-64 --layers 8 --seconds 5
    python -m run.bench --gpus 2 --rows lora-64 lora-1 score-1
    python -m run.bench --device cpu

Backbones have their true shapes and random weights made on the device, so nothing is downloaded; on a CPU they have
two layers of the miniature's shape, and the numbers are the miniature's. The sample corpus is lengthened to the
official length statistics, and a tokenizer is made for it that uses and shares tokens as the backbone's kind does on
the official one. Each row is measured in its own process, and one that fails is a line in the table. Rows:

    entry  entry-full  trl  lora-64  lora-64-dropout  qlora-64  lora-16  lora-1  full-16      training
    entry-score  score-1  score-6                                                             scoring
    lora-1-dropout  qlora-1  full-1  growth                                                   when asked for
    full-8-sharded                                                                            with --gpus 2 or more
    trl-orpo  orpo-16  orpo-16-trl-loss  trl-orpo-full  orpo-full-1  orpo-full-16             when asked for: pairs

With --gpus N each row is measured on one GPU, and then our rows by N ranks that share a step's items (at least one for
each) as NAME@N, as torchrun starts them.

Ratios are to the entry's row of the same kind, or to TRL's ORPO of the same method, measured in the same call. The
numbers also go to resource/results/bench_DEVICE.json, the output of the rows to the .log beside it. --keep puts those
of score-1 and of our rows with one item a step into resource/speeds.yaml, from which the plan's hours are computed.
"""

import argparse
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src.console.cli import Parser, UserError, nearest, new_file, run_main
from src.console.jobs import run_job
from src.data import dump_items, load_items
from src.files.paths import RESULTS
from src.files.reading import read_json
from src.files.writing import write_json, write_text
from src.model import ranks
from src.model.backbones import backbones
from src.model.devices import gpus
from src.model.shapes import GIB
from src.plan import speeds
from src.plan.kinds import Kind
from src.prompt.prompts import load_prompt
from src.runs.versions import made_with
from src.toy.bench_cases import CASES, GROWTH
from src.toy.bench_table import add_ratios, table, title, with_rates

PROMPT = "entry"
SECONDS = {"cuda": 15.0, "cpu": 1.0}
LAYERS = {"cuda": None, "cpu": 2}
"""Layers of the stack by default; None is all of them. A CPU should be done in two minutes."""
NO_MEMORY = "out of memory"
WIDTH = 100
"""Width of the table where there is no terminal, and its greatest width."""


def make_parser() -> Parser:
    parser = Parser(__doc__, "run.bench")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows (default: what suits the device)")
    parser.add_argument("--backbone", default="bllossom", metavar="NAME", help="one of resource/backbones.yaml")
    parser.add_argument("--layers", type=int, metavar="N", help="shorten the stack to N layers, for a quick look")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="timed work of a row, at least (default: 15, on a CPU 1)"
    )
    parser.add_argument("--cap", type=float, metavar="GIB", help="let each row use only so much of the GPU's memory")
    parser.add_argument("--device", metavar="X", help="cpu, cuda or cuda:N (default: the GPU when there is one)")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="also measure our rows on N GPUs together")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="where the numbers go")
    parser.add_argument(
        "--keep",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="measure nothing; put the steps of these --json files into the plan",
    )
    child = parser.add_argument_group("what the command starts for each row")
    child.add_argument("--row", metavar="NAME", help="measure this row in this process and write its numbers to --json")
    child.add_argument("--corpus", type=Path, metavar="DIR", help="the lengthened corpus and its tokenizer")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.keep:
        return keep(arguments.keep)
    check(arguments)
    if arguments.row:
        measure_here(arguments)
        return 0
    return compare(arguments)


def check(arguments: argparse.Namespace) -> None:
    known = backbones()
    if arguments.backbone not in known:
        raise UserError(
            f"--backbone: found {arguments.backbone!r}, known: {', '.join(known)}.{nearest(arguments.backbone, known)}"
        )
    if ranks.several() and not arguments.row:
        raise UserError("run.bench starts its ranks by itself: python -m run.bench --gpus 2")
    for name in ("layers", "seconds", "cap", "gpus"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name}: found {value}, allowed: above 0.")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", arguments.device or "cpu"):
        raise UserError(f"--device: found {arguments.device!r}, allowed: cpu, cuda, cuda:0 …")
    if arguments.cap and arguments.device == "cpu":
        raise UserError("--cap is the GPU's; leave it out with --device cpu.")
    if arguments.row and not (arguments.json and arguments.corpus):
        raise UserError(
            f"--row: found {arguments.row!r}. --row is what this command starts for itself, with --json and --corpus. "
            f"To measure single rows: --rows {arguments.row}"
        )


def keep(files: Sequence[Path]) -> int:
    """Writes the measured steps of the records to resource/speeds.yaml."""
    steps: Sequence[speeds.Step] = speeds.measured()
    for file in files:
        record = read_json(file)
        if not isinstance(record, dict) or not {"device", "rows", "layers", "of_layers"} <= record.keys():
            raise UserError(f"--keep: {file} is no record of run.bench; allowed: what --json names.")
        steps = speeds.kept(steps, record)
    write_text(speeds.SPEEDS, speeds.text_of(steps, speeds.SPEEDS))
    for step in steps:
        how = "captured" if step.captured else "not captured"
        print(f"{step.row}, {step.backbone}, {step.card}, {how}: {step.seconds:.4f} s for {step.tokens:.0f} tokens")
    print(f"They lie in {speeds.SPEEDS}. The plan goes by them: python -m run.reproduce --dry_run")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Measures the cases one after the other, each in its own process; 1 when one of them failed. Too little memory is
    a finding, not a failure.
    """
    from src.console.tables import make_console

    device, words = find_device(arguments)
    names = choose(arguments.rows, device)
    path = arguments.json or RESULTS / f"bench_{slug(words if device != 'cpu' else 'cpu')}.json"
    log = path.with_suffix(".log")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = make_console(markup=True)
    with tempfile.TemporaryDirectory() as folder:
        record = begin_record(arguments, device, words, Path(folder))
        log.unlink(missing_ok=True)
        console.print("\n".join(title(record)))
        for name, world in with_ranks(names, arguments.gpus):
            started = time.monotonic()
            found = run_case(name, arguments, device, Path(folder), log, world)
            if world > 1:
                name = found["name"] = f"{name}@{world}"
            record["rows"][name] = found
            write_json(path, record)
            done = f"failed: {found['failed']}" if "failed" in found else f"{found['sequences_per_second']:.2f} items/s"
            console.print(f"{name}: {done} ({time.monotonic() - started:.0f} s)", soft_wrap=True, markup=False)
    add_ratios(record["rows"])
    write_json(path, record)
    if points := record["rows"].get("growth", {}).get("points"):
        from src.figures import plots

        label = f"{', '.join(map(str, GROWTH))} test splits"
        plots.save_png(plots.growth(points, title(record)[0], label), path.with_suffix(".png"))
    console.print(table(record), width=min(console.width, WIDTH))
    console.print(f"The numbers lie in {path}.", soft_wrap=True)
    reasons = [found["failed"] for found in record["rows"].values() if "failed" in found]
    return 1 if any(not reason.startswith(NO_MEMORY) for reason in reasons) else 0


def find_device(arguments: argparse.Namespace) -> tuple[str, str]:
    """(cpu, cuda or cuda:N; its name for people). UserError where there is no such GPU."""
    found = gpus() if arguments.device != "cpu" else []
    device = arguments.device or ("cuda" if found else "cpu")
    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= len(found):
        there = f"there are {len(found)} GPUs here, numbered from 0" if found else "there is no GPU here"
        raise UserError(f"--device {device}: {there}.")
    if arguments.cap and not found:
        raise UserError("--cap is the GPU's, and there is none here.")
    return device, found[int(number or 0)].name if kind == "cuda" else "CPU, one thread"


def choose(asked: Sequence[str] | None, device: str) -> list[str]:
    """Names of the cases to measure, in the table's order."""
    for name in asked or ():
        if name not in CASES:
            raise UserError(f"--rows: found {name!r}, known: {', '.join(CASES)}.{nearest(name, CASES)}")
    usual = [name for name, case in CASES.items() if not case.asked and (device != "cpu" or case.cpu)]
    return [name for name in CASES if name in (asked or usual)]


def begin_record(arguments: argparse.Namespace, device: str, words: str, folder: Path) -> dict[str, Any]:
    """The record without any case. Writes the inputs of the cases to `folder`."""
    from src.toy.bench_inputs import kind_for, model_config

    kind = device.partition(":")[0]
    layers = arguments.layers or LAYERS[kind]
    whole = model_config(arguments.backbone, kind).num_hidden_layers
    if layers is not None and layers > whole:
        raise UserError(f"--layers: found {layers}, but {arguments.backbone} has {whole} here.")
    return {
        "device": words,
        "backbone": arguments.backbone,
        "weights": "random, the miniature's shape" if kind == "cpu" else "random, the true shape",
        "layers": layers or whole,
        "of_layers": whole,
        "cap_gib": arguments.cap,
        "seconds": arguments.seconds or SECONDS[kind],
        "corpus": write_corpus(folder, kind_for(arguments.backbone)),
        **made_with(),
        "rows": {},
    }


def write_corpus(folder: Path, kind: Kind) -> dict[str, Any]:
    """Writes the splits and a tokenizer of that kind to `folder` for the cases, and returns their statistics."""
    from src.toy import bench_inputs

    for split, items in bench_inputs.make_corpus().items():
        write_text(folder / f"{split}.json", dump_items(items))
    train, test = (load_items(folder / f"{split}.json") for split in ("train", "test"))
    prompt = load_prompt(PROMPT)
    tokenizer = bench_inputs.train_tokenizer(train, prompt, kind)
    write_text(folder / "tokenizer.json", tokenizer.to_str())
    facts = bench_inputs.corpus_statistics(bench_inputs.make_encoder(tokenizer, prompt), train, test)
    return {"tokenizer": kind.what, **facts}


def with_ranks(names: Sequence[str], gpus: int) -> list[tuple[str, int]]:
    """(case, number of ranks) of all measurements, the ranks' behind those of one."""
    ours = [name for name in names if CASES[name].what.startswith("ours") and name != "growth"]
    alone = [name for name in names if gpus == 1 or not CASES[name].sharded]
    return [*((name, 1) for name in alone), *((name, gpus) for name in ours if gpus > 1)]


def run_case(
    name: str, arguments: argparse.Namespace, device: str, folder: Path, log: Path, world: int = 1
) -> dict[str, Any]:
    """The case's numbers, or why it `failed`."""
    kind, _, number = device.partition(":")
    result = folder / f"{name}.json"
    command = [sys.executable, *(torchrun(world) if world > 1 else []), "-m", "run.bench", "--row", name]
    command += ["--corpus", str(folder), "--json", str(result)]
    command += ["--backbone", arguments.backbone, "--device", kind]
    given = {"seconds": arguments.seconds, "layers": arguments.layers or LAYERS[kind], "cap": arguments.cap}
    for flag, value in given.items():
        command += [f"--{flag}", str(value)] if value is not None else []
    # One thread: at the miniature's size more threads gain little, and on a busy machine they lose a lot.
    environment = {"OMP_NUM_THREADS": "1"}
    if kind == "cuda" and world == 1:  # the case's process sees this GPU alone
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


def torchrun(world: int) -> list[str]:
    """What stands between `python` and `-m run.bench` where `world` ranks measure."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return ["-m", "torch.distributed.run", "--nproc_per_node", str(world), "--master_port", str(port)]


def measure_here(arguments: argparse.Namespace) -> None:
    """Measures one case in this process."""
    import torch
    from tokenizers import Tokenizer

    from src.model.load import context_length, pick_device
    from src.toy.bench import measure
    from src.toy.bench_inputs import make_encoder, model_config
    from src.toy.bench_setting import Setting

    device = pick_device(arguments.device)
    ranks.begin(device)
    if arguments.cap:
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.cap * GIB / total), device)
    config = model_config(arguments.backbone, device.type, arguments.layers)
    tokenizer = Tokenizer.from_file(str(arguments.corpus / "tokenizer.json"))
    encoder = make_encoder(tokenizer, load_prompt(PROMPT), context_length(config))
    train, test = (load_items(arguments.corpus / f"{split}.json") for split in ("train", "test"))
    setting = Setting(arguments.backbone, config, device, encoder, train, test)
    found = measure(CASES[arguments.row], setting, arguments.seconds or SECONDS[device.type])
    if ranks.is_first():
        write_json(arguments.json, found)


def slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(run_main(main, ranks=True))
