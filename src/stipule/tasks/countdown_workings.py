"""Working a Countdown puzzle out: all values of some numbers, step by step, in whole numbers within a bound."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

DELIMITER = ":"  # compact responses: steps, delimiter, expression


@dataclass(frozen=True, slots=True)
class Worked:
    """A value that was worked out: the expression and the steps that lead to it.

    The greater operand always comes first, so that equal sums and products are written in one way only.
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


def combine(one: Worked, other: Worked, sign: str, bound: int) -> Worked | None:
    """The next step with `sign`, or None if its value is not a whole number in [1, bound]."""
    left, right = (one, other) if one.value >= other.value else (other, one)
    if sign == "/" and left.value % right.value:
        return None
    values = {"+": left.value + right.value, "-": left.value - right.value, "*": left.value * right.value}
    value = values[sign] if sign in values else left.value // right.value
    if not 1 <= value <= bound:
        return None
    step = f"{left.value}{sign}{right.value}={value}"
    return Worked(value, f"{left.operand}{sign}{right.operand}", (*left.steps, *right.steps, step))


def workings(items: Sequence[Worked], operations: str, bound: int) -> Iterator[Worked]:
    """Everything that can be worked out with all of `items`, in a fixed order."""
    if len(items) == 1:
        yield items[0]
    for first, second in combinations(range(len(items)), 2):
        rest = [item for index, item in enumerate(items) if index not in (first, second)]
        for sign in operations:
            step = combine(items[first], items[second], sign, bound)
            if step is not None:
                yield from workings([step, *rest], operations, bound)


@lru_cache(maxsize=65_536)
def solve(numbers: tuple[int, ...], target: int, operations: str, bound: int) -> Worked | None:
    """The first way of reaching `target`: always the same one, which is easier to learn than any of several."""
    items = [Worked(number, str(number)) for number in sorted(numbers, reverse=True)]
    return next((worked for worked in workings(items, operations, bound) if worked.value == target), None)


def add_up(numbers: Sequence[int], bound: int) -> Worked | None:
    """The sum of all numbers, from left to right."""
    total: Worked | None = Worked(numbers[0], str(numbers[0]))
    for number in numbers[1:]:
        total = total and combine(total, Worked(number, str(number)), "+", bound)
    return total
