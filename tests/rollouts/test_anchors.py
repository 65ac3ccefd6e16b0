"""Anchors: which tokens are eligible, which are selected, and how a store is saved, loaded and refused."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stipule.errors import CheckpointError, RecipeError
from stipule.models.loading import ModelConfig, load_policy
from stipule.rollouts import pregenerate as module
from stipule.rollouts.anchors import AnchorStore, eligible_tokens
from stipule.rollouts.pregenerate import pregenerate, read_texts, store_from_texts
from stipule.rollouts.pruning import FixedCutoff, SpatialPruning, select_anchors
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.rollouts.schedule import num_anchors
from stipule.tasks.sudoku import Sudoku
from tests.toys import COUNTDOWN

SUDOKU = Sudoku(prompt="compact", blanks=(6, 11), train_problems=12, test_problems=12)


@pytest.fixture(scope="module")
def tiny():
    return load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))


@given(
    st.lists(st.lists(st.booleans(), min_size=10, max_size=10), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]),
    st.sampled_from(["confident", "random"]),
    st.integers(0, 99),
)
def test_exactly_m_eligible_tokens_are_fixed_or_all_if_there_are_fewer(eligible, ratio, keep, seed):
    allowed = torch.tensor(eligible)
    generator = torch.Generator().manual_seed(seed)
    confidence, noise = torch.rand(allowed.shape, generator=generator), torch.rand(allowed.shape, generator=generator)
    fixed = select_anchors(allowed, confidence, ratio, keep, noise)
    assert not bool((fixed & ~allowed).any())
    assert fixed.sum(1).tolist() == [min(num_anchors(ratio, 10), int(n)) for n in allowed.sum(1)]


def test_confident_anchors_are_the_most_confident_and_noise_breaks_ties():
    eligible = torch.tensor([[True, True, False, True, True]])
    confidence = torch.tensor([[0.9, 1.0, 1.0, 1.0, 0.2]])
    noise = torch.tensor([[0.0, 0.1, 0.9, 0.8, 0.5]])
    assert select_anchors(eligible, confidence, 0.2, "confident", noise).tolist() == [
        [False, False, False, True, False]
    ]
    assert select_anchors(eligible, confidence, 0.4, "confident", noise).tolist() == [[False, True, False, True, False]]
    assert select_anchors(eligible, confidence, 0.4, "random", noise).tolist() == [[False, False, False, True, True]]


def test_no_anchor_is_an_eos_a_special_token_or_a_token_of_the_answer(tiny):
    problems = SUDOKU.problems("train")
    sampler = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16, temperature=1.5)
    noise = sampler.sample_noise(len(problems), torch.Generator().manual_seed(0))
    sampled = sampler(tiny, tiny.encode([p.prompt for p in problems]), noise)
    ended = sampled.completion_ids.clone()
    ended[:, 9:] = tiny.eos_id  # an end in the middle: nothing after it may be fixed either
    completion_mask = torch.arange(16).expand_as(ended) <= 9

    for rollouts in (sampled, replace(sampled, completion_ids=ended, completion_mask=completion_mask)):
        eligible = eligible_tokens(tiny, SUDOKU, problems, rollouts)
        assert bool(eligible.any()) or rollouts is not sampled  # a truncated response may have no eligible token
        special = torch.isin(rollouts.completion_ids, torch.tensor([tiny.eos_id, tiny.pad_id, tiny.mask_id]))
        assert not bool((eligible & (special | ~rollouts.completion_mask)).any())
        # The answer of a compact Sudoku is the content of the blank cells.
        blank = torch.tensor([[cell == "0" for cell in p.prompt] for p in problems])
        assert not bool((eligible & blank).any())


def test_all_rows_of_a_group_have_the_same_anchors_and_unknown_problems_have_none(tiny):
    problems = SUDOKU.problems("train")
    store = pregenerate(
        tiny, SUDOKU, problems[:4], SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16), 0, 4
    )
    assert store.model_calls == 4 * 16
    keys = [problems[0].key, "never seen", problems[2].key]
    anchors = store.select(keys, 3, SpatialPruning(ratio=0.25), torch.rand(3, 16))
    assert anchors.fixed_mask.sum(1).tolist() == [4] * 3 + [0] * 3 + [4] * 3
    for first in (0, 3, 6):
        assert bool((anchors.fixed_mask[first : first + 3] == anchors.fixed_mask[first]).all())


def test_a_store_is_loaded_as_saved_and_refused_if_its_length_differs(tiny, tmp_path):
    problems = SUDOKU.problems("train")[:3]
    store = pregenerate(
        tiny, SUDOKU, problems, SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16), 0, 4
    )
    path = tmp_path / "anchors.safetensors"
    store.save(path, tiny)
    again = AnchorStore.load(path, tiny, 16)
    assert (again.row_of_key, again.model_calls) == (store.row_of_key, store.model_calls)
    for name, tensor in store.table.items():
        assert torch.equal(again.table[name], tensor)
    with pytest.raises(CheckpointError, match="have length 16"):
        AnchorStore.load(path, tiny, 32)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="stipule anchors build"):
        AnchorStore.load(path, tiny, 16)


def test_a_later_response_replaces_an_earlier_one(tiny):
    problems = SUDOKU.problems("train")[:2]
    sampler = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16)
    rollouts = sampler(tiny, tiny.encode([p.prompt for p in problems]), sampler.sample_noise(2, torch.Generator()))
    store = AnchorStore(16, tiny.vocab_size)
    eligible = eligible_tokens(tiny, SUDOKU, problems, rollouts)
    right = torch.tensor([True, False])
    store.put(["a", "b"], rollouts, eligible, right)
    store.put(["b", "c"], rollouts, eligible, right)
    assert list(store.row_of_key) == ["a", "b", "c"]
    assert torch.equal(store.table["token_ids"][1], rollouts.completion_ids[0].int())
    assert store.table["correct"].tolist() == [True, True, False]


def test_anchors_of_other_weights_another_tokenizer_or_an_unfinished_store_are_refused(tiny, tmp_path):
    problems = SUDOKU.problems("train")[:3]
    sampler = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16)
    path = tmp_path / "a.safetensors"
    store = pregenerate(tiny, SUDOKU, problems, sampler, 0, 2, path=path)
    changed = load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))
    with torch.no_grad():
        changed.unwrapped_model.get_output_embeddings().weight += 0.01
    with pytest.raises(CheckpointError, match="made with other weights"):
        AnchorStore.load(path, changed, 16)
    AnchorStore.load(path, changed, 16, same_model=False)  # a resumed run has changed its weights
    changed.tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(CheckpointError, match="another tokenizer"):
        AnchorStore.load(path, changed, 16, same_model=False)
    store.save(path, tiny, finished=False)
    with pytest.raises(CheckpointError, match="run the same stipule anchors build again"):
        AnchorStore.load(path, tiny, 16)


def test_an_interrupted_store_continues_to_the_same_result(tiny, tmp_path, monkeypatch):
    problems = SUDOKU.problems("train")
    sampler = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16)
    whole = pregenerate(tiny, SUDOKU, problems, sampler, 0, 3)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    path = tmp_path / "a.safetensors"

    def stop(done, total):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pregenerate(tiny, SUDOKU, problems, sampler, 0, 3, stop, path)
    begun = AnchorStore.load(path, tiny, 16, unfinished=True)
    assert len(begun) == 6
    again = pregenerate(tiny, SUDOKU, problems, sampler, 0, 3, path=path, unfinished_store=begun)
    assert again.model_calls == whole.model_calls
    for name, tensor in whole.table.items():
        assert torch.equal(again.table[name], tensor)
    with pytest.raises(RecipeError, match=r"other settings \(seed\)"):
        pregenerate(tiny, SUDOKU, problems, sampler, 1, 3, path=path, unfinished_store=AnchorStore.load(path, tiny, 16))


def test_anchors_from_texts_start_at_the_first_position(tiny):
    problems = SUDOKU.problems("train")[:4]
    texts = {p.key: SUDOKU.reference(p) for p in problems[:3]}
    store = store_from_texts(tiny, SUDOKU, problems, texts, 16, 2)
    assert (len(store), store.model_calls) == (3, 3)
    assert store.table["correct"].all()
    for problem in problems[:3]:
        row = store.row_of_key[problem.key]
        assert tiny.decode(store.table["token_ids"][row][None].long()) == [texts[problem.key]]
        clues = torch.tensor([cell != "0" for cell in problem.prompt])
        assert torch.equal(store.table["eligible"][row], clues)
        confidence = store.table["confidence"][row]
        assert bool((confidence[clues] > 0.9).all()) and bool((confidence[~clues] == 0).all())


def test_only_correct_gives_anchors_of_correct_responses_only(tiny):
    problems = SUDOKU.problems("train")
    store = pregenerate(
        tiny,
        SUDOKU,
        problems,
        SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16, temperature=1.0),
        0,
        12,
    )
    store.table["correct"][::2], store.table["correct"][1::2] = True, False
    anchors = store.select(
        [p.key for p in problems], 1, SpatialPruning(ratio=0.25, only_correct=True), torch.rand(12, 16)
    )
    assert anchors.fixed_mask.sum(1).tolist() == [4, 0] * 6


def test_a_file_of_responses_is_read_by_key_or_prompt_and_its_errors_name_the_line(tmp_path):
    problems = SUDOKU.problems("train")[:3]
    path = tmp_path / "rollouts.jsonl"

    def written(*rows):
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return read_texts(path, problems)

    good = {"key": problems[0].key, "response": "1"}
    other = {"prompt": problems[1].prompt, "response": "2"}
    assert written(good, other, {"key": "unknown", "response": "3"}) == {problems[0].key: "1", problems[1].key: "2"}
    for rows, message in (
        ((good, "{"), "line 2 is not a JSON object"),
        ((good, {"key": "x"}), "line 2 is not a JSON object"),
        (("[]",), "line 1 is not a JSON object"),
        ((good, good), "line 2 is a second response"),
        (({"key": "x", "response": 3},), "line 1 has a response that is no text"),
        (({"key": "x", "response": "3"},), "no response to any"),
    ):
        with pytest.raises(RecipeError, match=message):
            written(*rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpatialPruning(ratio=1.0), "fraction of fixed tokens"),
        (lambda: SpatialPruning(ratio=0.1, source="none"), "no source of anchors"),
        (lambda: SpatialPruning(source="previous_epoch", path="x"), "remove one of the two"),
        (lambda: SpatialPruning(source="file"), "there is no path"),
        (lambda: FixedCutoff(cutoff=1.0), "fraction of masks left"),
    ],
)
def test_impossible_prunings_are_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_countdown_protects_its_whole_answer():
    problem = COUNTDOWN.problems("train")[0]
    spans = COUNTDOWN.protected_spans(problem, "7*3=21:(7*3)+12")
    assert spans
    assert any("7*3=21:(7*3)+12"[start:stop].endswith("(7*3)+12") for start, stop in spans)
