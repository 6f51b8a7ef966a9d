"""The features of an attention call that may meet, and the rows in which every two of them do."""

from __future__ import annotations

from typing import Any

from .pairwise import cover

# Each feature: its levels by name, with the fields of an AttentionCase that turn one on. The first is its absence.
FEATURES: tuple[dict[str, dict[str, Any]], ...] = (
    {
        "no bias": {},
        "dense bias": {"bias": "hqk"},
        "relative bias": {"bias": "relative"},
        "decoder's relative bias": {"bias": "relative_causal"},
        "alibi": {"bias": "alibi"},
    },
    {"any window": {}, "window": {"window": (9, 3)}, "left window": {"window": (12, None)}},
    {"no offset": {}, "offset": {"query_offset": 5}, "offset by row": {"query_offset": (2, -7)}},
    {"equal heads": {}, "gqa": {"nheads": 4}, "mqa": {"nheads_kv": 1}},
    {"head_dim 16": {}, "head_dim 40": {"head_dim": 40}, "narrow values": {"head_dim": 24, "head_dim_v": 8}},
    {"contiguous": {}, "qkv views": {"layout": "qkv"}, "expanded": {"layout": "expanded"}},
    # one block, and several of queries or keys; 70 x 37 has rows that a causal mask leaves empty
    {"33 x 33": {}, "17 x 66": {"seqlen_q": 17, "seqlen_k": 66}, "70 x 37": {"seqlen_q": 70, "seqlen_k": 37}},
    {"not causal": {}, "causal": {"causal": True}},
    {"all keys": {}, "key lengths": {"key_lengths": (25, 6)}},
    {"all queries": {}, "query lengths": {"query_lengths": (9, 17)}},
    {"no mask": {}, "mask": {"mask": "bqk"}},
    {"no softcap": {}, "softcap": {"softcap": 4.0}},
    {"no sinks": {}, "sinks": {"sinks": True}},
    {"as they are": {}, "rotary": {"rotary": True}},
    {"no dropout": {}, "dropout": {"dropout_p": 0.25}},
    # as many queries as keys in all, so that they may be views of one projection, but not in each sequence
    {"padded": {}, "packed": {"packed_q": (0, 17, 21), "packed_k": (17, 3, 18)}},
)
# A packed batch has no word for these, and says its own sizes; views of one projection have one seqlen.
APART: tuple[tuple[str, str], ...] = (
    *(
        ("packed", other)
        for other in (
            "dense bias", "mask", "key lengths", "query lengths", "offset", "offset by row", "17 x 66", "70 x 37",
        )
    ),
    # What turns has a position from 0 on.
    *(("rotary", other) for other in ("packed", "offset by row", "70 x 37")),
    ("qkv views", "17 x 66"),
    ("qkv views", "70 x 37"),
)  # fmt: skip


def pairwise_rows() -> list[tuple[str, dict[str, Any]]]:
    """(what a row has, its fields of an AttentionCase)."""
    words = {level: fields for feature in FEATURES for level, fields in feature.items()}
    rows = []
    for row in cover([list(feature) for feature in FEATURES], APART):
        present = [level for level in row if words[level]]
        fields: dict[str, Any] = {}
        for level in present:
            fields |= words[level]
        rows.append((", ".join(present) or "nothing", fields))
    return rows
