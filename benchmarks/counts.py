"""Operations and bytes of each op, stated once (a multiply and an add are two operations)."""

from __future__ import annotations


def attention_operations(
    batch: int, nheads: int, seqlen_q: int, seqlen_k: int, head_dim: int, causal: bool, mode: str
) -> float:
    """4 * batch * nheads * seqlen_q * seqlen_k * head_dim forward, half when causal, backward 2.5 times that."""
    forward = 4.0 * batch * nheads * seqlen_q * seqlen_k * head_dim * (0.5 if causal else 1.0)
    return forward * {"forward": 1.0, "backward": 2.5, "forward_backward": 3.5}[mode]


def attention_bytes(
    batch: int, nheads: int, nheads_kv: int, seqlen_q: int, seqlen_k: int, head_dim: int, size: int, mode: str
) -> float:
    """q, k, v read and out written once; backward reads those and dout and writes dq, dk, dv."""
    q = float(batch * nheads * seqlen_q * head_dim * size)
    k = float(batch * nheads_kv * seqlen_k * head_dim * size)
    forward, backward = 2 * q + 2 * k, 4 * q + 4 * k
    return {"forward": forward, "backward": backward, "forward_backward": forward + backward}[mode]


def norm_bytes(rows: int, columns: int, size: int, residual: bool, mode: str) -> float:
    """Passes over (rows, columns): forward reads x and writes y; backward reads dy and x and writes dx."""
    forward, backward = (4, 4) if residual else (2, 3)
    passes = {"forward": forward, "backward": backward, "forward_backward": forward + backward}[mode]
    return float(passes * rows * columns * size)


def feed_forward_operations(rows: int, d_model: int, d_ff: int, gated: bool, mode: str) -> float:
    """Two matmuls forward (three when gated), twice as many operations backward."""
    forward = (3 if gated else 2) * 2.0 * rows * d_model * d_ff
    return forward * {"forward": 1.0, "backward": 2.0, "forward_backward": 3.0}[mode]


def feed_forward_bytes(rows: int, d_model: int, d_ff: int, gated: bool, size: int, mode: str) -> float:
    """x and the weights read, out written; backward reads those and dout, and writes dx and the weights' gradients."""
    x, weights = rows * d_model, (3 if gated else 2) * d_model * d_ff
    forward, backward = 2 * x + weights, 3 * x + 2 * weights
    return float(size * {"forward": forward, "backward": backward, "forward_backward": forward + backward}[mode])


def encoder_operations(length: int, d_model: int, d_ff: int) -> tuple[float, float]:
    """(matmuls, attention) of one encoder layer over one sequence, forward: four projections and the feed-forward."""
    matmuls = 2.0 * length * (4 * d_model**2 + 2 * d_model * d_ff)
    return matmuls, attention_operations(1, 1, length, length, d_model, False, "forward")


def decoder_operations(length: int, memory: int, d_model: int, d_ff: int) -> tuple[float, float]:
    """(matmuls, attention) of one decoder layer, forward: six projections over tgt, two over the memory."""
    matmuls = 2.0 * length * (6 * d_model**2 + 2 * d_model * d_ff) + 2.0 * memory * 2 * d_model**2
    own = attention_operations(1, 1, length, length, d_model, True, "forward")
    return matmuls, own + attention_operations(1, 1, length, memory, d_model, False, "forward")


def with_backward(matmuls: float, attention: float, mode: str) -> float:
    """Of layers: a matmul's backward costs twice its forward, attention's 2.5 times."""
    return matmuls + attention if mode == "forward" else 3.0 * matmuls + 3.5 * attention
