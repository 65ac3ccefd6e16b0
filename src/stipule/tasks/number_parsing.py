"""Numbers in short texts: the exact value of one number, or None if the text is ambiguous."""

import re
from collections.abc import Iterator
from fractions import Fraction

from stipule.tasks.problem import Span

# Long enough for a number with its unit; a longer text is not a number.
MAX_LENGTH = 100

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,30})"  # commas only between groups of three
_NUMBER = rf"{_WHOLE}(?:\.[0-9]{{1,30}})?|\.[0-9]{{1,30}}"
_VALUE = re.compile(rf"(?P<value>{_NUMBER})(?:/(?P<denominator>[1-9][0-9]{{0,30}}))?")
_RUN = re.compile("[0-9.,/]+")
_CUT = re.compile("(?<![0-9])|(?![0-9])|(?<=,[0-9]{3})")
_PLAIN = re.compile(rf"(?P<sign>[-+]?)\s?{_VALUE.pattern}")
_CURRENCY = "[$£€¥]"
_QUANTITY = re.compile(
    rf"(?:[A-Za-z]\s?=\s?)?{_CURRENCY}?\s?(?P<sign>[-+]?)\s?{_CURRENCY}?\s?{_VALUE.pattern}"
    # A unit: a few words, perhaps squared.  _NO_UNIT excludes words such as "or", which make two answers.
    r"\s?(?P<unit>%|[£€¥$°]|-?[A-Za-z°][A-Za-z°./' -]*(?:\^\{?[23]\}?|[²³])?)?\.?"
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "k": 10**3, "hundred": 100}
_NO_UNIT = {"or", "and", "not", "to", "minus", "plus", "times", "over", "under", "e", "x", "n", "i", "pi", "isn't"}
MAX_UNIT_WORDS = 4

# LaTeX and typography that do not change a number.
_LATEX = (
    (re.compile(r"\\[dt]?frac\{?([0-9]{1,30})\}?\{([0-9]{1,30})\}"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|textrm|mbox)\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\\[ ,;!:]|\{,\}(?=[0-9]{3})|~"), lambda match: "," if match.group() == "{,}" else " "),
    (re.compile(r"\\(?=[$%])|\\[()\[\]]"), ""),
    (re.compile(r"\^\{?\\circ\}?"), "°"),
    (re.compile("[−–]"), "-"),
    (re.compile(r"[ \t\r\n]+"), " "),
)


def plain_number(text: str) -> Fraction | None:
    """The value of a number alone (sign, commas, decimals or a fraction; no unit), or None."""
    match = _PLAIN.fullmatch(_simplify(text))
    return _value(match) if match else None


def number_with_unit(text: str) -> Fraction | None:
    """The value of a number with currency, percent sign or unit, or None.

    "$1,080", "-5", "25 %", "1/2", "12 miles per hour", "x = 7", "1.5 million".  A percent sign is a unit: 25 % is 25.
    None for a text with a second number, an operation or an alternative.
    """
    match = _QUANTITY.fullmatch(_simplify(text).strip("$ "))
    if match is None:
        return None
    words = re.findall("[A-Za-z']+", match["unit"] or "")
    if len(words) > MAX_UNIT_WORDS or any(word.lower() in _NO_UNIT for word in words):
        return None
    value = _value(match)
    if words:
        value *= _SCALES.get(words[0].lower(), 1)
    return value


def number_spans(text: str, value: Fraction) -> Iterator[Span]:
    """Spans of this number in free text; the sign is ignored.

    Deliberately wide: a run of digits, points, commas and slashes is one span if the number can be read anywhere in
    it, because "14.14" can be two sentences. A number begins and ends where a run can be cut: between a digit and
    another character, and after a comma with three digits. So "1,40014" holds 1400 and 14, but 140 holds no 14.
    """
    is_equal: dict[str, bool] = {}  # a cache: a long response repeats its numbers

    def equals_value(match: re.Match[str]) -> bool:
        if match.group() not in is_equal:
            is_equal[match.group()] = abs(_value(match)) == abs(value)
        return is_equal[match.group()]

    for match in _RUN.finditer(text):
        run = match.group().rstrip(".,/")
        if any(map(equals_value, _readings(run))):
            yield match.start(), match.start() + len(run)


def _readings(run: str) -> Iterator[re.Match[str]]:
    """Every number between two cuts of a run."""
    cuts = [cut.start() for cut in _CUT.finditer(run)]
    for index, start in enumerate(cuts):
        longest = _VALUE.match(run, start, start + MAX_LENGTH)
        if longest is None:
            continue
        yield longest
        for end in (cuts[i] for i in range(index + 1, len(cuts))):
            if end >= longest.end():
                break
            if shorter := _VALUE.fullmatch(run, start, end):
                yield shorter


def _simplify(text: str) -> str:
    if len(text) > MAX_LENGTH:
        return ""
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text.strip()


def _value(match: re.Match[str]) -> Fraction:
    groups = match.groupdict()
    value = Fraction(groups["value"].replace(",", ""))
    if groups.get("denominator"):
        value /= int(groups["denominator"])
    return -value if groups.get("sign") == "-" else value
