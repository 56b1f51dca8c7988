"""The cases that `run.bench` measures. A case is one way to train or to score, and a line of the printed table.

The entry's cases are stock Hugging Face, used as the entry's commands used it. TRL's are its trainers with their
defaults. The others are ours.
"""

from dataclasses import dataclass

from src.model.recipes import ORPO

LORA = {"lora_r": 6, "lora_alpha": 8}
"""The entry's published shape, in every case with adapters."""
GROWTH = (1, 2, 4, 8, 16)
"""Numbers of test splits that the case `growth` scores."""


@dataclass(frozen=True)
class Case:
    """One way to train or to score.

    kind     "training" or "scoring"
    base     the entry's case that the ratio is taken to
    flops    useful FLOPs per linear weight and computed token; recomputed ones do not count as useful
    what     the sentence below the table
    items    items of an optimizer step
    orders   orders that each item is scored in
    cpu      whether a CPU measures it by default
    asked    whether it is measured only when it is named
    sharded  whether several GPUs shard its parameters; measured on several alone, where there are
    """

    name: str
    kind: str
    base: str
    flops: int
    what: str
    method: str = "lora"
    items: int = 1
    dropout: float = 0.0
    orders: int = 1
    objective: str = "answer"
    cpu: bool = True
    asked: bool = False
    sharded: bool = False


# Laid out by hand: the values and the sentence of each case, then what differs from the defaults.
CASES = {
    case.name: case
    for case in (
        Case("entry", "training", "entry", 4,
            "the entry's run.train: NF4 with fp16 compute, eager attention, checkpointing, one item a step, all logits",
            method="qlora", dropout=0.05),
        Case("entry-full", "training", "entry-full", 6,
            "the entry's run.train_base: all parameters, AdamW in bf16, checkpointing, one item a step, all logits",
            method="full"),
        Case("trl", "training", "entry", 4, "TRL's SFTTrainer, its defaults, prompt and completion, LoRA on bf16",
            dropout=0.05),
        Case("lora-64", "training", "entry", 4, "ours: LoRA, 64 items a step by dialogue, dropout 0",
            items=64, cpu=False),
        Case("lora-64-dropout", "training", "entry", 4, "ours: LoRA, 64 items a step by dialogue, dropout .05",
            items=64, dropout=0.05, cpu=False),
        Case("qlora-64", "training", "entry", 4, "ours: QLoRA, 64 items a step by dialogue, dropout 0",
            method="qlora", items=64, cpu=False),
        Case("lora-16", "training", "entry", 4, "ours: LoRA, 16 items a step by dialogue, dropout 0", items=16),
        Case("lora-1", "training", "entry", 4, "ours: LoRA, one item a step, dropout 0"),
        Case("lora-1-dropout", "training", "entry", 4, "ours: LoRA, one item a step, dropout .05",
            dropout=0.05, asked=True),
        Case("qlora-1", "training", "entry", 4, "ours: QLoRA, one item a step, dropout .05",
            method="qlora", dropout=0.05, asked=True),
        Case("full-1", "training", "entry-full", 6, "ours: all parameters, one item a step", method="full", asked=True),
        Case("full-16", "training", "entry-full", 6, "ours: all parameters, 16 items a step by dialogue",
            method="full", items=16),
        Case("full-8-sharded", "training", "entry-full", 6,
            "ours: all parameters sharded over the GPUs (FSDP2), in fp32 where that fits, 8 items a step by dialogue",
            method="full", items=8, cpu=False, asked=True, sharded=True),
        Case("trl-orpo", "training", "trl-orpo", 4, "TRL's ORPOTrainer, its defaults, LoRA on bf16; items are pairs",
            dropout=0.05, objective=ORPO, asked=True),
        Case("orpo-16", "training", "trl-orpo", 4,
            "ours: ORPO, LoRA, 16 items a step by dialogue, both pairs of each; items are pairs",
            items=16, dropout=0.05, objective=ORPO, asked=True),
        Case("orpo-16-trl-loss", "training", "trl-orpo", 4,
            "the same with the loss that TRL has: over the prompt, too, and per token",
            items=16, dropout=0.05, objective=ORPO, asked=True),
        Case("trl-orpo-full", "training", "trl-orpo-full", 6,
            "TRL's ORPOTrainer, all parameters, AdamW in bf16, checkpointing, one pair a step; items are pairs",
            method="full", objective=ORPO, asked=True),
        Case("orpo-full-1", "training", "trl-orpo-full", 6,
            "ours: ORPO, all parameters, one item a step, both its pairs; items are pairs",
            method="full", objective=ORPO, asked=True),
        Case("orpo-full-16", "training", "trl-orpo-full", 6,
            "ours: ORPO, all parameters, 16 items a step by dialogue, both pairs of each; items are pairs",
            method="full", items=16, objective=ORPO, asked=True),
        Case("entry-score", "scoring", "entry-score", 2, "the entry's run.test: one item a forward, all logits, bf16"),
        Case("score-1", "scoring", "entry-score", 2, "ours: the test split in one order"),
        Case("score-6", "scoring", "entry-score", 2, "ours: the test split in six orders, each counted", orders=6),
        Case("growth", "scoring", "entry-score", 2, "ours: 1 to 16 test splits in one order", cpu=False, asked=True),
    )
}  # fmt: skip
