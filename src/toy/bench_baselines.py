"""The baselines of `run.bench`: stock Hugging Face as the entry used it, and TRL's trainers with their defaults."""

import itertools
import math
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers.utils import is_flash_attn_2_available

from src.prompt.encode import Example
from src.toy.bench_cases import LORA, Case
from src.toy.bench_clock import Clock, endless_arguments, train_by_clock
from src.toy.bench_ours import recipe_of
from src.toy.bench_setting import Setting
from src.train.objectives import make_objective
from src.train.pairs import text_pairs


def entry_training(case: Case, setting: Setting, clock: Clock) -> str:
    """One item a step as Hugging Face's `Trainer` takes it: `labels` on the whole sequence, so all logits are made."""
    device, cuda = setting.device, setting.device.type == "cuda"
    if case.method == "full":
        network = setting.model(torch.bfloat16 if cuda else setting.dtype, setting.attention)
        network.gradient_checkpointing_enable()
    else:
        network = setting.model(setting.dtype, "eager", nf4=torch.float16 if cuda else setting.dtype)
        network = get_peft_model(prepare_model_for_kbit_training(network), _adapter_config(case))
    network.train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, weight_decay=0.0, fused=True)
    clock.watch(network)
    clock.begin()
    for one in itertools.cycle(mixed_lengths(setting.encoder.for_training(setting.train))):
        ids = torch.tensor([one.ids], device=device)
        labels = ids.clone()
        labels[:, : one.answer_start] = -100
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = network(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if clock.lap():
            break
    return ""


def entry_scoring(case: Case, setting: Setting, clock: Clock) -> str:
    """One item a forward, the logits of every token, three of them read. In NF4 where bf16 would not fit."""
    network = setting.model_for_scoring()
    clock.watch(network)
    clock.begin()
    with torch.no_grad():
        for one in itertools.cycle(mixed_lengths(setting.encoder.for_scoring(setting.test))):
            logits = network(input_ids=torch.tensor([one.ids], device=setting.device)).logits[0, -1]
            assert setting.encoder.letter_ids is not None
            [logits[letter].item() for letter in setting.encoder.letter_ids]
            if clock.lap():
                break
    return setting.scored_in


def mixed_lengths(examples: Sequence[Example]) -> list[Example]:
    """`examples` in an order that mixes short and long ones evenly, so that a few seconds represent all."""
    by_length = sorted(examples, key=lambda one: len(one.ids))
    stride = max(1, round(0.618 * len(by_length)))
    while math.gcd(stride, len(by_length)) > 1:
        stride += 1
    return [by_length[place * stride % len(by_length)] for place in range(len(by_length))]


def trl_training(case: Case, setting: Setting, clock: Clock) -> str:
    """`SFTTrainer` with its defaults. Its limit of 1,024 tokens is off, since it would cut the answers."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    cuda = setting.device.type == "cuda"
    padding_free = cuda and setting.config.model_type != "gemma2" and is_flash_attn_2_available()
    attention = "flash_attention_2" if padding_free else setting.attention
    network = setting.model(setting.dtype, attention)
    rendered = [setting.encoder.prompt.render(item) for item in setting.train]
    pairs = [
        {
            "prompt": list(one.messages),
            "completion": [{"role": "assistant", "content": one.answers[item.label or 0]}],
        }
        for one, item in zip(rendered, setting.train, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, max_length=None, padding_free=padding_free, **endless_arguments(setting.device)
        )
        arguments._n_gpu = min(1, arguments.n_gpu)
        trainer = SFTTrainer(
            model=network,
            args=arguments,
            train_dataset=Dataset.from_list(pairs),
            processing_class=setting.encoder.tokenizer,
            peft_config=_adapter_config(case),
        )
        clock.watch(trainer.model)
        train_by_clock(trainer, clock)
    form = "padding-free" if padding_free else "padded"
    batch = f"{arguments.per_device_train_batch_size} items a step"
    missing = "" if padding_free or not cuda else "; no flash-attention package for padding-free"
    return f"{batch}, {form}, {attention}, checkpointing{missing}"


def trl_orpo(case: Case, setting: Setting, clock: Clock) -> str:
    """`ORPOTrainer` with its defaults, on the right answer against each wrong one. Its limit of tokens is off, since it
    would cut the answers; its batch is halved where memory does not suffice.
    """
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    encoder, recipe = setting.encoder, recipe_of(case, setting)
    pairs = list(text_pairs(setting.train, recipe, encoder.prompt, encoder.chat_text, encoder.turn_end))
    examples = make_objective(recipe).examples(encoder, setting.train)
    longest = max(len(ids) for one in examples for ids in one.sequences)

    def see(module: Any, positional: Any, inputs: dict[str, Any]) -> None:
        # A batch holds the right answers of the pairs, then the wrong ones.
        ids = inputs["input_ids"] if "input_ids" in inputs else positional[0]
        clock.count(len(ids) // 2, inputs["attention_mask"].sum())

    with tempfile.TemporaryDirectory() as folder:
        arguments = ORPOConfig(
            output_dir=folder,
            max_length=longest + 1,  # without one it takes 512
            auto_find_batch_size=True,
            **endless_arguments(setting.device),
        )
        arguments._n_gpu = min(1, arguments.n_gpu)
        trainer = ORPOTrainer(
            model=setting.model(setting.dtype, setting.attention),
            args=arguments,
            train_dataset=Dataset.from_list(pairs),
            processing_class=encoder.tokenizer,
            peft_config=_adapter_config(case),
        )
        assert trainer.model is not None
        trainer.model.register_forward_pre_hook(see, with_kwargs=True)
        train_by_clock(trainer, clock)
    batch = trainer._train_batch_size
    halved = " (halved for memory)" if batch < arguments.per_device_train_batch_size else ""
    return f"{batch} pairs a step{halved}, padded, {setting.attention}, checkpointing"


def _adapter_config(case: Case) -> LoraConfig:
    return LoraConfig(
        r=LORA["lora_r"],
        lora_alpha=LORA["lora_alpha"],
        lora_dropout=case.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
