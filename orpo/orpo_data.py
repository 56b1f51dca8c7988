"""Show the preference pairs that ORPO learns from, or write them for other tools: one JSON object a line.

    python -m orpo.orpo_data --recipe resource/recipes/published/qwen2it.yaml --limit 2
    python -m orpo.orpo_data --recipe resource/recipes/published/qwen2it.yaml --form merged --out pairs.jsonl
    python -m orpo.orpo_data --prompt plain --form plain --split dev --orpo_pairs one

Each pair has id, prompt, chosen and rejected. Prompt and answers are those of the training, in one of these forms:

    chat     the backbone's chat template, as training and scoring use it
    merged   the same, with the system's text in front of the user's (training: --system_turn folded)
    plain    the bare texts, one below the other; needs no tokenizer and so no model

All settings are the recipe's: prompt, orpo_pairs (both or one), orpo_answer (whole or letter), seed.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # so that it starts from any folder

from src import task
from src.console.cli import Parser, UserError, new_file, run_main
from src.data import DATA, load_split
from src.files.writing import write_text
from src.model.recipe_flags import add_flags, read_recipe
from src.model.recipes import ORPO
from src.prompt.prompts import load_prompt
from src.train.pairs import FORMS, plainly, text_pairs


def make_parser() -> Parser:
    parser = Parser(__doc__, "orpo.orpo_data")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of data_SPLIT.json (default: %(default)s)")
    parser.add_argument("--split", default="train", choices=("train", "dev"), help="default: %(default)s")
    parser.add_argument("--form", default="chat", choices=FORMS, help="of the prompts (default: %(default)s)")
    parser.add_argument("--out", type=new_file, metavar="FILE", help="write them there instead of printing them")
    parser.add_argument("--limit", type=int, metavar="N", help="only the pairs of the first N items")
    task.add_flag(parser)
    add_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit: found {arguments.limit}, allowed: 1 or more.")
    if arguments.form == "plain" and not (arguments.recipe or arguments.model_id or arguments.backbone):
        arguments.backbone = "qwen2"  # any backbone: its texts are not used
    arguments.objective = ORPO
    recipe = read_recipe(arguments, method="full")
    prompt = load_prompt(recipe.prompt)
    items = load_split(arguments.data, arguments.split, labelled=True)[: arguments.limit]
    render, end = plainly, ""
    if arguments.form != "plain":
        from src.runs.encoder import make_encoder

        folded = {"system_turn": "folded"} if arguments.form == "merged" else {}
        encoder = make_encoder(recipe.replace(**folded), prompt)
        render, end = encoder.chat_text, encoder.turn_end
    lines = [json.dumps(pair, ensure_ascii=False) for pair in text_pairs(items, recipe, prompt, render, end)]
    if arguments.out:
        write_text(arguments.out, "".join(f"{line}\n" for line in lines))
        print(f"{len(lines)} pairs of {len(items)} items lie in {arguments.out}.")
        return
    for line in lines:
        print(line)


if __name__ == "__main__":
    sys.exit(run_main(main))
