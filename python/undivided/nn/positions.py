"""How a model knows where a token stands. Each kind acts at one of three places; at the others it does nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from ..reference import ALiBi, RelativeBias, rotary_tables, sinusoidal
from .packing import Start, rows_of

Bias = RelativeBias | ALiBi


class Positions(nn.Module):
    """No positions at all; the base of the other kinds. `start` says where the tokens of `x` stand."""

    def reserve(self, longest: int, device: torch.device) -> None:
        """Makes what the positions below `longest` need, on the device.

        Where `start` is a tensor it must have been called: only from numbers of Python do tables grow on demand.

        Raises:
            ValueError: there are not so many positions.
        """

    def add(self, x: Tensor, start: Start = 0) -> Tensor:
        """Embeddings (batch, seqlen, d_model) with what stands for the position added."""
        return x

    def turn(self, x: Tensor, start: Start = 0) -> Tensor:
        """Queries or keys (batch, seqlen, nheads, head_dim) turned by their position."""
        return x

    def tables(self, longest: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """(cos, sin) of at least `longest` positions, for an op that turns queries and keys itself."""
        return None

    def bias(self) -> Bias | None:
        """What self-attention adds to its scores."""
        return None


class Sinusoidal(Positions):
    """Sines and cosines of growing wavelength, added to the embeddings (Vaswani et al. 2017, section 3.5)."""

    table: Tensor  # (longest so far, d_model), grown on demand

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.register_buffer("table", torch.empty(0, d_model), persistent=False)

    def add(self, x: Tensor, start: Start = 0) -> Tensor:
        rows, end = rows_of(x, start)
        self.reserve(end, x.device)
        return x + self.table[rows].to(x.dtype)

    def reserve(self, longest: int, device: torch.device) -> None:
        if self.table.shape[0] < longest:
            self.table = self.rows(max(longest, 256)).to(device)

    def rows(self, longest: int) -> Tensor:
        """float32 (longest, d_model)."""
        return sinusoidal(longest, self.d_model)


class Table(Positions):
    """A vector a position, added to the embeddings; the base of `Learned` and `Fixed`.

    Position 0 has row `first` of the table: published models have rows before it.

    Raises:
        ValueError: a sequence is longer than the table.
    """

    table: Tensor  # (first + longest, d_model)
    kind: str

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def add(self, x: Tensor, start: Start = 0) -> Tensor:
        rows, end = rows_of(x, start)
        self.reserve(end, x.device)
        return x + self.table[self.first :][rows].to(x.dtype)

    def reserve(self, longest: int, device: torch.device) -> None:
        there = self.table.shape[0] - self.first
        if longest > there:
            raise ValueError(f"the sequence has {longest} positions, {self.kind} positions end at {there}")


class Learned(Table):
    """One learned vector for each of `longest` positions (Devlin et al. 2019)."""

    kind = "learned"

    def __init__(self, d_model: int, longest: int = 1024, first: int = 0) -> None:
        super().__init__(first)
        self.table = nn.Parameter(torch.randn(first + longest, d_model) * d_model**-0.5)


class Fixed(Table):
    """Vectors that do not learn, kept with the weights: `table` (longest, d_model)."""

    kind = "fixed"

    def __init__(self, table: Tensor) -> None:
        super().__init__(first=0)
        self.register_buffer("table", table)


class Rotary(Positions):
    """Queries and keys turned by an angle that grows with the position (Su et al. 2021)."""

    cos: Tensor  # (longest so far, head_dim / 2), grown on demand, as is sin
    sin: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"head_dim={head_dim} must be even for rotary positions")
        self.head_dim = head_dim
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.empty(0, head_dim // 2), persistent=False)

    def turn(self, x: Tensor, start: Start = 0) -> Tensor:
        rows, end = rows_of(x, start)
        self.reserve(end, x.device)
        if isinstance(rows, Tensor):
            return ops.rotary(x, self.cos, self.sin, rows)
        return ops.rotary(x, self.cos[rows], self.sin[rows])

    def tables(self, longest: int, device: torch.device) -> tuple[Tensor, Tensor]:
        self.reserve(longest, device)
        return self.cos, self.sin

    def reserve(self, longest: int, device: torch.device) -> None:
        if self.cos.shape[0] < longest:
            cos, sin = rotary_tables(max(longest, 256), self.head_dim)
            self.cos, self.sin = cos.to(device), sin.to(device)


class Relative(Positions):
    """A learned number a head for each bucket of distances, shared by the layers of a stack (Raffel et al. 2020)."""

    def __init__(self, nheads: int, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        self.bidirectional, self.max_distance = bidirectional, max_distance
        self.table = nn.Parameter(torch.randn(num_buckets, nheads) * 0.1)

    def bias(self) -> Bias:
        return RelativeBias(self.table, self.max_distance, self.bidirectional)


class Alibi(Positions):
    """A penalty that grows with the distance, steeper in some heads (Press et al. 2022)."""

    slopes: Tensor  # (nheads,)

    def __init__(self, nheads: int) -> None:
        super().__init__()
        slopes = 2.0 ** (-8.0 * torch.arange(1, nheads + 1) / nheads)
        self.register_buffer("slopes", slopes, persistent=False)

    def bias(self) -> Bias:
        return ALiBi(self.slopes)


POSITIONS = ("none", "sinusoidal", "learned", "relative", "rotary", "alibi")


def make_positions(name: str, d_model: int, nheads: int, bidirectional: bool) -> Positions:
    """The kind of that name, for one stack of layers.

    Raises:
        ValueError: the name is unknown.
    """
    match name:
        case "none":
            return Positions()
        case "sinusoidal":
            return Sinusoidal(d_model)
        case "learned":
            return Learned(d_model)
        case "relative":
            return Relative(nheads, bidirectional)
        case "rotary":
            return Rotary(d_model // nheads)
        case "alibi":
            return Alibi(nheads)
    raise ValueError(f"positions={name!r} is unknown; allowed: {', '.join(POSITIONS)}")
