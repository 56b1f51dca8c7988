"""Labelled items under a prompt, as TRL, LLaMA-Factory and lm-evaluation-harness read them.

All get the messages of the prompt, not text in a chat template: each tool applies its model's own.

    trl           a folder for `datasets.load_dataset`: configurations "sft" (prompt, completion) and "preference"
                  (prompt, chosen, rejected), conversational
    llamafactory  `dataset_info.json` and data in its sharegpt format: messages, and pairs with `ranking`
    lm-eval       a task of output type multiple_choice for each split. The choices are the letters, so that what it
                  compares is what we compare. A small `splits.py` reads the data from beside itself, so that the folder
                  can be moved; lm-eval itself would look for it in the working directory
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from src import task
from src.console.cli import UserError
from src.data import Item
from src.files.yaml_files import dump_yaml
from src.model.recipes import ORPO, Recipe
from src.prompt.fewshot import Library
from src.prompt.messages import fold_system
from src.prompt.prompts import Message, Prompt
from src.runs.samples import as_jsonl
from src.train.objectives import make_objective
from src.train.pairs import text_pairs

WARNING = (
    "국립국어원 말뭉치의 글은 다시 배포할 수 없습니다. 말뭉치에서 내보낸 파일을 공개하거나 넘기지 마세요.\n\n"
    "The text of the official corpus is licensed: what is exported from it must not be passed on.\n"
)
TEMPLATE = "chat_template.jinja"
SYSTEM_TURNS = ("own", "folded")
READER = '''"""Reads the items that lie beside this file."""

import json
from pathlib import Path

from datasets import Dataset, DatasetDict


def load(**unused):
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.jsonl")):
        lines = file.read_text(encoding="utf-8").split("\\n")
        found[file.stem] = Dataset.from_list([json.loads(line) for line in lines if line])
    return DatasetDict(found)
'''


@dataclass(frozen=True)
class Exported:
    """What is exported.

    recipe      decides which preference pairs an item has, and whether they answer with the letter alone
    splits      split → items, all labelled
    system_turn "own" keeps a system message, "folded" puts its text before the user's
    library     where a prompt with examples takes them from
    arguments   that the run's chat template was given
    template    the run's chat template, where it is not the one that the tokenizer ships
    origin      lines about where the items and the prompt are from
    """

    prompt: Prompt
    recipe: Recipe
    splits: Mapping[str, Sequence[Item]]
    system_turn: str = "own"
    library: Library | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    origin: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The prompt's name, as all of the tools take names: letters, digits and _."""
        return re.sub(r"\W+", "_", self.prompt.name).strip("_") or "prompt"

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        return fold_system(messages) if self.system_turn == "folded" else list(messages)

    def answered(self, split: str) -> Iterator[tuple[Item, list[Message], str]]:
        """(item, messages, right answer) of each item of `split`."""
        for item in self.splits[split]:
            assert item.label is not None, f"{item.id} has no label"
            rendered = self.prompt.render(item, examples=self.library.choose(item) if self.library else ())
            yield item, self.messages(rendered.messages), rendered.answers[item.label]

    def pairs(self, split: str) -> Iterator[dict[str, Any]]:
        """Those of the recipe, or of ORPO where the recipe's objective has none; all parts are messages."""
        recipe = self.recipe if make_objective(self.recipe).compares else self.recipe.replace(objective=ORPO)
        for pair in text_pairs(self.splits[split], recipe, self.prompt, self.messages, "", self.library):
            yield pair | {key: assistant(pair[key]) for key in ("chosen", "rejected")}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def files_for(tool: str, exported: Exported) -> dict[str, str]:
    """Path in the folder → text. Without the first, which tells what is there, none of the others is used."""
    files = WRITERS[tool](exported)
    return files | ({TEMPLATE: exported.template} if exported.template else {})


# TRL


def trl_files(exported: Exported) -> dict[str, str]:
    """What TRL's trainers take: prompt and answers are lists of messages, and there may be `chat_template_kwargs`."""
    more = {"chat_template_kwargs": dict(exported.arguments)} if exported.arguments else {}
    data = {}
    for split in exported.splits:
        data[f"sft/{split}.jsonl"] = as_jsonl(
            [
                {"id": item.id, "category": item.category, "prompt": said, "completion": [assistant(answer)], **more}
                for item, said, answer in exported.answered(split)
            ]
        )
        data[f"preference/{split}.jsonl"] = as_jsonl(
            [
                pair | {"chosen": [pair["chosen"]], "rejected": [pair["rejected"]], **more}
                for pair in exported.pairs(split)
            ]
        )
    configurations = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": f"{name}/{split}.jsonl"} for split in exported.splits],
        }
        for name in ("sft", "preference")
    ]
    head = f"---\n{dump_yaml({'configs': configurations})}---\n\n"
    first = next(iter(exported.splits))
    use = (
        "```python\n"
        f'datasets.load_dataset("THIS_FOLDER", "sft", split="{first}")         # SFTTrainer\n'
        f'datasets.load_dataset("THIS_FOLDER", "preference", split="{first}")  # DPOTrainer, ORPOTrainer\n'
        "```\n\n"
        "TRL cuts what is longer than `max_length` (1,024 by default): set it to the longest item, or to None. Where\n"
        "a chat template writes no BOS, SFTTrainer and DPOTrainer add none; we add it where the tokenizer does.\n"
    )
    return {"README.md": head + readme(exported, "TRL", use), **data}


# LLaMA-Factory


def llamafactory_files(exported: Exported) -> dict[str, str]:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
    tags |= {"assistant_tag": "assistant", "system_tag": "system"}
    info: dict[str, Any] = {}
    data = {}
    for split in exported.splits:
        name = f"{exported.name}_{split}"
        of_both = {"formatting": "sharegpt", "tags": tags}
        info[name] = {"file_name": f"{name}.jsonl", **of_both, "columns": {"messages": "messages"}}
        data[f"{name}.jsonl"] = as_jsonl(
            [{"id": item.id, "messages": [*said, assistant(answer)]} for item, said, answer in exported.answered(split)]
        )
        columns = {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}
        info[f"{name}_pairs"] = {"file_name": f"{name}_pairs.jsonl", "ranking": True, **of_both, "columns": columns}
        data[f"{name}_pairs.jsonl"] = as_jsonl(
            [
                {"id": pair["id"], "messages": pair["prompt"], "chosen": pair["chosen"], "rejected": pair["rejected"]}
                for pair in exported.pairs(split)
            ]
        )
    name = f"{exported.name}_{next(iter(exported.splits))}"
    use = (
        "```yaml\n"
        f"dataset_dir: THIS_FOLDER\ndataset: {name}   # for stage dpo: {name}_pairs\n"
        "template: …             # that of the model\n"
        "```\n\n"
        "LLaMA-Factory cuts what is longer than `cutoff_len` (2,048 by default): set it to the longest item. Some of\n"
        "its templates add a system text of their own where there is none.\n"
    )
    told = json.dumps(info, ensure_ascii=False, indent=2) + "\n"
    return {"dataset_info.json": told, "README.md": readme(exported, "LLaMA-Factory", use), **data}


# lm-evaluation-harness


def lm_eval_files(exported: Exported) -> dict[str, str]:
    """UserError for a prompt of more than one user turn, which lm-eval makes from its own few-shot settings alone."""
    prompt = exported.prompt
    if exported.library:
        raise UserError(
            f"prompt {prompt.name} has worked examples for each item, and an lm-eval task has one turn for an item. "
            "Give the prompt without them: --prompt NAME"
        )
    current, told, data = task.current(), {}, {}
    for split in exported.splits:
        rows = []
        for item, said, _ in exported.answered(split):
            *system, user = [message["content"] for message in said]
            row = {"id": item.id, "category": item.category, "system": "".join(system), "user": user}
            rows.append(row | {"label": item.label})
        name = task_name(exported, split)
        told[f"{name}.yaml"] = dump_yaml(
            {
                "task": name,
                "test_split": split,
                "output_type": "multiple_choice",
                # It is the text of the system turn where a chat template is applied.
                **({"description": "{{system}}"} if any(row["system"] for row in rows) else {}),
                "doc_to_text": "{{user}}",
                "doc_to_choice": list(current.letters),
                "doc_to_target": "label",
                "target_delimiter": "",
                "num_fewshot": 0,
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            }
        ).replace("test_split:", "custom_dataset: !function splits.load\ntest_split:", 1)
        data[f"{split}.jsonl"] = as_jsonl(rows)
    names = ",".join(task_name(exported, split) for split in exported.splits)
    extra = "".join(f",{key}={value}" for key, value in exported.arguments.items())
    use = (
        "```bash\n"
        f"lm_eval --model hf --model_args pretrained=MODEL{extra} --include_path THIS_FOLDER \\\n"
        f"    --tasks {names} --apply_chat_template --log_samples --output_path OUT\n"
        "```\n\n"
        "Its log-likelihoods of the letters differ from ours by a number that all letters of an item share: it counts\n"
        "blanks at the end of the prompt as part of the answer. Normalised over the letters they are ours.\n"
    )
    return {"README.md": readme(exported, "lm-evaluation-harness", use), **told, "splits.py": READER, **data}


def task_name(exported: Exported, split: str) -> str:
    return f"inference_{exported.name}_{split}"


# All of them


def readme(exported: Exported, tool: str, use: str) -> str:
    count = ", ".join(f"{split} {len(items)}" for split, items in exported.splits.items())
    system = {
        "own": "A system text is a turn of its own. For a chat template that takes none: --system_turn folded.",
        "folded": "A system text stands before the user's, in one turn.",
    }[exported.system_turn]
    lines = [
        f"prompt {exported.prompt.name}, sha256 {exported.prompt.sha256}",
        *exported.origin,
        f"items: {count}",
        system,
        f"The run's chat template is not the tokenizer's own: give the tool {TEMPLATE}."
        if exported.template
        else "The tool applies the chat template of the model's tokenizer; where there is none, give it one.",
        "A word that is a control token of the model (`<|im_end|>`, say) is read as text by us, and not by every tool.",
    ]
    return f"# For {tool}\n\n{WARNING}\n" + "".join(f"- {line}\n" for line in lines) + f"\n{use}"


WRITERS: Mapping[str, Callable[[Exported], dict[str, str]]] = {
    "trl": trl_files,
    "llamafactory": llamafactory_files,
    "lm-eval": lm_eval_files,
}
TOOLS = tuple(WRITERS)
