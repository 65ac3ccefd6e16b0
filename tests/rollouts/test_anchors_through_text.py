"""The other choices of the authors' code: tags may be anchors, and anchors pass through text."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from stipule.config.recipe import load_recipe
from stipule.errors import CheckpointError, RecipeError
from stipule.evaluation.leakage import check_leakage
from stipule.models.loading import ModelConfig, load_policy
from stipule.report.leakage_table import verdict
from stipule.rng import make_generator
from stipule.rollouts.anchors import AnchorStore, eligible_tokens
from stipule.rollouts.pregenerate import pregenerate
from stipule.rollouts.pruning import Anchors, Pruning, SpatialPruning
from stipule.rollouts.retokenize import num_changed_rows, retokenize_anchors
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.answer_content import content_spans
from stipule.tasks.gsm8k import Gsm8k
from stipule.tasks.sudoku import Sudoku
from stipule.training.anchor_source import temporary_store
from stipule.training.collect_rollouts import select_anchors_of_step
from stipule.training.context import RunContext
from stipule.training.pretrain import Shape, new_policy
from tests.published_stp import published_candidates, published_text_anchors
from tests.rollouts.test_anchor_leaks import Characters, respond

GSM8K = Gsm8k()
PROBLEM = GSM8K.problem("q", "14", "work")
PIECES = [
    "<answer>",
    "</answer>",
    "\\boxed{",
    "\\boxed",
    "{",
    "}",
    "\\{",
    "14",
    "4",
    "= 14",
    " x ",
    "14.",
    "\n",
    ">\n",
    "",
]
SUDOKU = Sudoku(prompt="compact", blanks=(6, 11), train_problems=6, test_problems=6)


@pytest.fixture(scope="module")
def characters():
    return new_policy(Shape(width=16, layers=1, heads=1, mlp=16), Characters(), seed=0, autocast=False)


@given(st.lists(st.sampled_from(PIECES), max_size=12))
@example(["\\boxed{", "\\boxed{", "4", "}"])  # the outer box is never closed
@example(["<answer>", "14", "<answer>", "4", "</answer>", "</answer>", "14"])
def test_only_the_content_of_tags_and_boxes_is_protected_as_in_the_authors_code(characters, pieces):
    rollouts = respond(characters, "".join(pieces))
    eligible = eligible_tokens(characters, GSM8K, [PROBLEM], rollouts, "answer_content")[0].tolist()
    inside = rollouts.completion_mask[0].tolist()
    ids = [token for token, is_inside in zip(rollouts.completion_ids[0].tolist(), inside, strict=True) if is_inside]
    texts = [characters.token_text(token) for token in ids]
    expected = [bool(text) and candidate for text, candidate in zip(texts, published_candidates(texts), strict=True)]
    assert [e for e, is_inside in zip(eligible, inside, strict=True) if is_inside] == expected
    assert not any(e for e, is_inside in zip(eligible, inside, strict=True) if not is_inside)


def test_tags_and_copies_may_be_anchors_only_if_the_recipe_says_so(characters):
    text = "so 14 <answer>14</answer>"
    rollouts = respond(characters, text)

    def eligible_text(protect):
        eligible = eligible_tokens(characters, GSM8K, [PROBLEM], rollouts, protect)[0]
        ids = rollouts.completion_ids[0][eligible].tolist()
        return "".join(map(characters.token_text, ids))

    assert eligible_text("answer") == "so  "
    assert eligible_text("answer_content") == "so 14 <answer></answer>"
    assert content_spans(text) == [(14, 16)]


def test_a_task_without_tags_keeps_its_answer_protected():
    policy = load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))
    problems = SUDOKU.problems("train")
    sampler = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16)
    plain, content = (
        pregenerate(policy, SUDOKU, problems, sampler, 0, 6, protect=p) for p in ("answer", "answer_content")
    )
    assert torch.equal(plain.table["eligible"], content.table["eligible"])
    settings = ["pruning.spatial.protect=answer_content"]
    assert "have no tags" in load_recipe("quickstart", settings).settings_without_effect()[0]


@given(st.lists(st.tuples(st.sampled_from("14. =x<>\n}"), st.booleans()), min_size=1, max_size=24), st.integers(0, 4))
@example([("1", True), ("4", True), (".", True), ("x", True)], 2)  # one token: what follows moves
def test_anchors_are_those_of_the_decoded_and_encoded_response(characters, tokens, after_end):
    ids = [characters.tokenizer.convert_tokens_to_ids(text) for text, _ in tokens]
    fixed = [is_anchor for _, is_anchor in tokens]
    row = torch.tensor([ids + [characters.eos_id] * after_end] * 2)
    mask = torch.tensor([fixed + [False] * after_end] * 2)
    result = retokenize_anchors(characters, Anchors(row, mask))
    expected = published_text_anchors(characters.tokenizer, characters.mask_id, ids, fixed, row.shape[1])
    got = {i: int(result.token_ids[0, i]) for i in range(row.shape[1]) if bool(result.fixed_mask[0, i])}
    assert got == (expected if any(fixed) else {})
    before = {i: token for i, token in enumerate(ids) if fixed[i]}
    assert num_changed_rows(Anchors(row, mask), result) == 2 * (got != before)


def test_the_stored_response_is_that_of_its_text_and_its_confidence_of_these_tokens(characters):
    """Random weights write 1, 4 and a full stop as three tokens; their text has one."""
    sampler = SemiAutoregressiveSampler(gen_length=24, steps=24, block_length=24, temperature=1.5)
    problems = [GSM8K.problem(f"question {i}", "14", "work") for i in range(12)]
    plain = pregenerate(characters, GSM8K, problems, sampler, 0, 5)
    stored = pregenerate(characters, GSM8K, problems, sampler, 0, 5, confidence="fully_masked", retokenize=True)
    changed = 0
    for key, row in plain.row_of_key.items():
        text = characters.decode(plain.table["token_ids"][row][None].long())[0]
        encoded = characters.tokenizer(text, add_special_tokens=False)["input_ids"][:24]
        ids = stored.table["token_ids"][stored.row_of_key[key]].tolist()
        assert ids == encoded + [characters.eos_id] * (24 - len(encoded))
        confident = stored.table["confidence"][stored.row_of_key[key]] > 0
        assert confident.tolist() == [i < len(encoded) for i in range(24)]
        changed += ids != plain.table["token_ids"][row].tolist()
    assert changed > 0
    assert stored.model_calls == plain.model_calls + len(problems)


def test_one_character_per_token_comes_back_as_it_was_and_the_check_of_anchors_says_so():
    policy = load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))
    problems = SUDOKU.problems("train")
    settings = ["pruning.spatial.confidence=fully_masked", "pruning.spatial.retokenize=true"]
    recipe = load_recipe("quickstart", [*settings, "task.train_problems=6"])
    store = temporary_store(recipe, policy, problems, lambda done, total: None)
    result = check_leakage(policy, SUDOKU, problems, recipe.sampler, recipe.pruning, store, 2, 0)
    assert result["changed_by_text"] == 0 and result["anchors"] == 2.0


def test_the_check_of_anchors_counts_those_that_text_changes(characters):
    text = "so 1"
    rollouts = respond(characters, text)
    ids = [characters.tokenizer.convert_tokens_to_ids(c) for c in "14.x"]
    rollouts.completion_ids[0, :4] = torch.tensor(ids)
    store = AnchorStore(rollouts.completion_ids.shape[1], characters.vocab_size)
    everything = torch.arange(rollouts.completion_ids.shape[1])[None] < 4
    store.put([PROBLEM.key], rollouts, everything, torch.tensor([True]))
    spatial = SpatialPruning(ratio=0.5, confidence="fully_masked", retokenize=True)
    width = rollouts.completion_ids.shape[1]
    sampler = SemiAutoregressiveSampler(gen_length=width, steps=width, block_length=width)
    result = check_leakage(characters, GSM8K, [PROBLEM], sampler, Pruning(spatial=spatial), store, 2, 0)
    assert result["changed_by_text"] == 1
    assert "in 1 of them the text gives back other anchors" in verdict(result)


def test_training_takes_the_anchors_of_the_text_only_if_the_recipe_says_so():
    """A tokenizer that loses every 1: the anchors after it move to the left."""
    policy = load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))
    tokenizer, problems = policy.tokenizer, SUDOKU.problems("train")

    class Forgetful:
        all_special_ids = tokenizer.all_special_ids

        def decode(self, ids, skip_special_tokens):
            return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens).replace("1", "")

        def __call__(self, text, add_special_tokens):
            return tokenizer(text, add_special_tokens=add_special_tokens)

    names = ["ratio_of=eligible", "ratio=0.9", "confidence=fully_masked"]
    for retokenize in (False, True):
        settings = [f"pruning.spatial.{name}" for name in (*names, f"retokenize={str(retokenize).lower()}")]
        recipe = load_recipe("quickstart", [*settings, "training.num_generations=2"])
        run = RunContext.single_process(recipe, policy, torch.optim.SGD(policy.model.parameters(), lr=0.1))
        run = replace(run, anchor_store=temporary_store(recipe, policy, problems, lambda done, total: None))
        noise = torch.rand(6, 16, generator=make_generator(recipe.training.seed, 0, "anchors"))
        keys = [p.key for p in problems]
        plain = run.anchor_store.select(keys, 2, recipe.pruning.spatial, noise)
        policy.tokenizer = Forgetful()
        anchors = select_anchors_of_step(run, problems, 0)
        policy.tokenizer = tokenizer
        one = tokenizer.convert_tokens_to_ids("1")
        fixed_ones = ((plain.token_ids == one) & plain.fixed_mask).any(1)
        assert bool(fixed_ones.any()) and num_changed_rows(plain, anchors) == retokenize * int(fixed_ones.sum())
        assert not retokenize or not bool(((anchors.token_ids == one) & anchors.fixed_mask).any())


def test_contradictions_are_refused_by_name(tmp_path):
    with pytest.raises(RecipeError, match="only pre-generated responses pass through text"):
        SpatialPruning(ratio=0.1, source="previous_epoch", retokenize=True)
    with pytest.raises(RecipeError, match="which belongs to the tokens before they were encoded again"):
        SpatialPruning(ratio=0.1, retokenize=True)
    policy = load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))
    sampler = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16)
    problems = SUDOKU.problems("train")
    pregenerate(policy, SUDOKU, problems, sampler, 0, 6).save(tmp_path / "a.safetensors", policy)
    settings = [f"pruning.spatial.path={tmp_path / 'a.safetensors'}", "pruning.spatial.protect=answer_content"]
    with pytest.raises(
        CheckpointError, match=r"made with protect answer, and pruning.spatial.protect is answer_content"
    ):
        temporary_store(load_recipe("quickstart", settings), policy, problems, lambda done, total: None)
