"""Dropout of attention, element by element: for one seed every backend drops the same probabilities, both ways."""

from __future__ import annotations

import pytest
import torch

import undivided
from rows import DEVICE, backends, random, run
from undivided import reference
from undivided.ops.attention_table import ATTENTION

BACKENDS = backends(ATTENTION)
# Three blocks of queries or a part of one, as many keys as a head can be wide: the values are the unit vectors.
BATCH, SEQLEN_Q, SEQLEN_K, NHEADS = 2, 70, 133, 4
SEEDS = [0, 7, 2**32 + 5, 2**63 - 1]


def units(batch: int, seqlen: int, nheads: int) -> torch.Tensor:
    """(batch, seqlen, nheads, seqlen): the values whose weighted sum is the weights themselves."""
    return torch.eye(seqlen, device=DEVICE)[None, :, None, :].expand(batch, seqlen, nheads, seqlen).contiguous()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_forward_drops_what_the_reference_drops(backend, seed):
    """Two query heads share each key head, and each has a mask of its own."""
    q, k = random(BATCH, SEQLEN_Q, NHEADS, 16), random(BATCH, SEQLEN_K, 2, 16, seed=1)
    v = units(BATCH, SEQLEN_K, 2)
    weights = run(undivided.attention, q, k, v, dropout_p=0.4, seed=seed, backend=backend).transpose(1, 2)
    kept = reference.dropout_mask(seed, 0.4, BATCH, NHEADS, SEQLEN_Q, SEQLEN_K, DEVICE)
    assert torch.equal(weights != 0, kept)
    torch.testing.assert_close(weights, torch.where(kept, reference.attention_weights(q, k) / 0.6, 0.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backward_drops_what_the_forward_drops(backend):
    """The gradient of the values is the weights, turned, where that of the output is the unit vectors."""
    q, k, v = (
        random(BATCH, SEQLEN_Q, 2, 16),
        random(BATCH, SEQLEN_K, 2, 16, seed=1),
        random(BATCH, SEQLEN_K, 2, SEQLEN_Q),
    )
    v.requires_grad_()
    out = run(undivided.attention, q, k, v, dropout_p=0.4, seed=11, backend=backend)
    weights = torch.autograd.grad(out, v, units(BATCH, SEQLEN_Q, 2))[0].permute(0, 2, 3, 1)
    assert torch.equal(weights != 0, reference.dropout_mask(11, 0.4, BATCH, 2, SEQLEN_Q, SEQLEN_K, DEVICE))


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_count_as_rows_of_a_batch(backend):
    """Sequence b drops what row b of a padded batch drops."""
    starts = torch.tensor([0, 5, 5, 70], dtype=torch.int32, device=DEVICE)
    q, k, v = random(70, 2, 16), random(70, 2, 16, seed=1), units(1, 70, 2)[0]
    words = dict(cu_seqlens_q=starts, cu_seqlens_k=starts, dropout_p=0.4, seed=3)
    weights = run(undivided.attention_packed, q, k, v, backend=backend, **words).transpose(0, 1)
    kept = reference.dropout_mask(3, 0.4, 3, 2, 65, 65, DEVICE)
    for b, (first, last) in enumerate([(0, 5), (5, 5), (5, 70)]):
        length = last - first
        assert torch.equal(weights[:, first:last, first:last] != 0, kept[b, :, :length, :length])
