"""Layers of recurrent cells over a padded batch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

# The plain and the gated cell have one tensor of state, the LSTM two; each (batch, layers, width).
State = tuple[Tensor, ...]

_MODULES = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(nn.Module):
    """x (batch, seqlen, d_model) -> outputs of the last layer (batch, seqlen, d_model), and the state after each row.

    `both_ways` also reads from the end; the directions have half of the width each and are put side by side, in the
    outputs and in the state.

    Raises:
        ValueError: the cell is unknown.
    """

    def __init__(self, cell: str, d_model: int, layers: int, dropout: float = 0.0, both_ways: bool = False) -> None:
        super().__init__()
        if cell not in _MODULES:
            raise ValueError(f"cell={cell!r} is unknown; allowed: {', '.join(_MODULES)}")
        self.layers, self.directions = layers, 1 + both_ways
        between = dropout if layers > 1 else 0.0
        width = d_model // self.directions
        self.cells = _MODULES[cell](d_model, width, layers, batch_first=True, dropout=between, bidirectional=both_ways)

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: State | None = None) -> tuple[Tensor, State]:
        """`lengths` int (batch,): what lies beyond them changes nothing, and gives outputs of 0."""
        given = None if state is None else tuple(self._split(one) for one in state)
        first = given[0] if given is not None and len(given) == 1 else given
        seqlen = x.shape[1]
        if lengths is not None and bool((lengths < seqlen).any()):
            # The packed form takes its lengths on the CPU: on a GPU this waits for what runs there.
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            outputs, after = self.cells(packed, first)
            outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=seqlen)
        else:
            outputs, after = self.cells(x, first)
        return outputs, tuple(map(self._join, after if isinstance(after, tuple) else (after,)))

    def _join(self, state: Tensor) -> Tensor:
        """(layers * directions, batch, width) -> (batch, layers, directions * width)."""
        return state.unflatten(0, (self.layers, self.directions)).permute(2, 0, 1, 3).flatten(2)

    def _split(self, state: Tensor) -> Tensor:
        """The inverse of `_join`."""
        return state.unflatten(2, (self.directions, -1)).permute(1, 2, 0, 3).flatten(0, 1).contiguous()
