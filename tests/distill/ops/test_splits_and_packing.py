"""A state carried across a split and documents packed in a row change nothing."""

from itertools import accumulate, pairwise

import pytest
import torch

from distill import ops
from distill.ops.documents import group_documents
from tests.distill.ops.inputs import RECURRENCES, assert_same, make_inputs, run_with_gradients

OPS = [*RECURRENCES, "causal_conv"]
MANY = [0, *accumulate([3, 20, 0, 1, 17, 5] * 12 + [70, 66, 33, 600])]
NOT_SEQUENCES = {"A_log", "dt_bias", "weight", "bias", "initial_state"}


def part(inputs, start, end):
    return {name: x if name in NOT_SEQUENCES else x[:, start:end] for name, x in inputs.items()}


def one_by_one(op, inputs, ends):
    """The documents of a packed row run alone, outputs and states put together again."""
    outputs, states = [], []
    for i, (start, end) in enumerate(pairwise(ends)):
        document = part(inputs, start, end)
        if inputs["initial_state"] is not None:
            document["initial_state"] = inputs["initial_state"][i : i + 1]
        out, state = getattr(ops, op)(**document, output_final_state=True)
        outputs.append(out)
        states.append(state)
    return torch.cat(outputs, dim=1), torch.cat(states)


@pytest.mark.parametrize("split", [1, 2, 63, 64, 65, 256, 299])
@pytest.mark.parametrize("op", OPS)
def test_split_with_the_state_carried(op, split):
    inputs = make_inputs(op, 300, K=4, V=3)

    def in_two(**inputs):
        first, state = getattr(ops, op)(**part(inputs, 0, split), output_final_state=True)
        rest = part(inputs, split, 300) | {"initial_state": state}
        second, state = getattr(ops, op)(**rest, output_final_state=True)
        return torch.cat((first, second), dim=1), state

    expected = run_with_gradients(lambda **x: getattr(ops, op)(**x, output_final_state=True), inputs)
    assert_same(run_with_gradients(in_two, inputs), expected)


@pytest.mark.parametrize("op", OPS)
def test_token_by_token(op):
    inputs = make_inputs(op, 12, B=2)
    expected, expected_state = getattr(ops, op)(**inputs, output_final_state=True)
    outputs, state = [], inputs["initial_state"]
    for t in range(12):
        token = part(inputs, t, t + 1) | {"initial_state": state}
        out, state = getattr(ops, op)(**token, output_final_state=True)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("state", [True, False], ids=["state", "fresh"])
@pytest.mark.parametrize(
    "ends", [[0, 5, 6, 70, 103], [0, 0, 40, 40, 41, 41], [0, 0], [0, 300], MANY], ids=len
)
@pytest.mark.parametrize("op", OPS)
def test_packed_equals_separate(op, ends, state):
    inputs = make_inputs(op, ends[-1], K=4, V=3, state=False)
    if state:
        states = make_inputs(op, 1, B=len(ends) - 1, K=4, V=3, seed=7)
        inputs["initial_state"] = states["initial_state"]

    def packed(**inputs):
        return getattr(ops, op)(**inputs, output_final_state=True, cu_seqlens=torch.tensor(ends))

    got, expected = packed(**inputs), one_by_one(op, inputs, ends)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    if ends[-1] and (state or op != "causal_conv"):
        assert_same(
            run_with_gradients(packed, inputs),
            run_with_gradients(lambda **x: one_by_one(op, x, ends), inputs),
        )


def test_documents_run_together_with_little_padding():
    lengths = [end - start for start, end in pairwise(MANY)]
    groups = group_documents(lengths)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert len(groups) < 12
    assert sum(len(group) * lengths[group[0]] for group in groups) < 1.5 * MANY[-1]


@pytest.mark.parametrize("op", OPS)
def test_editing_a_document_leaves_the_others_alone(op):
    inputs, edited = make_inputs(op, 90, state=False), make_inputs(op, 90, state=False)
    with torch.no_grad():
        for name in edited:
            if name not in NOT_SEQUENCES:
                edited[name][:, 30:47] *= -3.0
    ends = torch.tensor([0, 30, 47, 90], dtype=torch.int32)
    out, state = getattr(ops, op)(**inputs, output_final_state=True, cu_seqlens=ends)
    other, other_state = getattr(ops, op)(**edited, output_final_state=True, cu_seqlens=ends)
    assert torch.equal(out[:, :30], other[:, :30])
    assert torch.equal(out[:, 47:], other[:, 47:])
    assert torch.equal(state[::2], other_state[::2])
    assert not torch.equal(out[:, 30:47], other[:, 30:47])


@pytest.mark.parametrize("ends", [[0, 5, 11], [1, 5, 10], [0, 7, 5, 10], [0], [10]])
def test_cu_seqlens_that_do_not_fit(ends):
    with pytest.raises(ValueError, match="must rise from 0 to the row's 10 tokens"):
        ops.kda(**make_inputs("kda", 10, state=False), cu_seqlens=torch.tensor(ends))


def test_packing_needs_one_row_and_a_state_for_each_document():
    with pytest.raises(ValueError, match="packed in one row, got a batch of 2"):
        ops.ssd(**make_inputs("ssd", 10, B=2), cu_seqlens=torch.tensor([0, 10]))
    with pytest.raises(ValueError, match="2 packed documents need as many states, got 1"):
        ops.ssd(**make_inputs("ssd", 10), cu_seqlens=torch.tensor([0, 4, 10]))


@pytest.mark.parametrize("op", OPS)
def test_the_initial_state_is_not_written_to(op):
    inputs = make_inputs(op, 1)
    before = inputs["initial_state"].detach().clone()
    with torch.no_grad():
        getattr(ops, op)(**inputs)
    assert torch.equal(inputs["initial_state"], before)
