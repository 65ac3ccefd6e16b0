"""Numbers in short texts: the exact value of one number, or None if the text is ambiguous."""

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction

from stipule.tasks.answer_markup import strip_markup
from stipule.tasks.problem import Span

# Long enough for a number with its unit; a longer text is not a number.
MAX_LENGTH = 100

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,30})"  # commas only between groups of three
_NUMBER = rf"{_WHOLE}(?:\.[0-9]{{1,30}})?|\.[0-9]{{1,30}}"
_VALUE = re.compile(rf"(?P<value>{_NUMBER})(?:/(?P<denominator>[1-9][0-9]{{0,30}}))?")
_RUN = re.compile("[0-9.,/]+")
_CUT = re.compile("(?<![0-9])|(?![0-9])|(?<=,[0-9]{3})")
# A number, or a mixed number: a whole number and a proper fraction.
_MIXED = rf"(?:(?P<whole>{_WHOLE})\s(?:and\s)?)?{_VALUE.pattern}"
_PLAIN = re.compile(rf"(?P<sign>[-+]?)\s?{_MIXED}")
_CURRENCY = "[$£€¥]"
_QUANTITY = re.compile(
    rf"(?:[A-Za-z]\s?=\s?)?{_CURRENCY}?\s?(?P<sign>[-+]?)\s?{_CURRENCY}?\s?{_MIXED}"
    # A unit: a few words, perhaps squared.  _NO_UNIT excludes words such as "or", which make two answers.
    r"\s?(?P<unit>%|[£€¥$°]|-?[A-Za-z°][A-Za-z°./' -]*(?:\^\{?[23]\}?|[²³])?)?\.?"
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "k": 10**3, "hundred": 100}
_NO_UNIT = {"or", "and", "not", "to", "minus", "plus", "times", "over", "under", "e", "x", "n", "i", "pi", "isn't"}
MAX_UNIT_WORDS = 4

# The argument of a LaTeX command: digits in braces, or the next digit.
_ARGUMENT = r" ?(?:\{{ ?(?P<{0}>[0-9]{{1,30}}) ?\}}|(?P<{0}_digit>[0-9]))"
LATEX_FRACTION = re.compile(r"\\(?:[cdst]|nice)?frac" + _ARGUMENT.format("top") + _ARGUMENT.format("bottom"))
_FRACTIONS_IN_TEXT = re.compile(rf"(?:(?P<whole>[0-9]{{1,30}})[ ~]*)?{LATEX_FRACTION.pattern}")
_MIXED_IN_TEXT = re.compile(r"(?P<whole>[0-9]{1,30})(?:[ -]|\s?and\s)(?P<top>[0-9]{1,30})/(?P<bottom>[0-9]{1,30})")
_REPEATING = re.compile(
    r"(?P<sign>-?)(?P<fixed>[0-9]{0,20}\.[0-9]{0,20})\\(?:overline|bar) ?\{?(?P<repeated>[0-9]{1,20})\}?"
)
THOUSANDS = re.compile(r"(?<=[0-9])(?:\\[ ,;!:]|~|\{(?:\\)?,\}|,\\!)(?=[0-9]{3}(?![0-9]))")

# LaTeX and typography that do not change a number.
_LATEX = (
    (THOUSANDS, ","),
    (LATEX_FRACTION, lambda match: " {}/{} ".format(*fraction_parts(match))),
    (re.compile("[¼-¾⅐-⅞]"), lambda match: " " + unicodedata.normalize("NFKC", match.group()).replace("⁄", "/")),
    (re.compile(r"\\(?:text|mathrm|textrm|mbox|textbf|mathbf|textit|emph)\{([^{}]*)\}"), r" \1"),
    (re.compile(r"(?<![^\s$])\*\*([^*]+)\*\*(?![^\s.,$%])"), r"\1"),
    (re.compile(r"\\[ ,;!:]|~"), " "),
    (re.compile(r"\\(?=[$%])|\\[()\[\]]"), ""),
    (re.compile(r"\^\{?\\circ\}?"), "°"),
    (re.compile("[−–]"), "-"),
    (re.compile(r"[ \t\r\n]+"), " "),
)


def plain_number(text: str) -> Fraction | None:
    """The value of a number alone (sign, commas, decimals, a fraction or a mixed number; no unit), or None.

    A whole number beside a fraction is a mixed number: 3\\frac{1}{2} and 3 1/2 are 7/2. None if its fraction is not
    proper: 2\\frac{6}{2} may be 5 or 6.
    """
    text = _simplify(text)
    if match := _REPEATING.fullmatch(text):
        return _repeating(match)
    match = _PLAIN.fullmatch(text)
    return _value(match) if match else None


def number_with_unit(text: str) -> Fraction | None:
    """The value of a number with currency, percent sign or unit, or None.

    "$1,080", "-5", "25 %", "1/2", "1 1/2 cups", "12 miles per hour", "x = 7", "1.5 million".  A percent sign is a
    unit: 25 % is 25.
    None for a text with a second number, an operation or an alternative.
    """
    if (number := plain_number(text)) is not None:
        return number
    match = _QUANTITY.fullmatch(_simplify(text).strip("$ "))
    if match is None:
        return None
    words = re.findall("[A-Za-z']+", match["unit"] or "")
    if len(words) > MAX_UNIT_WORDS or any(word.lower() in _NO_UNIT for word in words):
        return None
    value = _value(match)
    if value is not None and words:
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
            is_equal[match.group()] = _value(match) in (value, -value)
        return is_equal[match.group()]

    for pattern in (_FRACTIONS_IN_TEXT, _MIXED_IN_TEXT):
        for match in pattern.finditer(text):
            if _fraction(match) in (value, -value):
                yield match.span()
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
    text = strip_markup(text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text.strip()


def fraction_parts(match: re.Match[str]) -> tuple[str, str]:
    """Numerator and denominator of a LATEX_FRACTION."""
    return match["top"] or match["top_digit"], match["bottom"] or match["bottom_digit"]


def _fraction(match: re.Match[str]) -> Fraction | None:
    """The value of a fraction or a mixed number in a text; None if it has none."""
    top, bottom = map(
        int, fraction_parts(match) if "top_digit" in match.re.groupindex else (match["top"], match["bottom"])
    )
    return int(match["whole"] or 0) + Fraction(top, bottom) if bottom else None


def _repeating(match: re.Match[str]) -> Fraction:
    """The value of a decimal number whose last digits repeat."""
    decimals = len(match["fixed"].partition(".")[2])
    repeated = Fraction(int(match["repeated"]), 10 ** len(match["repeated"]) - 1) / 10**decimals
    value = Fraction(match["fixed"].rstrip(".") or "0") + repeated
    return -value if match["sign"] else value


def _value(match: re.Match[str]) -> Fraction | None:
    groups = match.groupdict()
    value = Fraction(groups["value"].replace(",", ""))
    denominator = int(groups.get("denominator") or 1)
    if groups.get("whole"):
        if not groups.get("denominator") or value.denominator > 1 or value >= denominator:
            return None  # two numbers, or a fraction that is not proper
        value += denominator * int(groups["whole"].replace(",", ""))
    value /= denominator
    return -value if groups.get("sign") == "-" else value
