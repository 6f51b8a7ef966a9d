"""The activations and their slopes, in float32, element by element.

gelu and gelu_tanh: Hendrycks and Gimpel 2016; silu: Elfwing et al. 2017. NaN stays NaN. Finite numbers of any size give
the limits that the reference gives in float64; where that is NaN at an infinity (0 times infinity), so it is here.
"""

from __future__ import annotations

import triton
import triton.language as tl

# In products a tensor comes first: the interpreter takes a constant times a tensor for a constant.
LOG2E = tl.constexpr(1.4426950408889634)
HALF_LOG2E = tl.constexpr(0.7213475204444817)
HALF_ROOT = tl.constexpr(0.7071067811865476)  # sqrt(1 / 2)
DENSITY = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi), the normal density at 0
# The argument of gelu_tanh's sigmoid and its slope: 2 sqrt(2 / pi) times (x + 0.044715 x^3) and (1 + 0.134145 x^2).
TWICE_ROOT = tl.constexpr(1.5957691216057308)
CUBIC = tl.constexpr(0.044715)
CUBIC_SLOPE = tl.constexpr(0.134145)
FLAT = tl.constexpr(1e4)  # from here on the bend of gelu_tanh is 0, long before its square overflows


@triton.jit
def sigmoid(x):
    """For large negative x the power is infinite and the result 0."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def activate_with_slope(h, ACTIVATION: tl.constexpr):
    """(act(h), act'(h)), both of h's shape; relu's slope at 0 is 0, as torch.relu's."""
    if ACTIVATION == "relu":
        # Written so that NaN, for which every comparison is false, passes through.
        value = tl.where(h < 0.0, 0.0, h)
        slope = tl.where(h <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "gelu":
        below = 0.5 * (1.0 + tl.erf(h * HALF_ROOT))
        value = h * below
        slope = below + h * (tl.exp2(-h * h * HALF_LOG2E) * DENSITY)
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 is sigmoid(2 u), which does not cancel where tanh(u) nears -1.
        s = sigmoid((h + h * h * h * CUBIC) * TWICE_ROOT)
        value = h * s
        bend = h * s * (1.0 - s) * ((1.0 + h * h * CUBIC_SLOPE) * TWICE_ROOT)
        slope = s + tl.where(tl.abs(h) > FLAT, 0.0, bend)
    else:
        tl.static_assert(ACTIVATION == "silu", "activation: relu, gelu, gelu_tanh or silu")
        s = sigmoid(h)
        value = h * s
        slope = s * (1.0 + h * (1.0 - s))
    return value, slope


@triton.jit
def hidden(h, g, ACTIVATION: tl.constexpr, GATED: tl.constexpr):
    """What the second product takes: act(h), times g when gated."""
    value, _ = activate_with_slope(h, ACTIVATION)
    if GATED:
        value = value * g
    return value


@triton.jit
def hidden_gradients(da, h, g, ACTIVATION: tl.constexpr, GATED: tl.constexpr):
    """(dh, dg, a) from da, the gradient of a = hidden(h, g); dg is dh when not gated."""
    value, slope = activate_with_slope(h, ACTIVATION)
    if GATED:
        return da * g * slope, da * value, value * g
    else:
        dh = da * slope
        return dh, dh, value
