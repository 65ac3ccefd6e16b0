"""Numbers as people write them: one exact value from a short text, or none if it can be read in two ways."""

import re
from collections.abc import Iterator
from fractions import Fraction

from stipule.tasks.problem import Span

# Long enough for a number with its unit; what is longer is no number but a text about one.
MAX_LENGTH = 100

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,30})"  # commas only between groups of three
_NUMBER = rf"{_WHOLE}(?:\.[0-9]{{1,30}})?|\.[0-9]{{1,30}}"
_VALUE = re.compile(rf"(?P<value>{_NUMBER})(?:/(?P<under>[1-9][0-9]{{0,30}}))?")
_BARE = re.compile(rf"(?P<value>{_NUMBER})")
_DIGITS = re.compile(r"(?P<value>[0-9]{1,30})")
_RUN = re.compile("[0-9.,/]*[0-9]")
_START = re.compile(r"(?<![0-9])[0-9]|\.(?=[0-9])")
_PLAIN = re.compile(rf"(?P<sign>[-+]?)\s?{_VALUE.pattern}")
_CURRENCY = "[$£€¥]"
_QUANTITY = re.compile(
    rf"(?:[A-Za-z]\s?=\s?)?{_CURRENCY}?\s?(?P<sign>[-+]?)\s?{_CURRENCY}?\s?{_VALUE.pattern}"
    # A unit: a few words, perhaps squared; "or", "not" and the like would make two answers of one.
    r"\s?(?P<unit>%|[£€¥$°]|-?[A-Za-z°][A-Za-z°./' -]*(?:\^\{?[23]\}?|[²³])?)?\.?"
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "k": 10**3, "hundred": 100}
_NO_UNIT = {"or", "and", "not", "to", "minus", "plus", "times", "over", "under", "e", "x", "n", "i", "pi", "isn't"}
MAX_UNIT_WORDS = 4

# LaTeX and typography that change nothing about a number.
_LATEX = (
    (re.compile(r"\\[dt]?frac\{?([0-9]{1,30})\}?\{([0-9]{1,30})\}"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|textrm|mbox)\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\\[ ,;!:]|\{,\}(?=[0-9]{3})|~"), lambda mark: "," if mark.group() == "{,}" else " "),
    (re.compile(r"\\(?=[$%])|\\[()\[\]]"), ""),
    (re.compile(r"\^\{?\\circ\}?"), "°"),
    (re.compile("[−–]"), "-"),
    (re.compile(r"[ \t\r\n]+"), " "),
)


def plain_number(text: str) -> Fraction | None:
    """The value of a number alone (sign, commas, decimals or a fraction; no unit), or None."""
    found = _PLAIN.fullmatch(_simplified(text))
    return _value(found) if found else None


def number_with_unit(text: str) -> Fraction | None:
    """The value of a number with currency, percent sign or unit, or None.

    "$1,080", "-5", "25 %", "1/2", "12 miles per hour", "x = 7", "1.5 million".  A percent sign is a unit: 25 % is 25.
    None for anything in which a second number, an operation or an alternative stands.
    """
    found = _QUANTITY.fullmatch(_simplified(text).strip("$ "))
    if found is None:
        return None
    words = re.findall("[A-Za-z']+", found["unit"] or "")
    if len(words) > MAX_UNIT_WORDS or any(word.lower() in _NO_UNIT for word in words):
        return None
    value = _value(found)
    if words:
        value *= _SCALES.get(words[0].lower(), 1)
    return value


def number_spans(text: str, value: Fraction) -> Iterator[Span]:
    """Where a free text writes this number (its size, whatever the sign).

    Deliberately wide: a run of digits, points, commas and slashes counts whole if the number can be read at any place
    in it, because "14.14" can be two sentences.
    """
    equal: dict[str, bool] = {}  # a long response repeats its numbers

    def reads(found: re.Match[str] | None) -> bool:
        if found is None:
            return False
        if found.group() not in equal:
            equal[found.group()] = abs(_value(found)) == abs(value)
        return equal[found.group()]

    for run in _RUN.finditer(text):
        written = run.group()
        places = (start.start() for start in _START.finditer(written))
        if any(reads(p.match(written, at, at + MAX_LENGTH)) for at in places for p in (_VALUE, _BARE, _DIGITS)):
            yield run.span()


def _simplified(text: str) -> str:
    if len(text) > MAX_LENGTH:
        return ""
    for pattern, instead in _LATEX:
        text = pattern.sub(instead, text)
    return text.strip()


def _value(found: re.Match[str]) -> Fraction:
    given = found.groupdict()
    value = Fraction(given["value"].replace(",", ""))
    if given.get("under"):
        value /= int(given["under"])
    return -value if given.get("sign") == "-" else value
