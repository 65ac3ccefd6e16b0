"""Derivations of Countdown puzzles: all values of some numbers, with steps in whole numbers up to a bound."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

DELIMITER = ":"  # compact responses: steps, delimiter, expression


@dataclass(frozen=True, slots=True)
class Derivation:
    """A value, its expression, and the steps that compute it.

    The greater operand comes first, so that a sum or a product is written in one way only.
    """

    value: int
    text: str
    steps: tuple[str, ...] = ()

    @property
    def response(self) -> str:
        return ";".join(self.steps) + DELIMITER + self.text

    @property
    def operand(self) -> str:
        return f"({self.text})" if self.steps else self.text


def apply_operator(one: Derivation, other: Derivation, sign: str, bound: int) -> Derivation | None:
    """The next step with `sign`, or None if its value is not a whole number in [1, bound]."""
    left, right = (one, other) if one.value >= other.value else (other, one)
    if sign == "/" and left.value % right.value:
        return None
    values = {"+": left.value + right.value, "-": left.value - right.value, "*": left.value * right.value}
    value = values[sign] if sign in values else left.value // right.value
    if not 1 <= value <= bound:
        return None
    step = f"{left.value}{sign}{right.value}={value}"
    return Derivation(value, f"{left.operand}{sign}{right.operand}", (*left.steps, *right.steps, step))


def all_derivations(items: Sequence[Derivation], operations: str, bound: int) -> Iterator[Derivation]:
    """Every derivation that uses all of `items`, in a fixed order."""
    if len(items) == 1:
        yield items[0]
    for first, second in combinations(range(len(items)), 2):
        rest = [item for index, item in enumerate(items) if index not in (first, second)]
        for sign in operations:
            step = apply_operator(items[first], items[second], sign, bound)
            if step is not None:
                yield from all_derivations([step, *rest], operations, bound)


@lru_cache(maxsize=65_536)
def solve(numbers: tuple[int, ...], target: int, operations: str, bound: int) -> Derivation | None:
    """The first derivation of `target`, or None.  It is always the same one, which is easier to learn."""
    items = [Derivation(number, str(number)) for number in sorted(numbers, reverse=True)]
    return next((item for item in all_derivations(items, operations, bound) if item.value == target), None)


def add_up(numbers: Sequence[int], bound: int) -> Derivation | None:
    """The sum of all numbers, from left to right; None if it exceeds the bound."""
    total: Derivation | None = Derivation(numbers[0], str(numbers[0]))
    for number in numbers[1:]:
        total = total and apply_operator(total, Derivation(number, str(number)), "+", bound)
    return total
