import pytest

from stipule.tasks.boxed import boxed_spans, final_answer, last_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{4}", "4"),
        (r"\boxed{4} or \boxed{ 5 }", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{4} \boxed{5", "4"),
        (r"\boxed{\boxed{4}}", r"\boxed{4}"),
        (r"\boxed{", None),
        (r"\boxed 4", None),
        ("4", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_closed_box_counts(text, content):
    assert last_boxed(text) == content


def test_spans_extend_to_the_closing_brace_or_the_end():
    text = r"a \boxed{1{2}} b \boxed{3"
    assert [text[a:b] for a, b in boxed_spans(text)] == [r"\boxed{1{2}}", r"\boxed{3"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} <answer>\boxed{2}</answer> \boxed{3}", "2"),
        (r"\boxed{1} <answer>2</answer>", "2"),
        (r"\boxed{1} <answer>2", "1"),
        (r"<answer>\boxed{2</answer>", r"\boxed{2"),
        ("2", None),
        ("", None),
    ],
)
def test_a_closed_tag_takes_precedence_over_a_box(text, answer):
    assert final_answer(text) == answer


def test_many_open_boxes_are_read_in_one_pass():
    assert last_boxed(r"\boxed{" * 140_000) is None
