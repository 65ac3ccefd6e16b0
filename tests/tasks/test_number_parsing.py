import itertools
import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stipule.tasks.answers import merge_spans
from stipule.tasks.number_parsing import number_spans, number_with_unit, plain_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18),
        ("-5", -5),
        ("+5", 5),
        ("1,080", 1080),
        ("$1,080.50", Fraction("1080.5")),
        ("-$10", -10),
        ("$-10", -10),
        ("\\$255", 255),
        ("25%", 25),
        ("47\\%", 47),
        ("47 \\%", 47),
        ("1/2", Fraction(1, 2)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("120\\text{ minutes}", 120),
        ("12 miles per hour", 12),
        ("12 cm^2", 12),
        ("12 cm²", 12),
        ("x = 7", 7),
        ("7.", 7),
        (".5", Fraction(1, 2)),
        ("\\(7\\)", 7),
        ("$7$", 7),
        ("43{,}500", 43500),
        ("−3", -3),
        ("90^\\circ", 90),
        ("1.5 million", 1_500_000),
        ("5-year", 5),
        ("€ 20", 20),
        ("20 €", 20),
    ],
)
def test_one_number_with_its_unit_is_read_exactly(text, value):
    assert number_with_unit(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "many",
        "18 or 20",
        "18 + 2",
        "10^2",
        "2e3",
        "3 4/2",
        "3 5",
        "2\\frac{6}{2}",
        "1/0",
        "1.2.3",
        "1,00",
        "1,000,00",
        "1.000,50",
        "not 18",
        "18 not",
        "18 or twenty",
        "18 and a half",
        "5-10",
        "x - 5",
        "2x",
        "2 x",
        "2\\pi",
        "\u0661\u0662",
        "１８",
        "18²",
        "²",
        "1_000",
        "0x12",
        "inf",
        "nan",
        "\u202e81",
        "18\0",
        "18" * 100,
        "48 - 10 + 48 - 6",
        "18 is the answer to another question",
    ],
)
def test_ambiguous_texts_have_no_value(text):
    assert number_with_unit(text) is None


def test_plain_numbers_have_no_unit():
    assert plain_number("-1,080.5") == Fraction("-1080.5")
    assert plain_number("\\dfrac{1}{3}") == Fraction(1, 3)
    assert plain_number("5 cm") is plain_number("5%") is plain_number("five") is None


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["", "$", "€"]), st.sampled_from(["", " km", "%", " dollars a day"])
)
def test_formatted_numbers_are_read_exactly(value, currency, unit):
    sign = "-" if value < 0 else ""
    assert number_with_unit(f"{sign}{currency}{abs(value):,}{unit}") == value
    assert number_with_unit(f"{sign}{currency}{abs(value)}{unit}") == value


@given(st.text("0123456789,.-+/$%^ \\{}fracetxboxdm²e", max_size=30))
def test_any_text_can_be_read(text):
    number_with_unit(text)
    for start, end in number_spans(text, Fraction(5)):
        assert 0 <= start < end <= len(text)


def test_spans_contain_whole_numbers_in_free_text():
    text = "18 of 118, 18.0 or 36/2; 1,800 and -18 but 180"

    def texts_of(value):
        return [text[a:b] for a, b in merge_spans(number_spans(text, Fraction(value)))]

    assert texts_of(18) == texts_of(-18) == ["18", "18.0", "36/2", "18"]
    assert (texts_of(36), texts_of(2), texts_of(1800), texts_of(5)) == (["36/2"], ["36/2"], ["1,800"], [])
    text = "14.14.14.0 and 3.5"
    assert (texts_of(14), texts_of(5), texts_of(Fraction(1, 2))) == (["14.14.14.0"], ["3.5"], ["3.5"])
    text = "1,40014. 1,400.14 140,014"  # texts that are glued together
    assert (texts_of(14), texts_of(1400)) == (["1,40014", "1,400.14", "140,014"], ["1,40014", "1,400.14"])


def is_cut(run, i):
    beside = i in (0, len(run)) or not (run[i - 1].isdigit() and run[i].isdigit())
    return beside or (i >= 4 and run[i - 4] == "," and run[i - 3 : i].isdigit())


def read_number(text):
    """The value of a text that is one number, read without the task's patterns; else None."""
    number, slash, denominator = text.partition("/")
    whole, point, decimals = number.partition(".")
    first, *groups = whole.split(",")
    is_grouped = not groups or (1 <= len(first) <= 3 and all(len(group) == 3 for group in groups))
    digits = [*groups, *([decimals] if point else []), *([denominator] if slash else [])]
    is_number = is_grouped and all(part.isdigit() for part in digits) and (first.isdigit() or (point and not whole))
    if not is_number or denominator.startswith("0"):
        return None
    return Fraction(f"{whole.replace(',', '') or '0'}.{decimals or '0'}") / int(denominator or 1)


@given(st.text("01457,./ ", max_size=14), st.sampled_from([14, 1400, 0, 7, Fraction(1, 4)]))
@example("1,40014.", 14)
@example("1,400.14", 1400)
@example("0 0/1", 0)
def test_a_run_is_a_span_exactly_if_a_number_between_two_of_its_cuts_has_the_value(text, value):
    expected, start = [], 0
    for run, characters in itertools.groupby(text, lambda c: c in "0123456789,./"):
        chunk = "".join(characters)
        digits = chunk.rstrip(",./") if run else ""
        cuts = [i for i in range(len(digits) + 1) if is_cut(digits, i)]
        if any(read_number(digits[i:j]) == value for i, j in itertools.combinations(cuts, 2)):
            expected.append((start, start + len(digits)))
        start += len(chunk)
    spans = list(number_spans(text, Fraction(value)))
    assert [(a, b) for a, b in spans if " " not in text[a:b]] == expected
    for a, b in spans:
        if " " in text[a:b]:  # a mixed number
            whole, fraction = text[a:b].split()
            assert int(whole) + Fraction(fraction) == value


@pytest.mark.parametrize("piece", [",", ".", "/", "1", "1,", "1,400", ",140", "1.1", "1/1", "14 "])
def test_spans_of_a_long_text_are_found_in_one_pass(piece):
    started = time.process_time()
    list(number_spans(piece * (100_000 // len(piece)), Fraction(5)))
    assert time.process_time() - started < 5  # seconds; a search that is quadratic in the length takes minutes
