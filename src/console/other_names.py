"""Settings by the names that other trainers use (Hugging Face, TRL, LLaMA-Factory, axolotl, unsloth), and ours."""

import difflib
from collections.abc import Collection

CLOSE = 0.8
"""How similar a mistyped word must be to another trainer's name, by difflib."""

OURS = {
    "lr": "learning_rate peak_lr lora_lr",
    "epoch": "num_train_epochs num_epochs epochs n_epochs train_epochs max_epochs",
    "batch_size": "per_device_train_batch_size per_gpu_train_batch_size micro_batch_size train_batch_size batch bs",
    "gradient_accumulation_steps": "gradient_accumulation grad_accum grad_acc_steps accumulate_grad_batches",
    "lora_r": "lora_rank rank r lora_dim",
    "lora_alpha": "alpha lora_scaling",
    "lora_dropout": "dropout",
    "lora_targets": "lora_target lora_target_modules target_modules lora_modules lora_target_linear lora_layers",
    "warmup_steps": "warmup_ratio warmup num_warmup_steps lr_warmup_steps",
    "lr_scheduler": "lr_scheduler_type scheduler scheduler_type lr_schedule",
    "weight_decay": "wd adam_weight_decay",
    "max_grad_norm": "gradient_clipping grad_clip clip_grad_norm max_norm",
    "optimizer": "optim optimizer_type",
    "fsdp": "fsdp_config deepspeed zero_stage use_fsdp",
    "gradient_checkpointing": "use_gradient_checkpointing activation_checkpointing",
    "model_id": "model_name_or_path base_model model model_name model_path hf_model pretrained_model_name_or_path",
    "tokenizer": "tokenizer_name_or_path tokenizer_name tokenizer_path",
    "revision": "model_revision base_model_revision",
    "chat_template": "template chat_template_path conversation_template",
    "method": "finetuning_type adapter peft_type tuner_type use_peft use_lora qlora lora load_in_4bit load_in_8bit "
    "quantization_bit quantization bits full_finetuning",
    "objective": "stage rl rlhf train_type training_type loss_type pref_loss",
    "orpo_beta": "beta pref_beta orpo_alpha",
    "seed": "random_seed data_seed random_state",
    "early_stopping_patience": "patience early_stopping",
    "eval_steps": "eval_frequency eval_every eval_interval val_check_interval evals_per_epoch",
    "prompt": "system_prompt default_system system_message prompt_template prompt_style instruction",
    "share_prefixes": "packing sample_packing neat_packing",
    "order": "group_by_length shuffle",
    "name": "run_name exp_name experiment_name project_name",
    "data": "dataset datasets dataset_dir dataset_name dataset_path data_path data_dir data_file train_file train_data "
    "test_file validation_file",
    "save_dir": "output_dir out_dir output_path save_path",
    "limit": "max_samples max_train_samples num_samples max_examples",
    "recipe": "config config_file cfg",
    "report_to": "report_to use_wandb wandb_project wandb_entity log_with logging_dir",
    "jobs": "num_gpus n_jobs workers num_workers nproc_per_node num_processes",
}
"""Our name → the names that others use, separated by blanks."""

REASONS = {
    "nothing is cut here: an item longer than the model's context stops the run": (
        "cutoff_len max_seq_length max_length max_seq_len sequence_len model_max_length max_prompt_length "
        "max_completion_length block_size truncation seq_len"
    ),
    "a GPU computes in bf16, a CPU in fp32; what weights are kept in follows from method and optimizer": (
        "bf16 fp16 tf32 dtype torch_dtype pure_bf16 precision mixed_precision"
    ),
    "a run saves, and answers dev, once an epoch or every eval_steps steps": (
        "save_steps save_strategy save_interval save_total_limit saves_per_epoch eval_strategy "
        "evaluation_strategy logging_steps logging_strategy log_interval"
    ),
    "the same command goes on where it stopped, and a finished run is never overwritten": (
        "resume_from_checkpoint resume overwrite_output_dir overwrite_cache auto_resume"
    ),
    "the weights that answer most dev items correctly are kept, or with keep last the last ones": (
        "load_best_model_at_end metric_for_best_model greater_is_better"
    ),
    "nothing leaves the machine; what a run did is in its log.txt and record.json": (
        "push_to_hub hub_model_id hub_token hub_strategy"
    ),
    "several GPUs share a run that torchrun or accelerate launch starts: torchrun --nproc_per_node 2 -m run.train": (
        "ddp_timeout ddp_find_unused_parameters device_map"
    ),
    "the fastest attention that gives the same numbers is chosen automatically": (
        "flash_attn flash_attention attn_implementation use_flash_attention_2 sdp_attention"
    ),
    "rows are as long as the GPU's memory allows": (
        "per_device_eval_batch_size per_gpu_eval_batch_size eval_batch_size"
    ),
    "epoch counts passes over the items; a number of steps cannot be set": ("max_steps train_steps num_steps"),
    "the loss is on the answer alone, or as objective says": (
        "train_on_inputs train_on_prompt completion_only_loss assistant_only_loss train_on_responses_only mask_history"
    ),
    "a command is for one thing: run.train trains, run.test scores, run.vote votes": (
        "do_train do_eval do_predict eval_only predict_with_generate"
    ),
    "the splits are files: data_train.json, data_dev.json, data_test.json": ("val_size val_set_size test_size"),
    "worked examples are part of a prompt's name, as in korean+3shots": ("num_fewshot n_shot shots few_shot"),
    "there is no such setting here": (
        "neftune_noise_alpha use_rslora use_dora modules_to_save init_lora_weights adam_beta1 adam_beta2 "
        "adam_epsilon label_smoothing_factor preprocessing_num_workers dataloader_num_workers "
        "dataset_num_proc remove_unused_columns"
    ),
}
"""Why we lack a setting → the names that others use for it."""

ALSO = {"save_dir": ("out", "output"), "recipe": ("recipes",), "name": ("run",), "model_id": ("runs", "run")}
"""Second names of ours, for commands and files that do not have the first."""

MORE = {
    "warmup_ratio": " Below 1 it is a share of all steps.",
    "load_in_4bit": " qlora has the base in 4 bit.",
    "load_in_8bit": " qlora has the base in 4 bit; there is no 8 bit.",
    "quantization_bit": " qlora has the base in 4 bit.",
    "evals_per_epoch": " It counts optimizer steps; the default is once an epoch.",
    "template": " It is a Jinja2 text, used when the tokenizer ships none.",
}
_NAMES = {theirs: ours for ours, names in OURS.items() for theirs in names.split()}
_WHY = {theirs: reason for reason, names in REASONS.items() for theirs in names.split()}


def hint(word: str, known: Collection[str]) -> str:
    """A sentence about `word`, a flag or a key of a file, if another trainer has a setting of that name; else empty.
    `known`: the flags, with their dashes, or the keys that are allowed here.
    """
    dashes = "--" if word.startswith("-") else ""
    theirs = word.lstrip("-").lower().replace("-", "_")
    bare = [one.lstrip("-") for one in known]
    if theirs not in (*bare, *_NAMES, *_WHY):  # mistyped; if it is closer to one of our names, say nothing
        theirs = next(iter(difflib.get_close_matches(theirs, [*bare, *_NAMES, *_WHY], n=1, cutoff=CLOSE)), "")
        if theirs in bare:
            return ""
    if reason := _WHY.get(theirs):
        return f" Other trainers have {theirs}; {reason}."
    ours = theirs if dashes + theirs in known else _NAMES.get(theirs)
    if ours is None:
        return ""
    ours = next((one for one in (ours, *ALSO.get(ours, ())) if dashes + one in known), ours)
    if dashes + ours in known:
        return f" Did you mean {dashes + ours!r}?{MORE.get(theirs, '')}"
    if dashes:
        return f" Other commands have it, as --{ours}; this one does not."
    return f" It is no key of a recipe but the flag --{ours}."
