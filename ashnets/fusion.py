"""Fusion Transformer: BERT layers over the words of a text followed by the visual tokens of an image."""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from ashnets.config import ModelConfig, TextConfig
from ashnets.encoders.concrete import sine_positions
from ashnets.encoders.text import bert_shape, checkpoint_config, load_bert

TEXT, VISUAL = 0, 1  # BERT's token types


@dataclass(frozen=True)
class FusedFeatures:
    """States behind the last layer: of [CLS] [M D], of the text [M L D], of the visual tokens [M N D]."""

    cls: Float[Tensor, "M D"]
    text: Float[Tensor, "M L D"]
    visual: Float[Tensor, "M N D"]


class Fusion(nn.Module):
    """`[CLS] text [SEP]` and visual tokens attend to each other in every layer (one stream, as in SOHO).

    A masked visual token becomes a learned mask token. Visual tokens get BERT's second token type and their 2-D
    sine positions, without which a masked token would not know its place.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        fusion, text = config.fusion, config.text
        shape = bert_shape(text.vocab_size, config.width, fusion.layers, fusion.heads, fusion.dropout)
        self.checkpointing = config.activation_checkpointing
        self.embeddings = BertEmbeddings(shape)
        self.visual_norm = nn.LayerNorm(config.width, eps=shape.layer_norm_eps)
        self.visual_dropout = nn.Dropout(fusion.dropout)
        self.mask_token = nn.Parameter(torch.empty(config.width))
        self.layers = nn.ModuleList(BertLayer(shape, layer_idx=i) for i in range(fusion.layers))
        self._initialise(shape.initializer_range)
        if fusion.from_text and text.init != "none":
            self._start_from(text, config.width)
        self.embeddings.word_embeddings.weight.requires_grad_(not fusion.freeze_words)

    def forward(self, input_ids: Int64[Tensor, "M L"], attention_mask: Int64[Tensor, "M L"],
                visual: Float[Tensor, "M N D"], visual_mask: Bool[Tensor, "M N"] | None = None) -> FusedFeatures:
        """Fused states; `attention_mask` is 1 on real words, `visual_mask` is True where a token is hidden.

        The N visual tokens are a square map in row-major order.
        """
        words = self.embeddings(input_ids=input_ids)
        states = torch.cat([words, self._embed_visual(visual, visual_mask)], dim=1)
        real = torch.cat([attention_mask.bool(), attention_mask.new_ones(visual.shape[:2], dtype=torch.bool)], dim=1)
        mask = real[:, None, None, :]
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                states = checkpoint(layer, states, mask, use_reentrant=False)
            else:
                states = layer(states, mask)
        length = input_ids.shape[1]
        return FusedFeatures(cls=states[:, 0], text=states[:, :length], visual=states[:, length:])

    def _embed_visual(self, visual: Float[Tensor, "M N D"],
                      visual_mask: Bool[Tensor, "M N"] | None) -> Float[Tensor, "M N D"]:
        if visual_mask is not None:
            visual = torch.where(visual_mask.unsqueeze(-1), self.mask_token.to(visual.dtype), visual)
        side = math.isqrt(visual.shape[1])
        assert side * side == visual.shape[1], "visual tokens are a square map"
        positions = sine_positions(side, side, visual.shape[2], visual.device)
        kind = torch.full(visual.shape[1:2], VISUAL, device=visual.device)
        kinds = self.embeddings.token_type_embeddings(kind)
        return self.visual_dropout(self.visual_norm(visual.float() + positions + kinds))

    def _initialise(self, std: float) -> None:
        """BERT's initialisation (the layers stand outside a transformers model, which would do it)."""
        nn.init.normal_(self.mask_token, std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def _start_from(self, text: TextConfig, width: int) -> None:
        """Copy embeddings and the first layers of `text.init`; layers beyond its last keep their random start."""
        if text.width != width:
            raise ValueError(f"model.fusion.from_text needs model.text.width={text.width} to equal "
                             f"model.width={width}: change one of them, or set model.fusion.from_text=false")
        shape = checkpoint_config(text)
        bert = load_bert(text.init, shape, min(len(self.layers), shape.num_hidden_layers))
        self.embeddings.load_state_dict(bert.embeddings.state_dict())
        for ours, theirs in zip(self.layers, bert.encoder.layer, strict=False):
            ours.load_state_dict(theirs.state_dict())
