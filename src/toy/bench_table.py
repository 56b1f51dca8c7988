"""The printed results of `run.bench`: rates and ratios of the cases, and their table."""

from typing import TYPE_CHECKING, Any

from src.model.shapes import GIB

SHOWN_VERSIONS = ("torch", "transformers", "peft", "bitsandbytes")
"""Packages that decide the speed; the record has the versions of more."""

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def with_rates(found: dict[str, Any]) -> dict[str, Any]:
    """The measurements of a case with derived numbers: rates, and shares of a product's FLOP/s (`matmul_rates`)."""
    seconds = found["seconds"]
    useful = found["unique_tokens"] * found["flops"] * found["linear_parameters"]
    return found | {
        "items_per_second": found["items"] / seconds,
        "sequences_per_second": found["sequences"] / seconds,
        "unique_tokens_per_second": found["unique_tokens"] / seconds,
        "raw_tokens_per_second": found["raw_tokens"] / seconds,
        "share_of_peak": useful / seconds / found["matmul_flops"],
        "share_of_sustained": useful / seconds / found["sustained_matmul_flops"],
    }


def add_ratios(cases: dict[str, dict[str, Any]]) -> None:
    """Adds to each case the `ratio` of its sequences a second to its base's; None when the base was not measured."""
    for found in cases.values():
        base = cases.get(found.get("base", ""), {}).get("sequences_per_second")
        if "failed" not in found:
            found["ratio"] = found["sequences_per_second"] / base if base else None


def title(record: dict[str, Any]) -> list[str]:
    """A few lines on the device, the model and the corpus that were measured."""
    facts, layers = record["corpus"], f"{record['layers']} layers"
    if record["layers"] < record["of_layers"]:
        layers += f" of {record['of_layers']} (shortened)"
    versions = [f"{name} {record['versions'][name]}" for name in SHOWN_VERSIONS if name in record["versions"]]
    cap = f", at most {record['cap_gib']:g} GiB" if record["cap_gib"] else ""
    return [
        f"{record['device']}{cap}: {record['backbone']}, {layers}, {record['weights']}",
        f"Measured with {', '.join(versions)}",
        f"Sample corpus, lengthened: {facts['train_items']} items on {facts['dialogues']} dialogues of "
        f"{facts['turns_mean']:.1f} turns and {facts['characters_mean']:.0f} characters",
        f"Tokenizer: made here to use and share as many tokens as {facts['tokenizer']} does; prompt {facts['prompt']}",
        f"A training item has {facts['tokens_mean']:.0f} tokens (at most {facts['tokens_max']}); "
        f"all items share the first {facts['shared_prompt_tokens']}.",
        f"64 a step by dialogue leave {facts['computed_tokens']:.0f} to compute. "
        f"The dialogues have {facts['characters_per_token']:.2f} characters a token.",
    ]


def table(record: dict[str, Any]) -> "RenderableType":
    """The table, and below it a sentence for each case."""
    from rich.console import Group
    from rich.markup import escape

    from src.console.tables import Fitted

    measured = {name: found for name, found in record["rows"].items() if "failed" not in found}
    lines = [f"[bold]{name}[/]: {escape(found['what'])}" for name, found in measured.items()]
    lines += [
        "ratio: items/s to the entry's row of the same kind, or TRL's of pairs; "
        "unique: computed once sharing is done; raw: summed"
    ]
    if measured:
        peak, sustained = (_spread(measured, key) for key in ("matmul_flops", "sustained_matmul_flops"))
        each = " on each GPU" if any(found.get("ranks", 1) > 1 for found in measured.values()) else ""
        lines += [
            "share: useful FLOPs of the linear layers (4 a weight and token for adapters, 6 for all weights, 2 for "
            f"scoring) against a matmul's: {peak} TFLOP/s here{each} for a moment (peak), {sustained} for seconds "
            "(sustained)"
        ]
    if record["device"].startswith("CPU"):
        lines += ["on a CPU: the miniature's numbers, computed in fp32; memory of the whole process"]
    heading, *facts = map(escape, title(record))
    shown = Fitted(_table_of_cases(record["rows"]))
    return Group(f"[bold]{heading}[/]", "\n".join(facts), "", shown, "", "\n".join(lines))


def _spread(measured: dict[str, dict[str, Any]], key: str) -> str:
    """TFLOP/s of a GPU, from the least to the most of all cases."""
    rates = [found[key] / found.get("ranks", 1) / 1e12 for found in measured.values()]
    return f"{min(rates):.3g} to {max(rates):.3g}" if len(rates) > 1 else f"{rates[0]:.3g}"


def _table_of_cases(cases: dict[str, dict[str, Any]]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    from src.console.tables import frameless

    shown = frameless(Table())
    shown.add_column("row", no_wrap=True)
    shares = ("share of\npeak", "share of\nsustained")
    for name in ("items/s", "ratio", "unique\ntok/s", "raw\ntok/s", *shares, "peak\nGiB", "warm-up\ns"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("note", overflow="fold")
    for name, found in cases.items():
        if "failed" in found:
            shown.add_row(f"[bold]{name}[/]", *[""] * 8, f"[red]failed:[/] {escape(found['failed'])}")
            continue
        shown.add_row(
            f"[bold]{name}[/]",
            f"{found['sequences_per_second']:.2f}",
            f"{found['ratio']:.2f}×" if found["ratio"] else "",
            f"{found['unique_tokens_per_second']:,.0f}",
            f"{found['raw_tokens_per_second']:,.0f}",
            f"{found['share_of_peak']:.1%}",
            f"{found['share_of_sustained']:.1%}",
            f"{found['peak_memory_bytes'] / GIB:.1f}",
            f"{found['warm_seconds']:.1f}",
            escape(found["note"]),
        )
    return shown
