"""What a training writes and goes on from: checkpoints that are whole, and the weights of the best evaluation.

`SavingTrainer` overrides methods of transformers' Trainer that are not documented. Look here after an upgrade:
_save, _save_checkpoint, _save_optimizer_and_scheduler, _load_from_checkpoint, _load_optimizer_and_scheduler,
_load_rng_state.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from src.console.cli import UserError
from src.files import full_disk
from src.model import ranks
from src.model.adapters import save_adapter
from src.model.causal import is_sharded
from src.model.load_sharded import fill_from
from src.model.recipes import Recipe
from src.model.shards import full_state
from src.train.checkpoints import Checkpoint, refuse_foreign, remove, remove_others, settle
from src.train.keep import KeepBest, best_of, evaluations
from src.train.sharded_states import full_states, load_states


class SavingTrainer(Trainer):
    """`Trainer` with our files."""

    recipe: Recipe
    network: Any
    best: KeepBest
    optimizer_name: str
    """As in a recipe."""
    checkpoint: Checkpoint | None = None
    """What training goes on from."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None and self.args.should_save
        if is_sharded(self.network):
            self.network.save_pretrained(output_dir, state_dict=full_state(self.network))
        elif self.recipe.method == "full":
            self.network.save_pretrained(output_dir)
        else:
            save_adapter(self.network, Path(output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Then seals the checkpoint, keeps its weights if they are the best, and removes the checkpoint before."""
        place, step = self.best.place, self.state.global_step
        history = evaluations(self.state)
        best = history[best_of(history, self.recipe.keep)]["step"]
        if not ranks.is_first():
            if is_sharded(self.network):
                self._give_parts(best == step)
            return
        place.held.refuse_gone()
        folder = place.checkpoints / f"checkpoint-{step}"
        remove(folder)  # what an interrupted training left of it
        made = {"step": step, "optimizer": self.optimizer_name, "best": best, "weights": self.best.target.name}
        try:
            with full_disk.told(f"checkpoint-{step}", place.checkpoints):
                super()._save_checkpoint(model, trial)
                settle(place, made)
        except UserError:
            remove(folder)
            raise
        if best == step:
            self.best.save(step)
        remove_others(folder)

    def _give_parts(self, best: bool) -> None:
        """Takes part in gathering what rank 0 writes, in its order."""
        full_state(self.network)
        full_states(self.optimizer)
        if best:
            self.best.save(self.state.global_step)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.network):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.lr_scheduler is not None
        torch.save(full_states(self.optimizer), Path(output_dir) / OPTIMIZER_NAME)
        torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Also writes the best weights anew, where they were lost and are those of the checkpoint."""
        with self._loading():
            if is_sharded(self.network):
                fill_from(self.network, self.recipe, Path(resume_from_checkpoint))
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.checkpoint and self.checkpoint.rebuilt:
            self.best.save(self.checkpoint.step)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._loading():
            if checkpoint is None or not is_sharded(self.network):
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            assert self.lr_scheduler is not None
            load_states(self.optimizer, Path(checkpoint) / OPTIMIZER_NAME)
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with self._loading():
            super()._load_rng_state(checkpoint)

    @contextlib.contextmanager
    def _loading(self) -> Iterator[None]:
        """Within, a checkpoint that cannot be loaded is the user's message."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self.checkpoint is None:
                raise
            raise refuse_foreign(self.checkpoint.folder, error) from error
