"""A critic that is loaded in this process: a model of the hub or a folder, with its own chat template."""

import torch
from jinja2 import TemplateError
from transformers import GenerationConfig

from src.console.cli import UserError
from src.files.templates import why
from src.model import trust
from src.model.load import context_length, load_base, load_tokenizer
from src.model.recipes import make_recipe
from src.prompt.chat import apply_template
from src.search.calls import AnswerSettings, Ask


def load_critic(model_id: str, device: torch.device, settings: AnswerSettings) -> Ask:
    recipe = make_recipe({"model_id": model_id, "method": "lora", trust.NAME: trust.allowed()}, "--engine")
    tokenizer, network = load_tokenizer(recipe), load_base(recipe, device).eval()
    if tokenizer.chat_template is None:
        raise UserError(f"--engine {model_id}: its tokenizer ships no chat template; a critic needs one.")
    config = GenerationConfig(
        max_new_tokens=settings.max_tokens,
        do_sample=settings.temperature > 0,
        temperature=settings.temperature or 1.0,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=True,
    )

    def ask(message: str, system: str) -> str:
        turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": message}]
        try:
            try:
                text = apply_template(tokenizer, turns, add_generation_prompt=True)
            except TemplateError:  # no system turn
                turns = [{"role": "user", "content": f"{system}\n\n{message}"}]
                text = apply_template(tokenizer, turns, add_generation_prompt=True)
        except Exception as error:  # a template can raise anything that Python can
            raise UserError(f"--engine {model_id}: its chat template fails: {why(error)}.") from error
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(device)
        limit = context_length(network.config)
        if limit and ids.shape[1] >= limit:
            raise UserError(
                f"--engine {model_id}: {ids.shape[1]} tokens do not fit into its context of {limit}; "
                "give a smaller --batch_size."
            )
        with torch.inference_mode(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(settings.seed)
            out = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    return ask
