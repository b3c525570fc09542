"""The sum of the tasks: gradient boundaries, samples that must not count, masks, seeds, off switches."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ashnets.config import ITCConfig, ITMConfig, MLMConfig, MVMConfig, STUAConfig, TasksConfig
from ashnets.tasks.pretraining import PretrainingModel, choose_share

ALL = ("itm", "mlm", "mvm", "itc", "stua")
OFF = {"itc": ITCConfig(weight=0), "itm": ITMConfig(weight=0), "mlm": MLMConfig(weight=0), "mvm": MVMConfig(weight=0),
       "stua": STUAConfig(weight=0)}


def only(*names, **changed):
    """Settings under which just these tasks run."""
    return TasksConfig(**({k: v for k, v in OFF.items() if k not in names} | changed))


def run(model, batch, tasks=None, progress=0.5, seed=7):
    torch.manual_seed(0)
    pretraining = PretrainingModel(model, tasks or TasksConfig())
    return pretraining, pretraining(batch, progress, torch.Generator().manual_seed(seed))


def gradients(module):
    return {name: p.grad.abs().sum().item() if p.grad is not None else 0.0 for name, p in module.named_parameters()}


def test_all_five_tasks_run_and_every_parameter_gets_a_gradient(make_model, make_batch):
    pretraining, output = run(make_model(), make_batch(captions=2))
    output.loss.backward()
    assert set(output.losses) == set(ALL)
    assert all(g > 0 for g in gradients(pretraining).values()), gradients(pretraining)
    assert not any(value.requires_grad for value in output.losses.values())


def test_the_loss_is_the_weighted_sum(make_model, make_batch):
    tasks = TasksConfig(mvm=MVMConfig(weight=4.0), itc=ITCConfig(weight=0.5))
    _, output = run(make_model(), make_batch(), tasks)
    expected = sum(getattr(tasks, name).weight * value for name, value in output.losses.items())
    torch.testing.assert_close(output.loss.detach(), expected)


@pytest.mark.parametrize("name", ALL)
def test_a_task_without_weight_has_no_module_and_changes_no_other_loss(make_model, make_batch, name):
    alone, output = run(make_model(), make_batch(), only(name))
    assert set(output.losses) == {name}
    others = [n for n in ALL if n != name]
    assert all(getattr(alone, other) is None for other in others)
    output.loss.backward()
    with pytest.raises(ValueError, match="at least one"):
        PretrainingModel(make_model(), only())


def test_without_the_spiking_encoder_stua_is_off_and_mvm_takes_the_dictionary(make_model, make_batch):
    tasks = TasksConfig(mvm=MVMConfig(dictionary_size=32))
    pretraining, output = run(make_model(ratio=0.0), make_batch(), tasks)
    output.loss.backward()
    assert set(output.losses) == {"itc", "itm", "mlm", "mvm"}
    assert type(pretraining.mvm).__name__ == "DictionaryMVM"
    assert pretraining.model.restarts == [None]


def test_stua_sends_no_gradient_to_the_text_side(make_model, make_batch):
    pretraining, output = run(make_model(), make_batch(), only("stua"))
    output.loss.backward()
    grads = gradients(pretraining)
    assert grads["model.text.weight"] == 0
    assert grads["model.spiking.weight"] > 0 and grads["stua.project.weight"] > 0


def test_mvm_sends_no_gradient_into_its_target(make_model, make_batch):
    """The rate is a target only: what V leaves out of it (here: everything) gets no gradient."""
    model = make_model()
    encode = model.encode_image

    def tokens_without_rate(*args, **kwargs):
        visual = encode(*args, **kwargs)
        visual.tokens = visual.concrete
        return visual

    model.encode_image = tokens_without_rate
    pretraining, output = run(model, make_batch(), only("mvm"))
    output.loss.backward()
    assert gradients(pretraining)["model.spiking.weight"] == 0
    assert gradients(pretraining)["model.concrete.weight"] > 0


def test_mlm_and_mvm_see_matched_pairs_only(make_model, make_batch):
    batch = make_batch()
    with_wrong, a = run(make_model(), batch, only("itm", "mlm", "mvm"))
    without, _ = run(make_model(), batch, only("mlm", "mvm"))
    pairs = len(batch.pixels)
    assert len(with_wrong.model.fused[0]["input_ids"]) == 2 * pairs
    assert len(without.model.fused[0]["input_ids"]) == pairs
    # Heads draw their weights in another order: compare with the same heads.
    without.mlm, without.mvm = with_wrong.mlm, with_wrong.mvm
    b = without(batch, 0.5, torch.Generator().manual_seed(7))
    for name in ("mlm", "mvm"):
        torch.testing.assert_close(a.losses[name], b.losses[name])


def test_wrong_pairs_are_masked_exactly_like_true_ones(make_model, make_batch):
    batch = make_batch(captions=2)
    pretraining, _ = run(make_model(), batch)
    seen = pretraining.model.fused[0]
    pairs = len(batch.pixels)
    true, wrong = seen["input_ids"][:pairs], seen["input_ids"][pairs:]
    masked_texts = {tuple(t.tolist()) for t in batch.mlm_input_ids.flatten(0, 1)}
    assert all(tuple(t.tolist()) in masked_texts for t in seen["input_ids"])
    assert not (true == wrong).all(1).any()
    assert (true == 3).any(1).all() and (wrong == 3).any(1).all()
    assert torch.equal(seen["visual_mask"][:pairs], seen["visual_mask"][pairs:])
    assert torch.equal(seen["visual"][:pairs], seen["visual"][pairs:])
    assert seen["visual_mask"].any(1).all()
    rows = {tuple(t.tolist()): tuple(a.tolist()) for t, a in zip(
        batch.mlm_input_ids.flatten(0, 1), batch.attention_mask.flatten(0, 1), strict=True)}
    assert all(rows[tuple(t.tolist())] == tuple(a.tolist())
               for t, a in zip(seen["input_ids"], seen["attention_mask"], strict=True))


@pytest.mark.parametrize("ratio", [1.0, 0.0])
def test_a_sample_of_weight_zero_influences_nothing(make_model, make_batch, ratio):
    weight = torch.ones(8)
    weight[[1, 4, 5]] = 0
    batch = make_batch(weight=weight, captions=2)
    pixels, ids, masked = batch.pixels.clone(), batch.input_ids.clone(), batch.mlm_input_ids.clone()
    for tensor in (pixels, ids, masked):
        tensor[weight == 0] = 7
    changed = replace(batch, pixels=pixels, input_ids=ids, mlm_input_ids=masked)
    tasks = TasksConfig(mvm=MVMConfig(dictionary_size=32), itc=ITCConfig(memory=5))
    for seed in range(5):
        first, a = run(make_model(ratio), batch, tasks, seed=seed)
        second, b = run(make_model(ratio), changed, tasks, seed=seed)
        for name in a.losses:
            torch.testing.assert_close(a.losses[name], b.losses[name], msg=name)
        a.loss.backward()
        b.loss.backward()
        for (name, p), (_, q) in zip(first.named_parameters(), second.named_parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, msg=name)
        first.after_step([a.updates])
        second.after_step([b.updates])
        for (name, p), (_, q) in zip(first.named_buffers(), second.named_buffers(), strict=True):
            assert torch.equal(p, q), name


@pytest.mark.parametrize("ratio", [1.0, 0.0])
def test_a_padding_micro_batch_has_a_zero_loss_and_zero_gradients(make_model, make_batch, ratio):
    batch = make_batch(weight=torch.zeros(8))
    tasks = TasksConfig(mvm=MVMConfig(dictionary_size=32), itc=ITCConfig(memory=5))
    pretraining, output = run(make_model(ratio), batch, tasks)
    before = [b.clone() for b in pretraining.buffers()]
    output.loss.backward()
    assert output.loss.item() == 0 and all(v.item() == 0 for v in output.losses.values())
    unused = ("model.spiking",) if ratio == 0 else ()
    for name, p in pretraining.named_parameters():
        assert name.startswith(unused) or (p.grad is not None and p.grad.abs().sum() == 0), name
    pretraining.after_step([output.updates])
    assert all(torch.equal(a, b) for a, b in zip(before, pretraining.buffers(), strict=True))


def test_no_masked_word_gives_a_zero_loss_with_a_graph(make_model, make_batch):
    batch = make_batch()
    pretraining, output = run(make_model(), replace(batch, mlm_labels=torch.full_like(batch.mlm_labels, -100)),
                              only("mlm"))
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in pretraining.parameters())
    assert pretraining.mlm.transform[0].weight.grad is not None


def test_everybody_the_same_picture_leaves_no_negative_and_no_nan(make_model, make_batch):
    batch = make_batch(image_class=torch.ones(8, dtype=torch.int64))
    pretraining, output = run(make_model(), batch)
    output.loss.backward()
    assert output.losses["itc"].item() == 0
    pairs = {name: value[:8] for name, value in pretraining.model.fused[0].items()}
    logits = pretraining.match(pretraining.model.fuse(**pairs), pairs["attention_mask"])
    torch.testing.assert_close(output.losses["itm"], torch.nn.functional.softplus(-logits.detach()).mean())
    assert torch.isfinite(output.loss) and all(torch.isfinite(p.grad).all() for p in pretraining.parameters())


def test_the_generator_decides_all_randomness(make_model, make_batch):
    tasks = TasksConfig(fusion_share=0.5)
    outputs = [run(make_model(), make_batch(captions=3), tasks, seed=seed)[1] for seed in (3, 3, 4)]
    assert outputs[0].loss.item() == outputs[1].loss.item() != outputs[2].loss.item()


def test_restarts_follow_their_rate_and_never_happen_under_reset(make_model, make_batch):
    carried, _ = run(make_model(), make_batch(groups=200), only("itc"))
    assert 0.4 < carried.model.restarts[0].float().mean() < 0.6
    reset, _ = run(make_model(carry="reset"), make_batch(), only("itc"))
    assert reset.model.restarts == [None]


@pytest.mark.parametrize(("share", "groups"), [(0.01, 1), (0.5, 3), (1.0, 6)])
def test_the_fused_share_is_whole_groups(make_batch, share, groups):
    chosen = choose_share(make_batch(groups=6, captions=3), share, torch.Generator().manual_seed(0))
    assert len(chosen.rows.unique()) == len(chosen.rows) == 2 * groups
    assert torch.equal(chosen.rows[::2] + 1, chosen.rows[1::2]) and (chosen.rows[::2] % 2 == 0).all()
    assert chosen.captions.min() >= 0 and chosen.captions.max() <= 2


def test_all_shares_and_captions_are_drawn(make_batch):
    batch, g = make_batch(groups=3, captions=2), torch.Generator().manual_seed(0)
    drawn = {(int(s.rows[0]), int(s.captions[0])) for s in (choose_share(batch, 0.3, g) for _ in range(60))}
    assert drawn == {(row, caption) for row in (0, 2, 4) for caption in (0, 1)}


def test_no_parameter_and_no_buffer_is_zero_dimensional(make_model):
    for ratio in (1.0, 0.0):
        pretraining = PretrainingModel(make_model(ratio), TasksConfig(itc=ITCConfig(memory=3)))
        assert all(t.ndim > 0 for t in [*pretraining.parameters(), *pretraining.buffers()])


def test_bf16_autocast_gives_finite_fp32_losses_near_fp32(make_model, make_batch):
    _, exact = run(make_model(), make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        pretraining, output = run(make_model(), make_batch())
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    for name in ALL:
        torch.testing.assert_close(output.losses[name], exact.losses[name], rtol=0.05, atol=0.05)
    assert all(torch.isfinite(p.grad).all() for p in pretraining.parameters())
