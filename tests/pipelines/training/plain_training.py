"""The training of one process written out in plain PyTorch: what any cluster is held against."""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ashnets.batch import MicroBatch
from ashnets.tasks.pretraining import PretrainingModel, PretrainingOutput
from pipelines.config import PretrainConfig
from pipelines.training.model import build_model
from pipelines.training.randomness import seed_micro_batch
from pipelines.training.schedule import learning_rate

MOMENTUM = 0.1


def train_plainly(config: PretrainConfig, batches: Iterator[MicroBatch], steps: int) -> dict[str, Tensor]:
    """What the last of `steps` steps measured and left behind; nothing may be frozen."""
    train, model = config.train, build_model(config).train()
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) is kind] for kind in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": train.weight_decay},
                                   {"params": vectors, "weight_decay": 0.0}], betas=train.betas, eps=train.eps)
    seen = watch(model)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, step, train.schedule_steps)
        running = {norm: (norm.running_mean.clone(), norm.running_var.clone()) for norm in seen}
        outputs = []
        for _ in range(train.atoms_per_step):
            batch = next(batches)
            outputs.append(model(batch, step / train.schedule_steps,
                                 seed_micro_batch(config.run.seed, batch.position)))
            (outputs[-1].loss / train.atoms_per_step).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        optimizer.step()
        optimizer.zero_grad()
        move_statistics(seen, running, step + 1)
        model.after_step([output.updates for output in outputs])
    return measured(outputs) | {"grad_norm": norm.reshape(1)} | state(model, optimizer)


def watch(model: PretrainingModel) -> dict[_BatchNorm, list[tuple[Tensor, Tensor]]]:
    """Mean and unbiased variance, by channel, of what each BatchNorm gets in training, to be filled by its forwards."""
    seen: dict[_BatchNorm, list[tuple[Tensor, Tensor]]] = {}

    def note(norm: _BatchNorm, inputs: tuple[Tensor]) -> None:
        channels = inputs[0].detach().movedim(-3, 0).flatten(1)
        seen[norm].append((channels.mean(1), channels.var(1)))

    for module in model.modules():
        if isinstance(module, _BatchNorm):
            seen[module] = []
            module.register_forward_pre_hook(note)
    return seen


@torch.no_grad()
def move_statistics(seen: dict[_BatchNorm, list[tuple[Tensor, Tensor]]],
                    running: dict[_BatchNorm, tuple[Tensor, Tensor]], steps: int) -> None:
    """Running statistics move once towards the mean over the step's micro-batches; `seen` is emptied."""
    for norm, notes in seen.items():
        for i, buffer in enumerate((norm.running_mean, norm.running_var)):
            mean = torch.stack([note[i] for note in notes]).mean(0)
            buffer.copy_((1 - MOMENTUM) * running[norm][i] + MOMENTUM * mean)
        norm.num_batches_tracked.fill_(steps)
        notes.clear()


def measured(outputs: list[PretrainingOutput]) -> dict[str, Tensor]:
    """Losses and firing rates: means over the micro-batches."""
    every = [{"loss": output.loss.detach()} | {f"loss/{name}": value for name, value in output.losses.items()}
             | {f"firing_rate/{name}": value for name, value in output.firing_rates.items()} for output in outputs]
    return {name: torch.stack([values[name] for values in every]).mean(0).reshape(1) for name in every[0]}


def state(model: PretrainingModel, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Weights, AdamW's moments and buffers."""
    found = {f"buffer/{name}": buffer for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        found[f"weight/{name}"] = parameter.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            found[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    return found
