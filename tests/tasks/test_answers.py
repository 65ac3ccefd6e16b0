import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stipule.tasks.answers import CLOSE, OPEN, answer_spans, answer_text, merge_spans

tag_texts = st.lists(st.sampled_from([OPEN, CLOSE, "a", "12", " ", "<answer", "answer>", "\n"]), max_size=12).map(
    "".join
)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>12</answer>", "12"),
        ("<reasoning>\nx\n</reasoning>\n<answer>\n12\n</answer>\n", "12"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1 <answer>2</answer> 3</answer>", "2"),
        ("<answer>1</answer> and <answer>2", "1"),
        ("<answer>1</answer></answer>", "1"),
        ("</answer>1<answer>", None),
        ("<answer></answer>", ""),
        ("<answer>\u00a01\u00a0</answer>", "\u00a01\u00a0"),
        ("<ANSWER>1</ANSWER>", None),
        ("12", None),
        ("", None),
    ],
)
def test_the_last_closed_answer_counts(response, answer):
    assert answer_text(response) == answer


@pytest.mark.parametrize(
    ("response", "protected"),
    [
        ("ab<answer>12</answer>c", ["<answer>12</answer>"]),
        ("<answer>1</answer>x<answer>2</answer>", ["<answer>1</answer>", "<answer>2</answer>"]),
        ("a<answer>1<answer>2</answer>3</answer>b", ["<answer>1<answer>2</answer>3</answer>"]),
        ("a<answer>12", ["<answer>12"]),
        ("<answer><answer>1</answer> b", ["<answer><answer>1</answer> b"]),
        ("a</answer>b", ["</answer>"]),
        ("a</answer>b<answer>c", ["</answer>", "<answer>c"]),
        ("nothing", []),
        ("", []),
    ],
)
def test_spans_contain_answers_and_their_tags(response, protected):
    assert [response[start:end] for start, end in answer_spans(response)] == protected


@given(tag_texts)
def test_spans_contain_every_tag_and_the_answer(response):
    spans = answer_spans(response)
    inside = set().union(*(range(*span) for span in spans))
    for tag in (OPEN, CLOSE):
        starts = [start for start in range(len(response)) if response.startswith(tag, start)]
        assert inside.issuperset(start + offset for start in starts for offset in range(len(tag)))
    answer = answer_text(response)
    assert not answer or any(answer in response[start:end] for start, end in spans)
    assert spans == sorted(spans)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


@given(tag_texts)
def test_the_answer_is_the_text_between_two_tags(response):
    answer = answer_text(response)
    if answer is None:
        # No closing tag follows an opening tag.
        first = response.find(OPEN)
        assert first < 0 or CLOSE not in response[first:]
    else:
        assert OPEN not in answer and CLOSE not in answer and answer in response


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=6))
def test_merged_spans_contain_the_same_characters_and_do_not_touch(spans):
    merged = merge_spans(spans)
    assert set().union(*(range(*span) for span in merged)) == set().union(*(range(*span) for span in spans))
    assert all(start < end for start, end in merged)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(merged))


def test_many_open_tags_are_read_in_one_pass():
    response = OPEN * 100_000
    assert answer_text(response) is None
    assert answer_spans(response) == [(0, len(response))]
