"""Ops give what they give, on the device of their inputs, whatever torch.set_default_device says."""

from __future__ import annotations

import pytest
import torch

from rows import DEVICE, random
from undivided import RelativeBias, ops

X, W, B, MANY = random(4, 64), random(64, 64, seed=1), random(64, seed=2), random(40, 64, seed=3)
Q, BIAS, SINKS, TABLE = random(2, 5, 4, 16), random(2, 4, 5, 5, seed=1), random(4, seed=2), random(8, 4, seed=3)
LENGTHS, ENDS = (torch.tensor(values, dtype=torch.int32, device=DEVICE) for values in ([5, 3], [0, 2, 5]))
ANGLES = random(5, 8).sin()
# Each with the inputs that get a gradient; the numbers of the relative bias are no other test's, so nothing is kept.
CALLS = {
    "attention": (lambda q: ops.attention(q, q, Q, key_lengths=LENGTHS), [Q]),
    "softcap": (lambda q: ops.attention(q, Q, Q, softcap=3.0), [Q]),
    "relative bias": (lambda q, table: ops.attention(q, Q, Q, bias=RelativeBias(table, 37)), [Q, TABLE]),
    "dense bias and sinks": (lambda q, b, s: ops.attention(q, Q, Q, bias=b, sinks=s), [Q, BIAS, SINKS]),
    "dropout": (lambda q: ops.attention(q, Q, Q, dropout_p=0.5, seed=3), [Q]),
    "packed": (lambda q: ops.attention_packed(q, Q[0], Q[0], cu_seqlens_q=ENDS, cu_seqlens_k=ENDS), [Q[0]]),
    "decode": (lambda: ops.attention_decode(Q[:, :1], Q, Q, LENGTHS), []),
    "decode softcap": (lambda: ops.attention_decode(Q[:, :1], Q, Q, LENGTHS, softcap=2.0), []),
    "decode bias": (lambda: ops.attention_decode(Q[:, :1], Q, Q, LENGTHS, bias=RelativeBias(TABLE, 38)), []),
    "layer norm": (lambda x, w: ops.layer_norm(x, w, B, residual=X)[0], [X, B]),
    "RMS norm": (lambda x, w: ops.rms_norm(x, w), [X, B]),
    "linear": (lambda x, w: ops.linear(x, w, B), [X, W]),
    "feed-forward": (lambda x, w: ops.feed_forward(x, w, B, W, B), [MANY, W]),
    "rotary": (lambda x: ops.rotary(x, ANGLES, ANGLES), [Q]),
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_another_default_device(name, gradients):
    function, inputs = CALLS[name]

    def results() -> list[torch.Tensor]:
        leaves = [value.detach().clone().requires_grad_(gradients) for value in inputs]
        with torch.set_grad_enabled(gradients):
            out = function(*leaves)
        return [out, *(torch.autograd.grad(out, leaves, out.detach()) if gradients and leaves else ())]

    with torch.device("meta"):
        found = results()
    for one, other in zip(found, results(), strict=True):
        torch.testing.assert_close(one, other)
