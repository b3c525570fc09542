"""Running statistics move once a step, whatever the split into micro-batches."""
import torch
from torch import nn

from ashnets.running_statistics import StepStatistics, recalibrate


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def batches(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 9, 9, generator=generator) * (i + 1) for i in range(n)]


def test_one_micro_batch_moves_as_torch_does():
    ours, torchs = network(), network()
    statistics = StepStatistics(ours, momentum=0.1)
    for batch in batches(3):
        statistics.begin_step()
        ours(batch)
        statistics.add_micro_batch(real=True)
        statistics.end_step()
        torchs(batch)
    for name, buffer in ours.named_buffers():
        if "num_batches" not in name:
            torch.testing.assert_close(buffer, torchs.get_buffer(name))


def test_a_step_of_several_moves_once_towards_their_mean_and_ignores_padding():
    model = network()
    first = model[1]
    inputs = [model[0](b).detach() for b in batches(3)]
    statistics = StepStatistics(model, momentum=0.25)
    statistics.begin_step()
    for batch, real in zip(batches(3), (True, True, False), strict=True):
        model(batch)
        statistics.add_micro_batch(real)
    statistics.end_step()
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs[:2]]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in inputs[:2]]).mean(0)
    torch.testing.assert_close(first.running_mean, 0.25 * means)
    torch.testing.assert_close(first.running_var, 0.75 + 0.25 * variances)


def test_two_ranks_equal_one_process():
    whole, data = network(), batches(4)
    statistics = StepStatistics(whole)
    statistics.begin_step()
    for batch in data:
        whole(batch)
        statistics.add_micro_batch(real=True)
    statistics.end_step()

    ranks, sent = [network(), network()], []
    for rank, model in enumerate(ranks):
        local = StepStatistics(model, reduce=lambda total: sent.append(total.clone()) or total)
        local.begin_step()
        for batch in data[rank::2]:
            model(batch)
            local.add_micro_batch(real=True)
        local.end_step()
    summed = sent[0] + sent[1]
    other = StepStatistics(ranks[0], reduce=lambda total: summed)
    ranks[0].load_state_dict(network().state_dict())
    other.begin_step()
    other.end_step()
    for name, buffer in whole.named_buffers():
        if "num_batches" not in name:
            torch.testing.assert_close(ranks[0].get_buffer(name), buffer)


def test_frozen_layers_keep_their_statistics():
    model = network()
    model[1].eval()
    before = model[1].running_mean.clone()
    recalibrate(model, [lambda batch=batch: model(batch) for batch in batches(2)])
    assert torch.equal(model[1].running_mean, before)
    assert not torch.equal(model[4].running_mean, torch.zeros(4))


def test_recalibration_is_the_plain_mean():
    model, data = network(), batches(2)
    recalibrate(model, [lambda batch=batch: model(batch) for batch in data])
    inputs = [model[0](b) for b in data]
    torch.testing.assert_close(model[1].running_mean, torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0))


def test_recalibration_leaves_padding_out():
    model, expected, data = network(), network(), batches(3)
    recalibrate(expected, [lambda batch=batch: expected(batch) for batch in data[:2]])
    recalibrate(model, [lambda batch=batch: model(batch) for batch in data], [True, True, False])
    for name, buffer in expected.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name


def test_batches_tracked_are_steps():
    model = network()
    model[4].eval()
    statistics = StepStatistics(model)
    for _ in range(2):
        statistics.begin_step()
        for batch in batches(3):
            model(batch)
            statistics.add_micro_batch(real=True)
        statistics.end_step()
    assert model[1].num_batches_tracked.item() == 2 and model[4].num_batches_tracked.item() == 0
