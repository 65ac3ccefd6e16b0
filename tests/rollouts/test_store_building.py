"""Building a store of anchors and grading a batch: who computes what, what is counted, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from stipule.errors import CheckpointError, RecipeError, RewardError, StipuleError
from stipule.models.loading import ModelConfig, load_policy
from stipule.rollouts import pregenerate as module
from stipule.rollouts.anchors import AnchorStore, anchor_priority
from stipule.rollouts.block_kv_cache import CacheConfig
from stipule.rollouts.pregenerate import SingleProcess, pregenerate, store_from_texts
from stipule.rollouts.pruning import STP, ConfidenceCutoff, FixedCutoff, Pruning, SpatialPruning
from stipule.rollouts.reward_batch import RewardBatch, compute_rewards, grade_responses, token_lists
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Grade
from stipule.tasks.sudoku import Sudoku
from tests.toys import response

SUDOKU = Sudoku(prompt="compact", blanks=(6, 11), train_problems=7, test_problems=6)
SAMPLER = SemiAutoregressiveSampler(gen_length=16, steps=8, block_length=16, temperature=1.0)
PROBLEMS = SUDOKU.problems("train")


@pytest.fixture(scope="module")
def tiny():
    return load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))


class OneOfTwo(SingleProcess):
    """One of two processes; the batches of the other are `others`, one exchange after the other."""

    def __init__(self, rank, others):
        object.__setattr__(self, "rank", rank)
        object.__setattr__(self, "world_size", 2)
        object.__setattr__(self, "others", iter(others))
        object.__setattr__(self, "sent", [])

    def all_gather_object(self, local):
        self.sent.append(list(local))
        other = next(self.others)
        return [*local, *other] if self.rank == 0 else [*other, *local]


class Alone(SingleProcess):
    """One process that keeps what it sends."""

    def __init__(self):
        object.__setattr__(self, "sent", [])

    def all_gather_object(self, local):
        self.sent.append(list(local))
        return list(local)


def same(store, other):
    assert list(store.row_of_key) == list(other.row_of_key) and store.model_calls == other.model_calls
    for name, column in store.table.items():
        assert torch.equal(column, other.table[name]), name


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_build_the_store_of_one_and_only_the_first_writes(rank, tiny, tmp_path):
    """Seven problems in batches of two are four batches: two for each process. Progress is the same for both."""
    alone, seen, reports = Alone(), [], []
    whole = pregenerate(
        tiny, SUDOKU, PROBLEMS, SAMPLER, 3, 2, lambda *at: seen.append(at), tmp_path / "whole", processes=alone
    )
    assert seen == [(0, 7), (2, 7), (4, 7), (6, 7), (7, 7)]
    batches = [batch for (batch,) in alone.sent]
    others = [[batch] for batch in batches[1 - rank :: 2]]
    ranks = OneOfTwo(rank, others)
    path = tmp_path / "store"
    store = pregenerate(tiny, SUDOKU, PROBLEMS, SAMPLER, 3, 2, lambda *at: reports.append(at), path, processes=ranks)
    assert reports == [(0, 7), (4, 7), (7, 7)]
    assert [batch.keys for (batch,) in ranks.sent] == [batch.keys for batch in batches[rank::2]]
    same(store, whole)
    assert path.exists() == (rank == 0)
    if rank == 0:
        same(AnchorStore.load(path, tiny, 16), whole)
        assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_process_without_a_batch_sends_nothing(tiny):
    """Three batches of two processes: the second has nothing to do in the last exchange."""
    alone = Alone()
    whole = pregenerate(tiny, SUDOKU, PROBLEMS[:6], SAMPLER, 3, 2, processes=alone)
    ranks = OneOfTwo(1, [alone.sent[0], alone.sent[2]])
    same(pregenerate(tiny, SUDOKU, PROBLEMS[:6], SAMPLER, 3, 2, processes=ranks), whole)
    assert [len(sent) for sent in ranks.sent] == [1, 0]


def test_a_finished_store_costs_no_forward_pass(tiny):
    store = pregenerate(tiny, SUDOKU, PROBLEMS, SAMPLER, 3, 2)
    calls, seen, alone = store.model_calls, [], Alone()
    again = pregenerate(
        tiny, SUDOKU, PROBLEMS, SAMPLER, 3, 2, lambda *at: seen.append(at), unfinished_store=store, processes=alone
    )
    assert again is store and store.model_calls == calls and seen == [(7, 7)] and not alone.sent
    assert (store.settings["task"], store.settings["seed"], store.settings["batch_size"]) == (SUDOKU.name, 3, 2)


def test_a_store_is_written_on_the_way_only_after_the_time_for_it(tiny, tmp_path, monkeypatch):
    saves, save = [], AnchorStore.save
    monkeypatch.setattr(AnchorStore, "save", lambda s, *a, **k: saves.append((len(s), k)) or save(s, *a, **k))
    clock = iter(range(0, 10**6, 20))  # seconds: 20 from one look at the clock to the next
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    pregenerate(tiny, SUDOKU, PROBLEMS, SAMPLER, 3, 1, path=tmp_path / "a")
    assert [kept for kept, _ in saves] == [2, 4, 6, 7]  # after 40 s: two batches, the second look resets the clock
    assert [k.get("finished", True) for _, k in saves] == [False, False, False, True]


def test_a_confidence_of_the_fully_masked_response_is_one_more_forward_pass(tiny):
    plain = pregenerate(tiny, SUDOKU, PROBLEMS[:4], SAMPLER, 3, 4)
    masked = pregenerate(tiny, SUDOKU, PROBLEMS[:4], SAMPLER, 3, 4, confidence="fully_masked")
    assert masked.model_calls == plain.model_calls + 4
    assert torch.equal(masked.table["token_ids"], plain.table["token_ids"])
    assert not torch.allclose(masked.table["confidence"], plain.table["confidence"])


def test_texts_of_other_lengths_are_cut_or_end_early(tiny):
    references = [SUDOKU.reference(p) for p in PROBLEMS[:3]]
    texts = {PROBLEMS[0].key: references[0][:5], PROBLEMS[2].key: references[2] + "1234", "unknown": "1"}
    seen = []
    store = store_from_texts(tiny, SUDOKU, PROBLEMS[:3], texts, 16, 1, progress=lambda *at: seen.append(at))
    assert list(store.row_of_key) == [PROBLEMS[0].key, PROBLEMS[2].key] and store.model_calls == 2
    assert store.settings == {"task": SUDOKU.name, "texts": 3} and seen == [(0, 2), (1, 2), (2, 2)]
    ids = store.table["token_ids"]
    assert tiny.decode(ids[1:].long()) == [references[2]]
    assert ids[0, 5:].tolist() == [tiny.eos_id] * 11 and not bool(store.table["eligible"][0, 5:].any())
    assert store.table["correct"].tolist()[0] is False


def test_a_changed_file_an_old_format_or_another_vocabulary_is_refused(tiny, tmp_path):
    path = tmp_path / "a"
    store = pregenerate(tiny, SUDOKU, PROBLEMS[:2], SAMPLER, 3, 2, path=path)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"are damaged.*stipule anchors build RECIPE --out"):
        AnchorStore.load(path, tiny, 16)
    save_file(store.table, path, {"stipule": json.dumps({"format": 1})})
    with pytest.raises(CheckpointError, match="an earlier version"):
        AnchorStore.load(path, tiny, 16)
    save_file(store.table, path)
    with pytest.raises(CheckpointError, match="no readable anchor store"):
        AnchorStore.load(path, tiny, 16)
    store.vocab_size += 1
    store.save(path, tiny)
    with pytest.raises(CheckpointError, match=f"a vocabulary of {tiny.vocab_size + 1}; this run has length 16"):
        AnchorStore.load(path, tiny, 16)


def test_an_empty_store_selects_nothing(tiny):
    anchors = AnchorStore(16, tiny.vocab_size).select(["a", "b"], 3, SpatialPruning(ratio=0.25), torch.rand(2, 16))
    assert anchors.token_ids.shape == anchors.fixed_mask.shape == (6, 16) and not bool(anchors.fixed_mask.any())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_batches_are_joined_row_by_row_with_gaps_where_nothing_was_logged(order):
    def batch(*rewards, **logged):
        grades = [Grade(r, {}, r > 1) for r in rewards]
        texts = [f"text {r}" for r in rewards]
        return RewardBatch(texts, grades, torch.tensor(rewards), torch.tensor([g.correct for g in grades]), **logged)

    parts = [
        batch(1.0, 2.0, metrics={"b": [1.0], "a": [2.0, 3.0]}, columns={"x": [5, 6]}),
        batch(3.0, metrics={"a": [4.0]}, columns={"y": [7]}),
    ]
    first, second = (parts[i] for i in order)
    joined = RewardBatch.concatenate([first, second])
    assert joined.texts == first.texts + second.texts and joined.grades == first.grades + second.grades
    assert joined.rewards.tolist() == first.rewards.tolist() + second.rewards.tolist()
    assert joined.correct.tolist() == first.correct.tolist() + second.correct.tolist()
    assert joined.metrics == {"a": [2.0, 3.0, 4.0] if order == (0, 1) else [4.0, 2.0, 3.0], "b": [1.0]}
    x, y = [5, 6, None], [None, None, 7]
    assert joined.columns == ({"x": x, "y": y} if order == (0, 1) else {"x": [None, 5, 6], "y": [7, None, None]})
    assert list(joined.metrics) == ["a", "b"] and list(joined.columns) == ["x", "y"]
    assert RewardBatch.concatenate([first]) is first


def test_tokens_of_a_response_end_with_its_end_of_text():
    rollouts = response([[1, 2, 3], [4, 5, 6]], completion_mask=[[True, True, False], [True, True, True]])
    assert token_lists(rollouts) == [[1, 2], [4, 5, 6]]


def test_adjacent_rows_are_graded_by_their_problem(tiny):
    answers = [SUDOKU.reference(p) for p in PROBLEMS[:2]]
    rows = [answers[0], answers[1], answers[1], answers[0]]
    ids = [tiny.tokenizer(text, add_special_tokens=False)["input_ids"] for text in rows]
    batch = grade_responses(tiny, SUDOKU, PROBLEMS[:2], response(ids))
    assert batch.texts == rows and batch.correct.tolist() == [True, False, True, False]
    assert batch.rewards.tolist() == [grade.reward for grade in batch.grades]
    assert (batch.rewards.dtype, batch.correct.dtype) == (torch.float32, torch.bool)
    assert batch.metrics == batch.columns == {}


def test_a_reward_that_is_no_finite_number_names_the_first_such_row():
    class Bad(Sudoku):
        def grade(self, problem, text):
            return Grade({"good": 1.0, "nan": float("nan"), "inf": float("inf")}[text], {}, False)

    with pytest.raises(RewardError, match=rf"{PROBLEMS[1].key}' is inf; .*'inf'"):
        compute_rewards(Bad(), PROBLEMS[:3], ["good", "inf", "nan"], [[1]] * 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpatialPruning(ratio=-0.1), r"ratio is -0.1; .* try 0.05"),
        (lambda: SpatialPruning(confidence="fully_masked", source="file", path="x"), "fully_masked with source file"),
        (lambda: FixedCutoff(cutoff=-0.1), r"cutoff is -0.1; .*\[0, 1\); try 0.05"),
        (lambda: ConfidenceCutoff(cutoff=1.0), "cutoff is 1.0; it is the largest fraction"),
        (lambda: ConfidenceCutoff(threshold=1.1), r"threshold is 1.1; .*\[0, 1\]; try 0.9"),
        (lambda: CacheConfig(refresh=1), "refresh is 1; "),
        (lambda: CacheConfig(refresh=-2), "refresh is -2; "),
        (lambda: CacheConfig(kind="finished_blocks", refresh=2), "stay exact"),
        (lambda: replace(SAMPLER, confidence_threshold=0.0), r"confidence_threshold is 0.0; .*\(0, 1\]; try 0.95"),
        (lambda: replace(SAMPLER, confidence_threshold=1.1), "confidence_threshold is 1.1"),
        (lambda: replace(SAMPLER, confidence_threshold=0.5, remasking="random"), "does not use confidence"),
        (lambda: STP(1.0), "pruning.spatial.ratio is 1.0"),
        (lambda: STP(0.0, 1.0), "pruning.temporal.cutoff is 1.0"),
    ],
)
def test_settings_outside_their_range_are_refused_by_name_and_value(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_settings_at_the_ends_of_their_range_are_accepted():
    assert STP() == Pruning(spatial=SpatialPruning(ratio=0.05), temporal=FixedCutoff(cutoff=0.05))
    assert ConfidenceCutoff(cutoff=0.0, threshold=1.0).finish_window(16) == 0
    assert ConfidenceCutoff(cutoff=0.25, threshold=0.0).finish_window(16) == 4
    assert FixedCutoff(cutoff=0.25).finish_window(16) == 0
    assert SpatialPruning(source="pregenerated", path="x").path == SpatialPruning(source="file", path="x").path
    assert CacheConfig(refresh=2).refresh == 2
    assert replace(SAMPLER, confidence_threshold=1.0).approximate and not SAMPLER.approximate
    cached = replace(SAMPLER, cache=CacheConfig(kind="dual"), confidence_threshold=0.5)
    assert cached.approximate and cached.exact() == SAMPLER


@pytest.mark.parametrize(
    ("changes", "draws"),
    [
        ({}, 1),
        ({"resample_noise": True}, 8),
        ({"resample_noise": True, "block_schedule": "fixed"}, 9),
        ({"resample_noise": True, "block_schedule": "separate", "block_length": 8}, 8 + 1 + 2),
        ({"resample_noise": True, "block_schedule": "separate", "steps": 16}, 16),
    ],
)
def test_there_is_noise_for_every_forward_pass_that_a_rollout_can_need(changes, draws):
    noise = replace(SAMPLER, **changes).sample_noise(3, torch.Generator().manual_seed(0))
    assert (noise.uniform.shape, noise.position_noise.shape) == ((draws, 3, 16), (3, 16))
    assert torch.equal(noise[1:].uniform, noise.uniform[:, 1:])
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(noise.uniform, torch.rand(draws, 3, 16, generator=generator))
    assert torch.equal(noise.position_noise, torch.rand(3, 16, generator=generator))


def test_priorities_of_a_rule_of_another_shape_or_with_nan_are_refused():
    eligible, confidence = torch.ones(2, 3, dtype=torch.bool), torch.rand(2, 3)

    class Rule:
        def __init__(self, result):
            self.result = result

        def priority(self, token_ids, eligible, confidence, noise):
            return self.result

    ids, one = torch.zeros(2, 3, dtype=torch.long), torch.tensor([[0.0, 1.0, float("nan")], [0.0, 1.0, 2.0]])
    with pytest.raises(StipuleError, match=r"Rule.priority returned a tensor of shape \(2, 3\) with 1 NaN.*\(2, 3\)"):
        anchor_priority(Rule(one), ids, eligible, confidence, confidence)
    assert anchor_priority("random", ids, eligible, confidence, confidence) == "random"
    assert torch.equal(anchor_priority(Rule(confidence), ids, eligible, confidence, confidence), confidence)
