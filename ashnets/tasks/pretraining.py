"""The pre-training model: an ASHNet, its five tasks, their weighted sum and what the trainer needs after a step."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ashnets.batch import MicroBatch
from ashnets.config import TasksConfig
from ashnets.fusion import FusedFeatures
from ashnets.model import ASHNet, VisualFeatures
from ashnets.tasks.contrast import images_of, texts_of
from ashnets.tasks.dictionary import DictionaryMVM
from ashnets.tasks.itc import ITC
from ashnets.tasks.itm import ITM, allowed_negatives, choose_negatives
from ashnets.tasks.mlm import MLM
from ashnets.tasks.mvm import SpikeMVM
from ashnets.tasks.stua import STUA


@dataclass(frozen=True)
class PretrainingOutput:
    """What one micro-batch gave.

    `losses` are unweighted and detached, a name a task. `updates` are detached tensors, of the same shapes for
    every micro-batch: gathered in position order over the step's real atoms they go into `after_step`.
    """

    loss: Float[Tensor, ""]
    losses: dict[str, Tensor]
    firing_rates: dict[str, Tensor]
    updates: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """The samples of a micro-batch that pass through the fusion, one caption each."""

    rows: Int64[Tensor, "F"]
    captions: Int64[Tensor, "F"]

    def texts(self, values: Tensor) -> Tensor:
        """[B K ...] -> [F ...]: the chosen caption of each chosen sample."""
        return values[self.rows, self.captions]


def choose_share(batch: MicroBatch, share: float, generator: torch.Generator) -> Share:
    """Whole groups at random, at least one, and one caption of each of their images."""
    groups = len(batch.pixels) // batch.group_size
    chosen = torch.randperm(groups, generator=generator)[:max(1, round(share * groups))].sort().values
    rows = (chosen[:, None] * batch.group_size + torch.arange(batch.group_size)).flatten()
    captions = torch.randint(batch.input_ids.shape[1], (len(rows),), generator=generator)
    return Share(rows.to(batch.pixels.device), captions.to(batch.pixels.device))


class PretrainingModel(nn.Module):
    """`model` under the tasks that have a weight; a task without one has no module and costs nothing."""

    def __init__(self, model: ASHNet, tasks: TasksConfig) -> None:
        super().__init__()
        config = model.config
        spiking = not config.summary_ratio.off
        self.model, self.tasks = model, tasks
        self.itc = ITC(config.width, config.text.width, config.embedding, tasks.itc) if tasks.itc.weight else None
        self.stua = STUA(config.width, config.text.width, tasks.stua) if tasks.stua.weight and spiking else None
        self.itm = ITM(config.width) if tasks.itm.weight else None
        self.mlm = MLM(model.fusion.embeddings.word_embeddings) if tasks.mlm.weight else None
        self.mvm: SpikeMVM | DictionaryMVM | None = None
        if tasks.mvm.weight:
            kind = SpikeMVM if spiking and tasks.mvm.target == "spikes" else DictionaryMVM
            self.mvm = kind(config.width, tasks.mvm)
        if not any((self.itc, self.stua, self.itm, self.mlm, self.mvm)):
            raise ValueError("tasks: no task is left to train on; give at least one a weight above 0")

    def forward(self, batch: MicroBatch, progress: float, generator: torch.Generator) -> PretrainingOutput:
        """Losses of one micro-batch; `progress` is the share of training that has passed, 0 to 1.

        All randomness of the tasks comes from `generator` (on the CPU). Samples of weight 0 count nowhere.
        """
        restart = self._restart(batch, generator)
        visual = self.model.encode_image(batch.pixels, batch.group_size, restart)
        losses: dict[str, Tensor] = {}
        updates: dict[str, Tensor] = {}
        similarity = None
        if self.itc or self.stua:
            text = self.model.encode_text(batch.input_ids.flatten(0, 1), batch.attention_mask.flatten(0, 1))
        if self.itc:
            image, caption = self.itc.embed_image(visual.tokens), self.itc.embed_text(text.pooled)
            losses["itc"] = self.itc(images_of(batch, image), texts_of(batch, caption))
            caption = caption.unflatten(0, batch.caption_class.shape).detach()
            similarity = torch.einsum("be,cke->bck", image.detach(), caption) / self.itc.temperature.detach()
            updates |= self._memory_entries(batch, image, caption)
        if self.stua:
            losses["stua"] = self.stua(visual.abstract, text.pooled, batch)
        if self.itm or self.mlm or self.mvm:
            losses |= self._fused_losses(batch, visual, similarity, progress, generator)
        if isinstance(self.mvm, DictionaryMVM):
            updates["dictionary"] = self.mvm.statistics(visual.tokens, self.mvm.targets(visual), batch.weight)
        loss = torch.stack([getattr(self.tasks, name).weight * value for name, value in losses.items()]).sum()
        return PretrainingOutput(loss, {name: value.detach() for name, value in losses.items()},
                                 self.model.firing_rates(), updates)

    def _restart(self, batch: MicroBatch, generator: torch.Generator) -> Bool[Tensor, "B"] | None:
        """Which samples start from rest although their group carries; None where nothing is carried."""
        abstract = self.model.config.abstract
        if self.model.config.summary_ratio.off or abstract.carry == "reset":
            return None
        drawn = torch.rand(len(batch.pixels), generator=generator) < abstract.restart_rate
        return drawn.to(batch.pixels.device)

    def _fused_losses(self, batch: MicroBatch, visual: VisualFeatures, similarity: Float[Tensor, "B B K"] | None,
                      progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """ITM, MLM and MVM from one fusion pass over true pairs and, behind them, equally masked wrong pairs."""
        share = choose_share(batch, self.tasks.fusion_share, generator)
        rows, losses = share.rows, {}
        ids = share.texts(batch.mlm_input_ids if self.mlm else batch.input_ids)
        attention, weight = share.texts(batch.attention_mask), batch.weight[rows]
        tokens, mask = visual.tokens[rows], None
        if self.mvm:
            targets = self.mvm.targets(visual)[rows]
            mask = self.mvm.mask(targets, visual.grid, generator)
        visual_mask = mask
        if self.itm:
            wrong, found = self._wrong_texts(batch, share, similarity, progress, generator)
            ids, attention = torch.cat([ids, ids[wrong]]), torch.cat([attention, attention[wrong]])
            tokens, visual_mask = torch.cat([tokens, tokens]), None if mask is None else torch.cat([mask, mask])
        fused = self.model.fuse(ids, attention, tokens, visual_mask)
        pairs = len(rows)
        if self.itm:
            losses["itm"] = self.itm(self.match(fused, attention), torch.cat([weight, weight * found]))
        if self.mlm:
            losses["mlm"] = self.mlm(fused.text[:pairs], share.texts(batch.mlm_labels), weight)
        if self.mvm:
            losses["mvm"] = self.mvm(fused.visual[:pairs], targets, mask, weight)
        return losses

    def _wrong_texts(self, batch: MicroBatch, share: Share, similarity: Float[Tensor, "B B K"] | None,
                     progress: float, generator: torch.Generator) -> tuple[Int64[Tensor, "F"], Bool[Tensor, "F"]]:
        """For each fused image the fused image whose text is its wrong one, and whether there is one."""
        rows = share.rows
        allowed = allowed_negatives(batch.image_class[rows], batch.caption_class[rows],
                                    share.texts(batch.caption_class), batch.weight[rows])
        alike = allowed.float() if similarity is None else similarity[rows[:, None], rows, share.captions]
        itm = self.tasks.itm
        ramp = min(1.0, progress / itm.hard_ramp) if itm.hard_ramp > 0 else 1.0
        hard = ramp if itm.negatives == "hard" else 0.0
        return choose_negatives(alike, allowed, rows // batch.group_size, hard, generator)

    def _memory_entries(self, batch: MicroBatch, image: Float[Tensor, "B E"],
                        captions: Float[Tensor, "B K E"]) -> dict[str, Tensor]:
        if not self.tasks.itc.memory:
            return {}
        return {"image_embeddings": image.detach(), "text_embeddings": captions[:, 0],
                "image_class": batch.image_class, "caption_class": batch.caption_class[:, 0], "weight": batch.weight}

    def after_step(self, updates: Sequence[dict[str, Tensor]]) -> None:
        """Bring the memory and the dictionary up to date with the `updates` of the step's real micro-batches.

        Call it after the optimizer step, on every rank with the same ones in position order.
        """
        if self.itc and self.itc.memory:
            names = ("image_embeddings", "text_embeddings", "image_class", "caption_class", "weight")
            self.itc.append(**{name: torch.cat([update[name] for update in updates]) for name in names})
        if isinstance(self.mvm, DictionaryMVM):
            self.mvm.update(torch.stack([update["dictionary"] for update in updates]).sum(0))

    def embed_image(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B E"]:
        """Unit-norm ITC embeddings of images from V; they also drive the grouping."""
        assert self.itc is not None, "tasks.itc.weight is 0"
        return self.itc.embed_image(tokens)

    def embed_text(self, pooled: Float[Tensor, "M Dt"]) -> Float[Tensor, "M E"]:
        """Unit-norm ITC embeddings of texts."""
        assert self.itc is not None, "tasks.itc.weight is 0"
        return self.itc.embed_text(pooled)

    def embed_abstract(self, abstract: Float[Tensor, "B N D"]) -> Float[Tensor, "B Dt"]:
        """Unit-norm spiking features in the text feature space (compare with normalised text features)."""
        assert self.stua is not None, "tasks.stua.weight is 0, or the abstract encoder is off"
        return self.stua.embed_abstract(abstract)

    def match(self, fused: FusedFeatures, attention_mask: Int64[Tensor, "M L"]) -> Float[Tensor, "M"]:
        """ITM logits of fused pairs."""
        assert self.itm is not None, "tasks.itm.weight is 0"
        return self.itm.match(fused.cls, fused.text, fused.visual, attention_mask)
