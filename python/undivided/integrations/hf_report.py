"""What `accelerate` did to a model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """Modules by class: how many were replaced by what, and how many were left and why.

    replaced: {(class, by what): how many}; left: {(class, why): how many}.
    """

    model: str
    replaced: dict[tuple[str, str], int] = field(default_factory=dict)
    left: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, module: object, by: str, objection: str | None) -> None:
        table, text = (self.replaced, by) if objection is None else (self.left, objection)
        key = (type(module).__name__, text)
        table[key] = table.get(key, 0) + 1

    def count(self, by: str) -> int:
        """How many modules were replaced by `by`."""
        return sum(number for (_, name), number in self.replaced.items() if name == by)

    def __str__(self) -> str:
        lines = [f"{self.model}:"]
        for title, table in (("replaced", self.replaced), ("left", self.left)):
            lines += [f"  {title:<9}{number:>4} {name}: {text}" for (name, text), number in table.items()]
        return "\n".join(lines)
