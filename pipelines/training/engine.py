"""The DeepSpeed engine: parameter groups, ZeRO configuration, one micro-batch, one step, shards, export."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ashnets.batch import MicroBatch
from ashnets.running_statistics import StepStatistics
from ashnets.tasks.pretraining import PretrainingModel, PretrainingOutput
from ashnets.weights_file import save_weights
from cluster import comm_op
from pipelines.config import TrainConfig
from pipelines.errors import FinalError
from pipelines.training.randomness import seed_micro_batch
from pipelines.training.snapshot import HostSnapshot, Shards
from pipelines.training.universal import load, model_file, parameter_state

ZERO_CONFIGS = Path(__file__).resolve().parents[2] / "cluster" / "deepspeed"


def parameter_groups(model: nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's groups: weight decay on matrices only (norms, biases, tdBN weights, summary ratio and temperature
    are vectors), and the backbone's own learning-rate factor as `lr_factor`.
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (".backbone." in f".{name}", parameter.ndim > 1)
        group = groups.setdefault(key, {
            "params": [], "lr": train.lr, "lr_factor": train.backbone_lr_factor if key[0] else 1.0,
            "weight_decay": train.weight_decay if key[1] else 0.0})
        group["params"].append(parameter)
    return list(groups.values())


def deepspeed_config(train: TrainConfig, zero_stage: int, world_size: int, rounds: int) -> dict[str, Any]:
    """cluster/deepspeed/zero<stage>.json completed with what the run decides."""
    config: dict[str, Any] = json.loads((ZERO_CONFIGS / f"zero{zero_stage}.json").read_text())
    config |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": rounds,
        "train_batch_size": world_size * rounds,
        "gradient_clipping": train.clip,
        "steps_per_print": 1 << 62,
    }
    assert train.precision != "auto", "a launch settles it before it trains"
    if train.precision == "bf16":
        # No module is "safe" for bf16 communication: gradients are summed in fp32 on any number of workers.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return config


def sum_over_ranks(total: Tensor) -> Tensor:
    """Sum of `total` over all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers of all these tensors are finite."""
    found = [t.detach() for t in tensors if torch.is_tensor(t) and t.is_floating_point() and t.numel()]
    return not found or bool(torch.nn.utils.get_total_norm(found, norm_type=math.inf).isfinite())


class NonFiniteWeights(FinalError):
    """An update has spoilt weights, moments or buffers: nothing of them may be kept."""


class Engine:
    """One rank's DeepSpeed engine over the pre-training model."""

    def __init__(self, model: PretrainingModel, train: TrainConfig, *, zero_stage: int, world_size: int,
                 seed: int, device: torch.device) -> None:
        self.rounds = -(-train.atoms_per_step // world_size)
        self.atoms = train.atoms_per_step
        """Real micro-batches of the coming step; fewer only in the very last one of training."""
        self._train, self._zero_stage, self._world_size, self._seed = train, zero_stage, world_size, seed
        self.device = device
        model.to(device)
        optimizer = torch.optim.AdamW(parameter_groups(model, train), lr=train.lr, betas=train.betas, eps=train.eps)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, dist_init_required=False,
            config=deepspeed_config(train, zero_stage, world_size, self.rounds))
        if dist.is_initialized():
            dist.barrier()
            comm_op.unlink_buffer(dist.get_rank())
        self._engine.checkpoint_engine = HostSnapshot()
        self.model: PretrainingModel = self._engine.module
        self.statistics = StepStatistics(self.model, reduce=sum_over_ranks)
        self._gradient_norm = 0.0

    def set_learning_rate(self, lr: float) -> None:
        """Give every parameter group its learning rate for the coming step."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]

    def forward_backward(self, batch: MicroBatch, *, real: bool, progress: float) -> PretrainingOutput:
        """Run one micro-batch and add its gradients; `progress` is the share of training that has passed.

        DeepSpeed divides by its slots (world size x accumulation); the step's gradient is the mean over the
        real micro-batches, hence the factor. A loss that is not finite makes all its gradients so, in whatever way it
        arose, so that every rank drops the step.
        """
        generator = seed_micro_batch(self._seed, batch.position)
        output: PretrainingOutput = self._engine(batch.to(self.device), progress, generator)
        self.statistics.add_micro_batch(real)
        slots = self._world_size * self.rounds
        factor = torch.where(output.loss.detach().isfinite(), slots / self.atoms, math.nan)
        self._engine.backward(output.loss * factor)
        return output

    def step(self) -> bool:
        """Count the micro-batch; on the last one of the step apply the gradients. Returns whether it has done so.

        Where their norm is not finite, it drops them, on all ranks alike. DeepSpeed does so by itself from ZeRO-1 on
        (its `overflow`); at stage 0 it knows neither norm nor check.
        """
        applies = self._engine.is_gradient_accumulation_boundary()
        if applies and self._zero_stage == 0:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            self._gradient_norm = float(torch.nn.utils.get_total_norm(gradients))
            if not math.isfinite(self._gradient_norm):
                self._engine.zero_grad()
                self._engine.micro_steps += 1
                return False
        self._engine.step()
        if applies and self._zero_stage > 0:
            self._gradient_norm = float(self._engine.get_global_grad_norm())
        return applies and self._engine.was_step_applied()

    def check_finite(self, step: int) -> None:
        """Raise NonFiniteWeights, on all ranks, where after `step` a weight, moment or buffer of any is not finite."""
        optimizer = getattr(self._optimizer, "optimizer", self._optimizer)  # torch's, inside DeepSpeed's
        kinds = {"weights": list(optimizer.state), "buffers": list(self.model.buffers()),
                 "moments": [m for state in optimizer.state.values() for m in state.values()]}
        spoilt = [float(not all_finite(tensors)) for tensors in kinds.values()]
        counts = sum_over_ranks(torch.tensor(spoilt, device=self.device)).tolist()
        found = [kind for kind, count in zip(kinds, counts, strict=True) if count]
        if found:
            raise NonFiniteWeights(f"step {step}: not all {' and '.join(found)} are finite: no checkpoint is made of "
                                   "them, the newest one is older")

    @torch.no_grad()
    def remember(self, outputs: list[PretrainingOutput]) -> None:
        """Bring memory and dictionary up to date with all ranks' real micro-batches, in position order.

        `outputs` are this rank's, padding included; turn t of rank r is the step's micro-batch t * world size + r.
        """
        slots: list[dict[str, Tensor]] = [{} for _ in range(self.rounds * self._world_size)]
        for turn, output in enumerate(outputs):
            for name, value in output.updates.items():
                parts = [torch.empty_like(value) for _ in range(self._world_size)]
                if self._world_size > 1:
                    dist.all_gather(parts, value.contiguous())
                else:
                    parts = [value]
                for rank, part in enumerate(parts):
                    slots[turn * self._world_size + rank][name] = part
        self.model.after_step(slots[:self.atoms])

    def gradient_norm(self) -> float:
        """Global gradient norm of the last step, before clipping."""
        return self._gradient_norm

    def snapshot(self, folder: Path) -> Shards:
        """Copies of this rank's shards, for files below `folder` (all ranks take part).

        Frozen weights are left out, the configuration restores them.
        """
        self._engine.save_checkpoint(str(folder), tag="state", save_latest=False, exclude_frozen_parameters=True)
        return self._engine.checkpoint_engine.take()

    def reads(self, world_size: int, zero_stage: int) -> bool:
        """Whether shards that so many workers wrote at this ZeRO stage fit here as they are."""
        return zero_stage == self._zero_stage and (world_size == self._world_size or zero_stage == 0)

    def load(self, folder: Path) -> None:
        """Load the shards of a checkpoint whose manifest has been verified (DeepSpeed unpickles)."""
        path, _ = self._engine.load_checkpoint(str(folder), tag="state", load_module_strict=False)
        if path is None:
            raise RuntimeError(f"{folder}: DeepSpeed found no checkpoint in it")

    def trainable_names(self) -> list[str]:
        """Names of the parameters that learn, in the order of the optimizer's groups."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[p] for group in parameter_groups(self.model, self._train) for p in group["params"]]

    @torch.no_grad()
    def load_universal(self, folder: Path) -> None:
        """Load a verified checkpoint that `universal.convert` has brought into the form for any number of workers."""
        if self._zero_stage == 0:
            self._load_parameters(folder / "state")
        else:
            self._engine._config.load_universal_checkpoint = True  # DeepSpeed looks at it while it loads
            self.load(folder)
            self._engine._config.load_universal_checkpoint = False
        saved = load(model_file(folder / "state"))["module"]  # DeepSpeed's universal form knows no buffers
        for name, buffer in self.model.named_buffers():
            if name in saved:
                buffer.copy_(saved[name])

    def _load_parameters(self, state: Path) -> None:
        parameters = dict(self.model.named_parameters())
        for name in self.trainable_names():
            parameter, found = parameters[name], parameter_state(state, name)
            parameter.copy_(found["fp32"].view_as(parameter))
            self._optimizer.state[parameter] = {"step": found["step"].clone()} | {
                key: found[key].view_as(parameter).to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}

    def export_weights(self, path: Path, step: int) -> None:
        """Write the whole model after `step` steps as safetensors on rank 0 (all ranks take part: ZeRO-3 gathers)."""
        gathered = deepspeed.zero.GatheredParameters(
            list(self.model.parameters()), enabled=self._zero_stage == 3)
        with gathered:
            if not dist.is_initialized() or dist.get_rank() == 0:
                save_weights(self.model, path, step)
