"""Rounding weights to a few bits."""

import pytest
import torch

from distill_eval.checkpoints.rounding import round_folder, round_to_nearest


def weights(rows=8, columns=64, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_per_group(bits):
    rounded = round_to_nearest(weights(), bits=bits, group=32)
    for group in rounded.reshape(-1, 32):
        levels = group.unique()
        assert 2 < len(levels) <= 2**bits
        # Evenly spaced: every distance is a whole number of the smallest step.
        steps = (levels - levels[0]) / levels.diff().min()
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


def test_no_worse_than_the_plain_range_and_better_with_more_bits():
    matrix = weights()
    groups = matrix.reshape(-1, 32)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    step = (high - low) / 7
    plain = (low + ((groups - low) / step).round() * step).reshape(matrix.shape)
    errors = [
        (round_to_nearest(matrix, bits=bits, group=32) - matrix).square().mean() for bits in (2, 3, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.95 * (plain - matrix).square().mean()
    assert errors[3] < 1e-3


def test_what_needs_no_rounding_stays():
    flat = torch.cat([torch.zeros(1, 32), torch.full((1, 32), 0.5), torch.full((1, 32), -2.0)])
    torch.testing.assert_close(round_to_nearest(flat, bits=3, group=32)[0], flat[0], rtol=0, atol=0)
    assert torch.isfinite(round_to_nearest(flat, bits=3, group=32)).all()
    even = torch.arange(8.0).repeat(4).reshape(1, 32) - 3.5
    torch.testing.assert_close(round_to_nearest(even, bits=3, group=32), even)
    assert round_to_nearest(weights().bfloat16(), bits=3, group=32).dtype == torch.bfloat16


def test_groups_must_divide():
    with pytest.raises(ValueError, match="48 inputs do not divide into groups of 32"):
        round_to_nearest(weights(columns=48), bits=3, group=32)


def test_only_the_named_tensors(tiny_model_folder, tmp_path):
    from safetensors.torch import load_file

    source = tiny_model_folder()
    rounded = round_folder(source, tmp_path, bits=3, group=32, rounds=lambda name: ".mlp." in name)
    assert len(rounded) == 6
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(rounded)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
