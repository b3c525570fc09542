"""Weights come back bit for bit; another architecture is refused by name."""
import pytest
import torch
from torch import nn

from ashnets.weights_file import load_weights, save_weights


class Tied(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(7, width)
        self.norm = nn.BatchNorm1d(width)
        self.decoder = nn.Linear(width, 7)
        self.decoder.weight = self.words.weight


def test_round_trip_with_tied_weights_stored_once(tmp_path):
    model, other = Tied(), Tied()
    model.norm.running_mean.fill_(3.0)
    save_weights(model, tmp_path / "m.safetensors")
    load_weights(other, tmp_path / "m.safetensors")
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert other.decoder.weight is other.words.weight
    assert (tmp_path / "m.safetensors").stat().st_size < 4 * (7 * 4 + 7 + 4 * 4) + 1000


def test_views_into_one_flat_storage_are_written(tmp_path):
    """DeepSpeed's ZeRO keeps parameters as views of one flat tensor."""
    model = Tied()
    flat = torch.arange(7 * 4 + 7, dtype=torch.float32)
    model.words.weight.data, model.decoder.bias.data = flat[:28].view(7, 4), flat[28:]
    save_weights(model, tmp_path / "m.safetensors")
    other = Tied()
    load_weights(other, tmp_path / "m.safetensors")
    assert torch.equal(other.decoder.bias, flat[28:])


def test_another_architecture_is_refused(tmp_path):
    save_weights(Tied(5), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="of another shape: .*words.weight"):
        load_weights(Tied(4), tmp_path / "m.safetensors")
    save_weights(nn.Sequential(nn.Linear(2, 2)), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="missing: .*not in this model: 0.bias"):
        load_weights(Tied(4), tmp_path / "m.safetensors")
