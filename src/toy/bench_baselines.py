"""The baselines of `run.bench`: stock Hugging Face as the entry used it, and TRL's trainers with their defaults."""

import itertools
import tempfile
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers.utils import is_flash_attn_2_available

from src.toy.bench_cases import LORA, Case
from src.toy.bench_clock import Clock, endless_arguments, train_by_clock
from src.toy.bench_inputs import mixed_lengths
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
    would cut the answers; its batch is halved where memory does not suffice. With all parameters it takes the published
    batch of one, which to it is a pair.
    """
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    encoder, recipe = setting.encoder, recipe_of(case, setting)
    full = case.method == "full"
    examples = make_objective(recipe).examples(encoder, setting.train)
    items, batch = list(setting.train), dict[str, Any](auto_find_batch_size=True)
    if full:
        by_id = {item.id: item for item in items}
        items = [by_id[one.id] for one in mixed_lengths(examples)]
        batch = {"per_device_train_batch_size": case.items, "train_sampling_strategy": "sequential"}
    pairs = list(text_pairs(items, recipe, encoder.prompt, encoder.chat_text, encoder.turn_end))
    longest = max(len(ids) for one in examples for ids in one.sequences)

    def see(module: Any, positional: Any, inputs: dict[str, Any]) -> None:
        # A batch holds the right answers of the pairs, then the wrong ones.
        ids = inputs["input_ids"] if "input_ids" in inputs else positional[0]
        clock.count(len(ids) // 2, inputs["attention_mask"].sum())

    with tempfile.TemporaryDirectory() as folder:
        arguments = ORPOConfig(
            output_dir=folder,
            max_length=longest + 1,  # without one it takes 512
            **batch,
            **endless_arguments(setting.device),
        )
        arguments._n_gpu = min(1, arguments.n_gpu)
        trainer = ORPOTrainer(
            model=setting.model(setting.dtype, setting.attention),
            args=arguments,
            train_dataset=Dataset.from_list(pairs),
            processing_class=encoder.tokenizer,
            peft_config=None if full else _adapter_config(case),
        )
        assert trainer.model is not None
        trainer.model.register_forward_pre_hook(see, with_kwargs=True)
        train_by_clock(trainer, clock)
    pairs_a_step = trainer._train_batch_size
    halved = " (halved for memory)" if pairs_a_step < arguments.per_device_train_batch_size else ""
    counted = "1 pair a step" if pairs_a_step == 1 else f"{pairs_a_step} pairs a step"
    return f"{counted}{halved}, padded, {setting.attention}, checkpointing"


def _adapter_config(case: Case) -> LoraConfig:
    return LoraConfig(
        r=LORA["lora_r"],
        lora_alpha=LORA["lora_alpha"],
        lora_dropout=case.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
