"""Training a run: from a recipe to the record of a finished run."""

import gc
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from src.console.cli import UserError
from src.files.paths import INPUTS, RECIPE
from src.files.writing import write_json, write_text
from src.model import hub, load, ranks
from src.model.recipes import Recipe
from src.prompt.encode import Encoder
from src.runs.encoder import find_library, frozen_of, make_encoder, prompt_facts, refuse_other_text, template_facts
from src.runs.facts import TaskFacts, digests_json
from src.runs.inputs import Split, began_with, gather
from src.runs.noted import base_noted, refuse_other_weights, weights_noted
from src.runs.record import Record
from src.runs.scoring import OpenRun, encode, print_notes, score_run, scorer_for
from src.runs.versions import made_with
from src.score.letters import Scored
from src.train.checkpoints import Place
from src.train.curves import draw
from src.train.fine_tuning import Outcome, fine_tune


@dataclass(frozen=True)
class Extras:
    """What is asked for beside a recipe; nothing of it changes the weights of a whole run.

    also_score  more splits, labelled or not
    limit       only so many items of each split
    report_to   other tools that are told of the training (src/train/reports.py)
    """

    also_score: Sequence[str] = ()
    limit: int | None = None
    report_to: Sequence[str] = ()


NO_EXTRAS = Extras()


def train_run(
    recipe: Recipe,
    folder: Path,
    data_folder: Path,
    device_name: str | None = None,
    extras: Extras = NO_EXTRAS,
) -> Record:
    """Trains `recipe` in `folder`, scores dev with the best weights as saved on disk, and returns the record, which is
    written last. Where the training has evaluated these very weights in the same way, its scores are taken.

    An unfinished run of the same recipe and data goes on where it stopped.
    """
    also_score = extras.also_score
    started = time.monotonic()
    device = load.pick_device(device_name)
    ranks.refuse_small_steps(recipe)
    ranks.begin(device)
    if device.type == "cuda" and device.index:
        raise UserError(
            f"--device {device}: training takes the first GPU it sees; "
            f"put CUDA_VISIBLE_DEVICES={device.index} in front of the command instead."
        )
    given = gather(recipe, folder, data_folder, also_score, extras.limit)
    began = began_with(folder)
    pinned = ranks.decided(lambda: hub.pin(recipe, began.commits if began else None))
    load.check_trainable(pinned)
    library = find_library(given.prompt, data_folder, recipe.reasoning)
    frozen = frozen_of(began.template) if began else None
    encoder = make_encoder(pinned, given.prompt, library=library, frozen=frozen)
    scored = [given.splits[split] for split in ("dev", *also_score)]
    prompts = encode(encoder, [split.items for split in scored])  # finds items that do not fit before the training
    record = new_record(folder.name, recipe, pinned, encoder, data_folder, device)
    if began:
        refuse_other_text(folder, record.template, began.template)
    print_notes(encoder, [split.items for split in given.splits.values()])
    inputs = {**given.hashes, **hub.commits(pinned), "template": record.template.as_json()}
    place = Place.at(folder, {"recipe": asdict(recipe), "inputs": inputs}, extras.report_to)
    base = ranks.decided(lambda: base_noted(pinned))
    if ranks.is_first():
        write_json(folder / INPUTS, inputs)
        write_text(folder / RECIPE, recipe.dump())
    outcome = fine_tune(pinned, encoder, given.train, given.dev, place, device)
    ranks.meet()  # rank 0 has written the weights
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    record = replace(
        _with_outcome(record, outcome, folder),
        data={split: given.splits[split].file for split in ("train", "dev")},
        base_files=digests_json(base or ranks.decided(lambda: base_noted(pinned))),
    )
    if ranks.is_first():
        refuse_other_weights(folder, record)
    network = load.load_run(folder, pinned, device)
    run = OpenRun(folder, record, encoder, scorer_for(network, encoder, pinned), prompts)
    known = outcome.evaluated.by(network, prompts[0].examples) if outcome.evaluated else None
    record = _scored(run, place, scored, started, known)
    if ranks.is_first():
        draw(folder, outcome.training, f"{record.run}: {recipe.method}, lr {recipe.lr:g}")
    return record


def _scored(run: OpenRun, place: Place, splits: Sequence[Split], started: float, known: Scored | None) -> Record:
    """The record with the scores of `splits`, saved after each. started: when the command began. known: dev's scores,
    where they need not be computed.
    """
    for split in splits:
        place.held.refuse_gone()
        record, _ = score_run(run, split, known=known if split.name == "dev" else None)
        peak = max(ranks.gathered(_peak_memory(run.scorer.model.device)))
        record = replace(record, peak_memory_bytes=peak, seconds=time.monotonic() - started)
        place.held.refuse_gone()
        if ranks.is_first():
            record.save(run.folder)
        run = replace(run, record=record)
    return run.record


def _with_outcome(record: Record, outcome: Outcome, folder: Path) -> Record:
    """`record` with what a training in `folder` has left."""
    return replace(
        record,
        trainable_parameters=outcome.trainable_parameters,
        parameters=outcome.parameters,
        training=outcome.training,
        files=digests_json(ranks.decided(lambda: weights_noted(folder))),
    )


def new_record(
    run: str, recipe: Recipe, pinned: Recipe, encoder: Encoder, data_folder: Path, device: torch.device
) -> Record:
    """The record of a run before it is trained or scored. pinned: the recipe with the commits that are loaded."""
    commits = hub.commits(pinned)
    return Record(
        run=run,
        settings=asdict(recipe),
        prompt=prompt_facts(encoder, data_folder),
        template=template_facts(encoder),
        base_revision=commits["base_revision"],
        tokenizer_revision=commits.get("tokenizer_revision"),
        **made_with(),
        task=TaskFacts.current(),
        device=device_words(device),
    )


def device_words(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
