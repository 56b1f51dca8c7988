"""Samples as logs of Inspect, for its viewer: `inspect view --log-dir DIR`.

A log is one JSON object (inspect_ai's EvalLog, version 2): what was evaluated, what came out, and the samples.
"""

import datetime
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from src import task

SCORER = "choice"
"""Inspect's own scorer of multiple choice, whose values are C (correct) and I (incorrect)."""


def inspect_logs(samples: Sequence[Mapping[str, Any]], created: datetime.datetime) -> dict[str, str]:
    """File's name → text, a log for each run and split of `samples` (`src/runs/samples.py`)."""
    files = {}
    for (run, split), some in itertools.groupby(samples, key=lambda one: (one["run"], one["split"])):
        # Inspect takes a file for a log by the time that its name begins with.
        told = re.sub(r"[^\w-]", "-", f"{run}-{split}")
        name = f"{created:%Y-%m-%dT%H-%M-%S+00-00}_{told}.json"
        files[name] = json.dumps(_log(run, split, list(some), created), ensure_ascii=False) + "\n"
    return files


def _log(run: str, split: str, samples: Sequence[Mapping[str, Any]], created: datetime.datetime) -> dict[str, Any]:
    when = created.isoformat(timespec="seconds")
    # Logs of the same id are one to Inspect.
    told = hashlib.sha256(f"{run} {split} {when}".encode()).hexdigest()[:22]
    judged = [bool(one["right"]) for one in samples if one["right"] is not None]
    accuracy = {"accuracy": {"name": "accuracy", "value": sum(judged) / len(judged)}} if judged else {}
    return {
        "version": 2,
        "status": "success",
        "eval": {
            **{key: told for key in ("eval_id", "run_id", "task_id")},
            "created": when,
            "task": split,
            "model": run,
            "dataset": {"name": split, "samples": len(samples), "sample_ids": [one["id"] for one in samples]},
            "config": {},
            "metadata": {"prompt_sha256": samples[0]["prompt_sha256"]},
        },
        "plan": {"name": "plan", "steps": []},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": [{"name": SCORER, "scorer": SCORER, "metrics": accuracy}] if judged else [],
        },
        "stats": {"started_at": when, "completed_at": when},
        "samples": [_sample(run, one) | {"uuid": f"{told}-{one['id']}"} for one in samples],
    }


def _sample(run: str, one: Mapping[str, Any]) -> dict[str, Any]:
    current = task.current()
    letters = dict(zip(current.options, current.letters, strict=True))
    texts = dict(zip(current.options, one["options"], strict=True))
    targets = "\n".join(f"▶ {text}" for text in one["target_utterances"])
    choices = "\n".join(f"{letters[key]}. {text}" for key, text in texts.items())
    asked = f"{one['dialogue']}\n\n{targets}\n\n{one['category']}\n\n{choices}"
    answer = {"role": "assistant", "content": f"{letters[one['prediction']]}. {texts[one['prediction']]}"}
    details = {key: one[key] for key in ("margin", "logprobs", "probabilities")}
    score = {"value": "C" if one["right"] else "I", "answer": letters[one["prediction"]], "metadata": details}
    return {
        "id": one["id"],
        "epoch": 1,
        "input": asked,
        "choices": list(one["options"]),
        "target": letters.get(one["label"], ""),
        "messages": [{"role": "user", "content": asked}, answer],
        "output": {"model": run, "choices": [{"message": answer, "stop_reason": "stop"}]},
        "scores": None if one["right"] is None else {SCORER: score},
        "metadata": {"category": one["category"], "prompt_sha256": one["prompt_sha256"], **details},
    }
