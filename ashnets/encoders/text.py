"""BERT text encoder: token states and one pooled feature a text."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.utils import logging

from ashnets.config import TextConfig
from ashnets.resources import is_hub_name, quiet_hub, resolve


@dataclass(frozen=True)
class TextFeatures:
    """Token states [M L Dt] and the pooled feature [M Dt] of M texts."""

    tokens: Float[Tensor, "M L Dt"]
    pooled: Float[Tensor, "M Dt"]


class TextEncoder(nn.Module):
    """The first `layers` layers of a BERT; 0 layers give the embeddings alone."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.frozen = config.frozen
        self.bert = build_bert(config)
        if self.frozen:
            self.bert.requires_grad_(False)
            self.bert.eval()

    def train(self, mode: bool = True) -> TextEncoder:
        """Train mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.bert.eval()
        return self

    def forward(self, input_ids: Int64[Tensor, "M L"], attention_mask: Int64[Tensor, "M L"]) -> TextFeatures:
        """States and pooled features; `attention_mask` is 1 on real tokens."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            return TextFeatures(tokens, tokens[:, 0])
        real = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return TextFeatures(tokens, (tokens * real).sum(1) / real.sum(1).clamp(min=1))


def build_bert(config: TextConfig) -> BertModel:
    """BERT without a pooler, as `config` says: random, or the first layers of the checkpoint `config.init`.

    Raises FileNotFoundError where the checkpoint cannot be reached and ValueError where its shape is another one.
    """
    if config.init == "none":
        shape = bert_shape(config.vocab_size, config.width, config.layers, config.heads, dropout=0.1)
        return BertModel(shape, add_pooling_layer=False)
    shape = checkpoint_config(config)
    if shape.num_hidden_layers < config.layers:
        raise ValueError(f"model.text.layers={config.layers}: {config.init} has only {shape.num_hidden_layers}")
    return load_bert(config.init, shape, config.layers)


def bert_shape(vocab_size: int, width: int, layers: int, heads: int, dropout: float) -> BertConfig:
    """A BERT configuration with fused attention; inner width 4 * `width`, 512 positions, two token types."""
    shape = BertConfig(vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                       intermediate_size=4 * width, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    shape._attn_implementation = "sdpa"
    return shape


def checkpoint_config(config: TextConfig) -> BertConfig:
    """The configuration of the checkpoint `config.init`; ValueError where `config` says another shape."""
    shape: BertConfig = _from_checkpoint(BertConfig, config.init)
    for field, found in (("width", shape.hidden_size), ("heads", shape.num_attention_heads),
                         ("vocab_size", shape.vocab_size)):
        wanted = getattr(config, field)
        if wanted != found:
            raise ValueError(f"model.text.{field}={wanted}, but {config.init} has {found}: set model.text.{field} so")
    return shape


def load_bert(init: str, shape: BertConfig, layers: int) -> BertModel:
    """The first `layers` layers of checkpoint `init`, whose configuration is `shape`."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # layers that are left out are no news
    logging.disable_progress_bar()
    try:
        bert: BertModel = _from_checkpoint(BertModel, init, add_pooling_layer=False, attn_implementation="sdpa",
                                           config=BertConfig.from_dict(shape.to_dict() | {"num_hidden_layers": layers}))
        return bert
    finally:
        logging.set_verbosity(verbosity)


def _from_checkpoint(kind: type[Any], init: str, **settings: object) -> Any:
    source = init if is_hub_name(init) else str(resolve(init))
    try:
        with quiet_hub():
            return kind.from_pretrained(source, **settings)
    except OSError as error:
        raise FileNotFoundError(
            f"model.text.init={init}: no BERT checkpoint could be read there. Without access to the Hugging Face hub, "
            f"download it elsewhere and give its folder. ({str(error).splitlines()[0]})") from error
