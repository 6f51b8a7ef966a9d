"""What transformers calls the keyword of keys and values that were seen before: past_key_values, from 5.24 on cache."""

from __future__ import annotations

from dataclasses import fields

from transformers.modeling_outputs import BaseModelOutputWithPast

NEW, OLD = "cache", "past_key_values"  # the old name is taken on in 5.24
CACHE = NEW if NEW in {field.name for field in fields(BaseModelOutputWithPast)} else OLD
