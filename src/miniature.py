"""The miniature."""

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from src import corpus
from src.prompts import PROMPTS

VALUES = Path("resource/miniature/miniature.yaml")

def load_values(path: Path = VALUES) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# ---- tokenizers
SPLITS = {
    "bytes-llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "bytes-qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def tokenizer_texts(values: Mapping[str, Any]) -> list[str]:
    texts = []
    previous = None
    for item in corpus.make_dialogues(values["tokenizer"]["dialogues"], values["seed"]):
        one = item["input"]
        if one["conversation"] != previous:
            previous = one["conversation"]
            texts.append(dialogue_text(one))
        texts.append(question_text(one))
    for path in sorted(PROMPTS.glob("*.yaml")):
        prompt = yaml.safe_load(path.read_text(encoding="utf-8"))
        texts += ["\n".join([prompt.get("system", ""), prompt["user"], *prompt["categories"].values()])] * values["tokenizer"]["prompt_repeats"]
    return texts


def dialogue_text(one: Mapping[str, Any]) -> str:
    return "".join(f"화자{turn['speaker']}: {turn['utterance']}\n" for turn in one["conversation"])


def question_text(one: Mapping[str, Any], order: Sequence[int] = (0, 1, 2)) -> str:
    options = [one[f"inference_{index + 1}"] for index in order]
    return f"\n{one['category']}\n" + "".join(f"{letter}. {option}\n" for letter, option in zip("ABC", options, strict=True))


def make_tokenizer(spec: Mapping[str, Any], texts: Sequence[str]) -> PreTrainedTokenizerFast:
    kind, specials = spec["kind"], list(spec["specials"])
    pieces = kind not in SPLITS
    if pieces:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=spec["unk"], fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        lines = [line for text in texts for line in text.split("\n") if line]
        trainer = trainers.BpeTrainer(vocab_size=spec["vocab"], special_tokens=specials + bytes_, show_progress=False)
        tokenizer.train_from_iterator(lines + [" A B C"] * 200, trainer)
        prepend = "first" if kind == "sentencepiece" else "never"
        tokenizer = without_special_bytes(tokenizer, specials, bytes_)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
        strip = [decoders.Strip(" ", 1, 0)] if prepend == "first" else []
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(SPLITS[kind]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=spec["vocab"] - len(specials), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.add_special_tokens(specials)
    before = [spec["bos"]] if spec.get("add_bos") else []
    after = [spec["eos"]] if spec.get("add_eos") else []
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], pair=[*before, "$A", *after, *(f"{x}:1" for x in before), "$B:1", *(f"{x}:1" for x in after)],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *after}],
        )
    names = {f"{role}_token": spec[role] for role in ("bos", "eos", "unk", "pad") if role in spec}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, add_bos_token=bool(before), add_eos_token=bool(after),
        padding_side=spec.get("padding_side", "right"), **names)
    fast.chat_template = spec.get("chat_template")
    return fast


def without_special_bytes(tokenizer: Tokenizer, specials: list[str], bytes_: list[str]) -> Tokenizer:
    import json
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] in specials]
    return Tokenizer.from_str(json.dumps(raw))


# ---- models
def make_model(spec: Mapping[str, Any], tokenizer: Any, values: Mapping[str, Any], seed: int) -> Any:
    model = dict(spec)
    config = AutoConfig.for_model(
        model.pop("model_type"), **{k: v for k, v in model.items() if k != "rope_theta"}, rope_parameters={"rope_type": "default", "rope_theta": model["rope_theta"]},
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        initializer_range=values["initialisation"]["weight_std"],
    )
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if config.model_type == "gemma2" else "sdpa", dtype=torch.float32)
    initialise(network, values["initialisation"], torch.Generator().manual_seed(seed))
    return network


@torch.no_grad()
def initialise(network: Any, init: Mapping[str, float], generator: torch.Generator) -> None:
    config = network.config
    embeddings = network.get_input_embeddings().weight
    std = init["embedding_std"]
    if config.model_type == "gemma2":
        std /= math.sqrt(config.hidden_size)
    embeddings.normal_(0, std, generator=generator)
    embeddings[:, 0] = init["constant"] * std
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    half = dim // 2
    theta = config.rope_parameters["rope_theta"]
    turn = [theta ** (-index / half) for index in range(half)]
    slow = [i for i in range(half) if turn[i] < 0.01][-half // 2:]
    slow = slow + [i + half for i in slow]
    per = config.num_attention_heads // config.num_key_value_heads
    for layer in network.model.layers:
        attention = layer.self_attn
        query, key = attention.q_proj.weight, attention.k_proj.weight
        query[: per * dim] *= 0.3
        key[:dim] *= 0.3
        for i in range(half):
            if turn[i] > 0.01:
                key[i, 0] = init["near"] / init["constant"]
            for head in range(per):
                wide = head % 2
                if (0.01 < turn[i] < 0.35) if wide else (turn[i] > 0.05):
                    off = 0.0 if wide else 1.0
                    query[head * dim + i, 0] = init["near"] * math.cos(turn[i] * off)
                    query[head * dim + i + half, 0] = -init["near"] * math.sin(turn[i] * off)
        for group in range(1, config.num_key_value_heads):
            rows = torch.linalg.qr(torch.randn(config.hidden_size, len(slow), generator=generator))[0].T * init["equal"]
            for place, row in zip(slow, rows, strict=True):
                key[group * dim + place] = row
                for head in range(group * per, (group + 1) * per):
                    query[head * dim + place] = row
        if config.model_type == "gemma2":
            layer.post_attention_layernorm.weight.fill_(-1 + init.get("post", 0.5))
            layer.post_feedforward_layernorm.weight.fill_(-1 + init.get("post", 0.5))


# ---- pre-training
@dataclasses.dataclass
class Batch:
    ids: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor
    letters: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    options: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    copies: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_batch(dialogues: Sequence[Sequence[Mapping[str, Any]]], tokenizer: Any, template: str | None, rng: random.Random) -> Batch:
    rows = []
    marks: dict[str, list[tuple[int, int, float]]] = {"letters": [], "options": [], "tokens": [], "copies": []}
    for row, items in enumerate(dialogues):
        sequences = []
        for item in items:
            one = item["input"]
            order = rng.sample(range(3), 3)
            label = order.index(int(item["output"][-1]) - 1)
            dialogue, question = dialogue_text(one), question_text(one, order)
            prompt = tokenizer.apply_chat_template([{"role": "user", "content": dialogue + question.rstrip("\n")}], chat_template=template, tokenize=False, add_generation_prompt=True)
            answer = "ABC"[label] + ". " + one[item["output"]]
            coded = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = list(coded["input_ids"]), coded["offset_mapping"]
            start = prompt.index(dialogue)
            ends = [start + len(dialogue)]
            begin = prompt.index(question.rstrip("\n"), start)
            position = begin + len(question) - len(question.split("\n", 2)[2])
            spans = []
            for line in question.split("\n", 2)[2].splitlines():
                spans.append((position, position + len(line)))
                position += len(line) + 1
            if tokenizer.bos_token_id is not None and template_bos(tokenizer) and ids[0] != tokenizer.bos_token_id:
                ids, offsets = [tokenizer.bos_token_id, *ids], [(0, 0), *offsets]
            spoken = {id for id, (_, end) in zip(ids, offsets, strict=True) if start < end <= ends[0]}
            last = max(i for i, (s, e) in enumerate(offsets) if s < len(prompt)) 
            sequences.append((ids, offsets, spans, spoken, last, label, start + len(dialogue)))
        shared = 0
        while all(len(s[0]) > shared and s[0][shared] == sequences[0][0][shared] for s in sequences):
            shared += 1
        flat = list(sequences[0][0][:shared])
        places = list(range(shared))
        branch = [0] * shared
        for number, (ids, offsets, spans, spoken, last, label, _) in enumerate(sequences, start=1):
            move = len(flat) - shared
            flat += ids[shared:]
            places += range(shared, len(ids))
            branch += [number] * (len(ids) - shared)
            marks["letters"].append((row, last + move, ids[last + 1]))
            marks["copies"] += [(row, place + move, ids[place + 1]) for place in range(last + 1, len(ids) - 1)]
            for which, (s, e) in enumerate(spans):
                inside = [i for i, (os, oe) in enumerate(offsets) if os < e and oe > s and i >= shared]
                marks["options"].append((row, inside[-1] + move, float(which == label)))
                marks["tokens"] += [(row, i + move, float(ids[i] in spoken)) for i in inside]
        rows.append((flat, places, branch))
    longest = max(len(r[0]) for r in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    branches = torch.full((len(rows), longest), -1)
    for row, (flat, places, branch) in enumerate(rows):
        ids[row, : len(flat)] = torch.tensor(flat)
        positions[row, : len(flat)] = torch.tensor(places)
        branches[row, : len(flat)] = torch.tensor(branch)
    before = torch.ones(longest, longest, dtype=torch.bool).tril()
    sees = before & ((branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None]))
    sees |= torch.eye(longest, dtype=torch.bool)
    packed = {k: tuple(torch.tensor(column) for column in zip(*v, strict=True)) for k, v in marks.items()}
    return Batch(ids, positions, sees[:, None], **packed)


def template_bos(tokenizer: Any) -> bool:
    return tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id


def masks(network: Any, batch: Batch) -> Any:
    full = torch.zeros(batch.sees.shape).masked_fill(~batch.sees, -1e9)
    if network.config.model_type != "gemma2":
        return full
    distance = batch.positions[:, None, :, None] - batch.positions[:, None, None, :]
    near = batch.sees & (distance < network.config.sliding_window)
    return {"full_attention": full, "sliding_attention": torch.zeros(near.shape).masked_fill(~near, -1e9)}


class Probes(torch.nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.token = torch.nn.Linear(hidden, 1)
        self.option = torch.nn.Linear(hidden, 1)


def forward(network: Any, batch: Batch, probes: Probes, weights: Mapping[str, float], letter_ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    kept: dict[int, torch.Tensor] = {}
    layers = network.model.layers
    at = {"token": 1, "option": len(layers) - 2}
    hooks = [layers[i].register_forward_hook(lambda m, a, out, i=i: kept.__setitem__(i, out[0] if isinstance(out, tuple) else out)) for i in set(at.values())]
    hidden = network.model(input_ids=batch.ids, attention_mask=masks(network, batch), position_ids=batch.positions, use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    report = {}
    rows, columns, letters = batch.letters
    logits = network.lm_head(hidden[rows, columns])
    if cap := getattr(network.config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    loss = functional.cross_entropy(logits, letters)
    right = (letter_ids[logits[:, letter_ids].argmax(1)] == letters).float().mean()
    report |= {"letter": loss.item(), "accuracy": right.item()}
    for name, marks, head, weight in (("token", batch.tokens, probes.token, weights["token_weight"]), ("option", batch.options, probes.option, weights["option_weight"])):
        rows, columns, truth = marks
        state = kept[at[name]][rows, columns]
        state = functional.rms_norm(state, state.shape[-1:])
        found = head(state)[:, 0]
        part = functional.binary_cross_entropy_with_logits(found, truth)
        report[name] = part.item()
        report[name+"_right"] = ((found > 0) == (truth > 0)).float().mean().item()
        loss = loss + weight * part
    if weights["copy_weight"]:
        rows, columns, nexts = batch.copies
        logits = network.lm_head(hidden[rows, columns])
        part = functional.cross_entropy(logits, nexts)
        report["copy"] = part.item()
        loss = loss + weights["copy_weight"] * part
    return loss, report


def by_dialogue(items: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    return [list(items[i : i + 5]) for i in range(0, len(items), 5)]


def pretrain(network: Any, tokenizer: Any, template: str | None, values: Mapping[str, Any], seed: int, report: Callable[[int, dict[str, float]], None]) -> float:
    p = values["pretraining"]
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dialogues = by_dialogue(corpus.make_dialogues(p["steps"] * p["dialogues_per_step"], seed))
    held = by_dialogue(corpus.make_dialogues(16, seed + 1000))
    probes = Probes(network.config.hidden_size)
    parameters = [*network.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=p["lr"], betas=(0.9, 0.95), weight_decay=0.01)
    first = make_batch(dialogues[:1], tokenizer, template, rng)
    letter_ids = torch.tensor(letters_of(tokenizer, dialogues[0][0], template))
    network.train()
    for step in range(p["steps"]):
        share = min(1.0, (step + 1) / (p["warmup"] * p["steps"]), (p["steps"] - step) / (p["decay"] * p["steps"]))
        for group in optimizer.param_groups:
            group["lr"] = p["lr"] * share
        batch = make_batch(dialogues[step * p["dialogues_per_step"] : (step + 1) * p["dialogues_per_step"]], tokenizer, template, rng)
        loss, parts = forward(network, batch, probes, p, letter_ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        report(step, parts | {"T": batch.ids.shape[1]})
    network.eval()
    with torch.no_grad():
        return sum(forward(network, make_batch(held[i : i + 8], tokenizer, template, rng), probes, p, letter_ids)[1]["accuracy"] for i in (0, 8)) / 2


def letters_of(tokenizer: Any, item: Mapping[str, Any], template: str | None) -> list[int]:
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], chat_template=template, tokenize=False, add_generation_prompt=True)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    found = [tokenizer(prompt + letter, add_special_tokens=False)["input_ids"][len(before):] for letter in "ABC"]
    assert all(len(f) == 1 for f in found), found
    return [f[0] for f in found]
