import random
import re
from fractions import Fraction
from functools import cache
from itertools import islice, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stipule.errors import RecipeError
from stipule.tasks.countdown import Countdown, Derivation, _problems, add_up, solve
from stipule.tasks.countdown_workings import all_derivations

d1 = Countdown()
small = Countdown(prompt="compact", operations="+-*", largest=20, target=(1, 60), test_problems=1000)
four = Countdown(prompt="compact", numbers=4, operations="+-*", largest=12, target=(1, 40), train_problems=500)


@cache
def reachable(values):
    """Every value of every expression of all the values, in exact arithmetic; independent of the task's code."""
    if len(values) == 1:
        return set(values)
    reached = set()
    for first, second, *rest in set(permutations(values)):
        results = {first + second, first - second, first * second, first / (second or 1)}
        reached |= set().union(*(reachable(tuple(sorted([result, *rest]))) for result in results))
    return reached


def expression_text(numbers, signs, form):
    a, b, c = numbers
    return [f"({a}{signs[0]}{b}){signs[1]}{c}", f"{a}{signs[0]}({b}{signs[1]}{c})", f"{a}{signs[0]}{b}{signs[1]}{c}"][
        form
    ]


def tagged(expression):
    return f"<reasoning>\nhm\n</reasoning>\n<answer>\n{expression}\n</answer>"


@pytest.mark.parametrize("task", [d1, small, four])
def test_every_puzzle_can_be_solved(task):
    for problem in task.problems("train")[:40] + task.problems("test")[:20]:
        assert problem.data["target"] in reachable(tuple(Fraction(number) for number in problem.data["numbers"]))


@pytest.mark.parametrize("task", [d1, small, four])
def test_numbers_and_targets_are_in_range(task):
    problems = task.problems("train") + task.problems("test")
    low, high = task.target
    assert all(low <= problem.data["target"] <= high for problem in problems)
    assert all(len(problem.data["numbers"]) == task.numbers for problem in problems)
    assert all(1 <= number <= task.largest for problem in problems for number in problem.data["numbers"])


@pytest.mark.parametrize("task", [d1, small, four])
def test_no_multiset_is_in_both_splits(task):
    train, test = (
        {tuple(sorted(problem.data["numbers"])) for problem in task.problems(split)} for split in ("train", "test")
    )
    assert not train & test


def test_a_fifth_of_the_multisets_is_in_the_test_split():
    triples = [(a, b, c) for a in range(1, 21) for b in range(a, 21) for c in range(b, 21)]
    assert sum(small.split_of(triple) == "test" for triple in triples) / len(triples) == pytest.approx(0.2, abs=0.03)
    assert all(small.split_of(triple) == small.split_of(triple[::-1]) for triple in triples)


def test_problems_depend_on_the_seed_only():
    expected = small.problems("test")
    _problems.cache_clear()
    assert small.problems("test") == expected
    other = Countdown(prompt="compact", operations="+-*", largest=20, target=(1, 60), test_problems=1000, seed=1)
    assert {problem.key for problem in other.problems("test")} != {problem.key for problem in expected}


def test_keys_are_distinct_and_ignore_order_and_prompt():
    problems = small.problems("test")
    assert len({problem.key for problem in problems}) == len(problems) == 1000
    assert d1.problem((3, 12, 7), 24).key == small.problem((12, 7, 3), 24).key
    assert d1.problem((3, 12, 7), 24).key != d1.problem((3, 12, 7), 25).key


def test_prompts_contain_the_puzzle():
    assert small.problem((3, 7, 12), 24).prompt == "3,7,12=24"
    prompt = d1.problem((3, 12, 7), 24).prompt
    assert prompt.endswith("Numbers: [3, 12, 7]\nTarget: 24")
    assert all(tag in prompt for tag in ("<reasoning>", "</reasoning>", "<answer>", "</answer>"))


@pytest.mark.parametrize("operations", ["+-", "+-*", "+-*/"])
def test_demonstrations_use_only_the_operations_of_the_setting(operations):
    task = Countdown(prompt="compact", operations=operations, wrong_demo_fraction=0.0, test_problems=100)
    text = "".join(response for _, response in islice(task.demonstrations(random.Random(0)), 500))
    assert {sign for sign in "+-*/" if sign in text} == set(operations)


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("(12-7)*3", 1.0),
        ("3*(12-7)", 1.0),
        (" 3 * ( 12 - 7 ) ", 1.0),
        ("((3*((12)-(7))))", 1.0),
        ("3*12-7", 0.1),
        ("3/(12-7)", 0.1),
        ("15", 0.0),
        ("12+3", 0.0),
        ("12+3+7-7", 0.0),
        ("3*5", 0.0),
        ("12*7-3*23", 0.0),
        ("(12-7)*3=15", 0.0),
        ("3*(12-7", 0.0),
        ("3*12--7", 0.0),
        ("-7+12*3", 0.0),
        ("03*(12-7)", 0.0),
        ("3.0*(12-7)", 0.0),
        ("3**(12-7)", 0.0),
        ("12//7*3", 0.0),
        ("", 0.0),
        ("__import__('os').system('true')", 0.0),
        ("9**9**9", 0.0),
        ("(" * 100_000, 0.0),
        ("3\u00d7(12-7)", 0.0),
    ],
)
def test_grades_of_given_answers(answer, reward):
    responses = ((small, f"12-7=5;5*3=15:{answer}"), (d1, tagged(answer)))
    for task, response in responses:
        grade = task.grade(task.problem((3, 7, 12), 15), response)
        assert grade.reward == reward
        assert grade.correct == (reward == 1.0) == bool(grade.parts["solved"])
        assert grade.parts["format"] == (reward > 0)


def test_a_division_by_zero_is_well_formed_and_wrong():
    assert d1.grade(d1.problem((3, 3, 7), 7), tagged("7/(3-3)")).reward == 0.1


def test_intermediate_values_may_be_fractions():
    problem = Countdown(numbers=4).problem((3, 3, 8, 8), 24)
    assert Countdown(numbers=4).grade(problem, tagged("8/(3-8/3)")).correct


@given(st.lists(st.integers(1, 12), min_size=3, max_size=3), st.integers(1, 30), st.data())
def test_grades_agree_with_exact_evaluation(numbers, target, data):
    order = data.draw(st.permutations(numbers))
    text = expression_text(order, data.draw(st.tuples(*[st.sampled_from("+-*/")] * 2)), data.draw(st.integers(0, 2)))
    try:
        # Safe: the test builds this text from integers and four signs.
        value = eval(re.sub(r"(\d+)", r"F(\1)", text), {"F": Fraction})
    except ZeroDivisionError:
        value = None
    grade = d1.grade(d1.problem(numbers, target), tagged(text))
    assert grade.reward == (1.0 if value == target else 0.1)
    other = [*numbers[:2], numbers[2] + 1]
    assert d1.grade(d1.problem(other, target), tagged(text)).reward == 0.0


def test_the_last_closed_answer_counts():
    problem = d1.problem((3, 7, 12), 15)
    assert d1.grade(problem, "<answer>1</answer><answer>3*(12-7)</answer>").correct
    assert not d1.grade(problem, "<answer>3*(12-7)</answer><answer>1</answer>").correct
    assert d1.grade(problem, "<answer>3*(12-7)").reward == 0.0
    assert d1.grade(problem, "3*(12-7)").reward == 0.0
    assert small.grade(problem, "3*(12-7)").correct
    assert small.grade(problem, "3:3*(12-7)").correct
    assert not small.grade(problem, "3*(12-7):").correct


@given(st.text(max_size=40) | st.text("0123456789+-*/():;= <answer>", max_size=40))
def test_any_text_can_be_graded_and_protected(response):
    for task in (small, d1):
        problem = task.problem((3, 7, 12), 15)
        assert task.grade(problem, response).reward in (0.0, 0.1, 1.0)
        assert all(0 <= start < end <= len(response) for start, end in task.protected_spans(problem, response))


@pytest.mark.parametrize(
    ("task", "response", "protected"),
    [
        (small, "12-7=5;5*3=15:(12-7)*3", [":(12-7)*3"]),
        (small, "12-7=5:5*3=15:(12-7)*3", [":5*3=15:(12-7)*3"]),
        (small, "(12-7)*3=15;3=3:1", ["(12-7)*3", ":1"]),
        (small, "12-7=5;5*3=15", ["12-7=5;5*3=15"]),
        (small, "", []),
        (d1, "12-7=5 <answer>\n3*5\n</answer>!", ["<answer>\n3*5\n</answer>"]),
        (d1, "try (12 - 7) * 3 = 15 <answer>3", ["(12 - 7) * 3", "<answer>3"]),
        (d1, "the numbers 3, 7 and 12", []),
    ],
)
def test_answers_and_full_expressions_are_protected(task, response, protected):
    spans = task.protected_spans(task.problem((3, 7, 12), 15), response)
    assert [response[start:end] for start, end in spans] == protected


def split_into_words(task, text):
    return re.findall(task.vocabulary.pattern, text)


@pytest.mark.parametrize(("task", "length"), [(small, 19), (four, 29)])
def test_demonstrations_are_words_of_the_vocabulary_and_equally_long(task, length):
    words = set(task.vocabulary.words)
    assert len(words) == len(task.vocabulary.words)
    for prompt, response in islice(task.demonstrations(random.Random(0)), 300):
        assert set(split_into_words(task, prompt) + split_into_words(task, response)) <= words
        assert len(split_into_words(task, response)) == length


@pytest.mark.parametrize("task", [small, four, Countdown(prompt="compact", largest=20)])
def test_every_step_of_a_demonstration_is_correct_and_the_last_equals_the_expression(task):
    for _, response in islice(task.demonstrations(random.Random(1)), 300):
        steps, expression = response.split(":")
        for step in steps.split(";"):
            left, sign, right, value = re.fullmatch(r"(\d+)(\D)(\d+)=(\d+)", step).groups()
            value_of_step = eval(f"F({left}){sign}F({right})", {"F": Fraction})
            assert value_of_step == int(value) and int(left) >= int(right)
        assert eval(re.sub(r"(\d+)", r"F(\1)", expression), {"F": Fraction}) == value_of_step


def test_demonstrations_reach_the_target_or_are_the_sum_of_all_numbers():
    pairs = list(islice(small.demonstrations(random.Random(2)), 3000))
    num_sums = num_correct = 0
    for prompt, response in pairs:
        numbers, target = [int(number) for number in prompt.split("=")[0].split(",")], int(prompt.split("=")[1])
        assert small.split_of(numbers) == "train" and numbers == sorted(numbers)
        grade = small.grade(small.problem(numbers, target), response)
        is_sum = re.sub("[^+*/-]", "", response.split(":")[1]) == "++"
        assert grade.parts["format"] == 1 and (grade.correct or is_sum)
        num_correct += grade.correct
        num_sums += sum(numbers) == target
    sum_fraction = num_sums / len(pairs)
    assert num_correct / len(pairs) == pytest.approx(0.3 + 0.7 * sum_fraction, abs=0.03)
    assert pairs == list(islice(small.demonstrations(random.Random(2)), 3000))


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.integers(1, 40))
def test_solve_finds_a_solution_exactly_when_one_with_positive_integer_steps_exists(numbers, target):
    def values(items):
        if len(items) == 1:
            return set(items)
        return {
            value
            for a, b, *rest in permutations(items)
            for result in (a + b, a - b, a * b, Fraction(a, b))
            if result.denominator == 1 and 1 <= result <= 40
            for value in values([int(result), *rest])
        }

    solution = solve(tuple(numbers), target, "+-*/", 40)
    assert (solution is not None) == (target in values(numbers))
    if solution is not None:
        assert d1.grade(d1.problem(numbers, target), tagged(solution.text)).correct


def test_derivations_have_the_greater_operand_first():
    assert solve((3, 7, 12), 33, "+-*", 60) == Derivation(33, "(7*3)+12", ("7*3=21", "21+12=33"))
    sum_of_all = add_up((3, 7, 12), 60)
    assert sum_of_all is not None and sum_of_all.response == "7+3=10;12+10=22:12+(7+3)"
    assert add_up((30, 31, 12), 60) is None
    items = [Derivation(2, "2"), Derivation(5, "5")]
    texts = [derivation.text for derivation in all_derivations(items, "+-*/", 60)]
    assert texts == ["5+2", "5-2", "5*2"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("numbers", 5),
        ("largest", 0),
        ("largest", 1001),
        ("target", (0, 10)),
        ("target", (10, 5)),
        ("train_problems", 0),
        ("test_problems", 0),
        ("wrong_demo_fraction", -0.1),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(setting, value):
    with pytest.raises(RecipeError, match=rf"task\.{setting} is .*; it is .* must lie in \[.*; try "):
        Countdown(**{setting: value})


def test_error_messages_say_what_to_do():
    with pytest.raises(RecipeError, match="split is 'dev'"):
        d1.problems("dev")
    with pytest.raises(RecipeError, match="set task.prompt to 'compact'"):
        d1.demonstrations(random.Random(0))
    with pytest.raises(RecipeError, match="set task.prompt to 'compact'"):
        _ = d1.vocabulary


def test_settings_with_too_few_puzzles_are_an_error():
    with pytest.raises(RecipeError, match="ask for at most"):
        Countdown(largest=2, target=(1, 4)).problems("test")
    with pytest.raises(RecipeError, match="ask for at most"):
        Countdown(prompt="compact", largest=2, target=(1000, 1000)).demonstrations(random.Random(0))
