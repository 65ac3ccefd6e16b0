"""lm-evaluation-harness: its own command on our models gives what `stipule eval` and the enumerated ELBO give."""

import json
import math
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval", reason='the lm-eval extra is not installed: pip install -e ".[lm-eval]"')

import lm_eval
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import stipule
from stipule.errors import RecipeError, StipuleError
from stipule.evaluation import likelihood
from stipule.evaluation.likelihood import are_greedy, elbos, estimate_elbos
from stipule.lm_eval import AUTO_BATCH_SIZE, StipuleLM, cut_at
from tests.toys import ConsistentPolicy, response

PROBLEMS = 24
ROOT = Path(__file__).parents[1]
TASKS = ROOT / "examples" / "lm_eval"


@pytest.fixture(scope="module")
def problems():
    return stipule.Sudoku(prompt="compact").problems("test")[:PROBLEMS]


@pytest.fixture(scope="module")
def model():
    return StipuleLM(path="tiny/sudoku", batch_size=7, device="cpu")


@pytest.fixture(scope="module")
def evaluation(model, problems):
    return stipule.evaluate(model.policy, stipule.Sudoku(prompt="compact"), problems, model.sampler)


def generate(model, prompts, **options):
    requests = [SimpleNamespace(args=(prompt, options)) for prompt in prompts]
    return model.generate_until(requests, disable_tqdm=True)


def chat(model, problems):
    return [model.apply_chat_template([{"role": "user", "content": problem.prompt}]) for problem in problems]


def test_a_task_of_lm_eval_gives_the_accuracy_and_the_texts_of_stipule_eval(model, evaluation):
    manager = TaskManager(include_path=str(TASKS))
    result = lm_eval.simple_evaluate(
        model, tasks=["sudoku_4x4"], task_manager=manager, apply_chat_template=True, limit=PROBLEMS, bootstrap_iters=0
    )
    assert result["results"]["sudoku_4x4"]["exact_match,none"] == evaluation.solved / PROBLEMS > 0
    texts = [sample["resps"][0][0] for sample in result["samples"]["sudoku_4x4"]]
    assert texts == list(evaluation.texts)


@pytest.mark.slow
def test_the_command_of_lm_eval_runs_a_task_from_its_folder(evaluation, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "stipule.lm_eval", "--model", "stipule", "--model_args", "path=tiny/sudoku"),
            *("--include_path", str(TASKS), "--tasks", "sudoku_4x4", "--apply_chat_template", "--batch_size", "auto"),
            *("--limit", str(PROBLEMS), "--output_path", str(tmp_path / "out")),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"|{evaluation.solved / PROBLEMS:.4f}" in done.stdout.replace(" ", "")
    (file,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(file.read_text())["config"]["gen_length"] == 16


def test_lm_eval_finds_the_model_by_name_and_by_entry_point():
    assert get_model("stipule") is StipuleLM
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (entry,) = project["entry-points"]["lm_eval.models"].items()
    assert EntryPoint(*entry, group="lm_eval.models").load() is StipuleLM
    assert entry[0] == "stipule"


def test_batch_size_and_other_requests_change_no_text(model, problems, evaluation):
    prompts = chat(model, problems[:4])
    assert generate(model, prompts) == list(evaluation.texts[:4])
    sampled = generate(model, prompts, do_sample=True, temperature=20.0)
    assert sampled != list(evaluation.texts[:4])
    one_by_one = StipuleLM(path="tiny/sudoku", batch_size=1, device="cpu", temperature=20)
    assert generate(one_by_one, prompts) == sampled


def test_texts_end_at_max_gen_toks_and_before_the_first_string_of_until(model, problems, evaluation):
    prompts = chat(model, problems[:2])
    assert generate(model, prompts, max_gen_toks=5) == [text[:5] for text in evaluation.texts[:2]]
    assert generate(model, prompts, until=["3", "1"]) == [cut_at(text, ["1", "3"]) for text in evaluation.texts[:2]]
    assert cut_at("ab\n\ncd", ["d", "\n\n", ""]) == "ab"


def test_prompts_without_a_template_get_the_special_tokens_once(model):
    begin = model.tokenizer.bos_token
    raw = model.policy.encode_raw(["0243"]).prompt_ids[0].tolist()
    assert model.tok_encode("0243") == raw
    assert model.tok_encode(f"{begin}0243")[-4:] == raw[-4:]
    assert model.tok_encode(f"{begin}0243").count(model.tokenizer.bos_token_id) == 1


COMPLETION = [1, 0, 2, 2, 1]
TOY = ConsistentPolicy(5, 3)  # whose ELBO of every response is its log-probability


def toy_elbos(num_samples, seeds, batch_size):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return estimate_elbos(TOY, response([COMPLETION] * len(seeds)), num_samples, generators, batch_size)


def test_an_elbo_from_all_masks_is_exact():
    assert toy_elbos(31, [0, 1], 5) == pytest.approx([TOY.log_p(tuple(COMPLETION))] * 2, abs=1e-4)


def test_an_elbo_from_few_masks_is_unbiased():
    values = toy_elbos(8, range(200), 400)
    error = float(values.std()) / math.sqrt(len(values))
    assert 0 < error < 0.1
    assert abs(float(values.mean()) - TOY.log_p(tuple(COMPLETION))) < 4 * error


def enumerated(policy, context, continuation):
    """Eq. 3 by loops: the mean over the number of masked tokens and over the subsets, with plain logits."""
    n, total = len(continuation), 0.0
    for k in range(1, n + 1):
        for members in combinations(range(n), k):
            ids = context + [policy.mask_id if i in members else token for i, token in enumerate(continuation)]
            position_mask = torch.zeros(1, len(ids), dtype=torch.bool)
            position_mask[0, [len(context) + i for i in members]] = True
            with torch.no_grad():
                logps = policy.logits(torch.tensor([ids]), None, position_mask).log_softmax(1)
            total += float(logps[range(k), [continuation[i] for i in members]].sum()) / k / math.comb(n, k)
    return total


def test_likelihoods_of_the_bundled_model_equal_the_enumerated_elbo(model, problems):
    """Responses of 6 digits: all 63 masks. Of 9: 128 of 511, within the standard error over seeds."""
    prompt = chat(model, problems[:1])[0]
    solution = problems[0].data["solution"]
    pairs = [(prompt, solution[:6]), (prompt, solution[:3] + "111"), (prompt, solution[:9])]
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    values = [value for value, _ in model.loglikelihood(requests, disable_tqdm=True)]
    encoded = [(model.tok_encode(prompt), model.tok_encode(text, add_special_tokens=False)) for _, text in pairs]
    expected = [enumerated(model.policy, *pair) for pair in encoded]
    assert values[:2] == pytest.approx(expected[:2], abs=1e-3)
    many = torch.tensor([elbos(model.policy, encoded[2:], 128, seed, 128)[0] for seed in range(1, 9)])
    assert abs(float(many.mean()) - expected[2]) < 4 * float(many.std()) / math.sqrt(len(many))
    assert abs(values[2] - expected[2]) < 5 * float(many.std())


def test_a_likelihood_does_not_depend_on_the_other_requests(model, problems):
    requests = [
        (model.tok_encode(prompt), model.tok_encode(problem.data["solution"][:length], add_special_tokens=False))
        for length, (prompt, problem) in enumerate(zip(chat(model, problems[:6]), problems[:6], strict=True), 6)
    ]
    together = elbos(model.policy, requests, 16, 0, 40)
    alone = [elbos(model.policy, [request], 16, 0, 5)[0] for request in requests]
    assert together == pytest.approx(alone, abs=1e-3)
    assert elbos(model.policy, requests, 16, 1, 40) != pytest.approx(together, abs=1e-3)


def test_greedy_is_whether_greedy_decoding_gives_the_continuation(model, problems, evaluation):
    prompts = chat(model, problems[:2])
    wrong = "1" * 16
    requests = [SimpleNamespace(args=(prompts[0], text)) for text in (evaluation.texts[0], wrong)]
    assert [greedy for _, greedy in model.loglikelihood(requests, disable_tqdm=True)] == [True, False]
    assert are_greedy(model.policy, [([1], [])], 4) == [True]


def test_a_whole_text_is_the_continuation_of_the_first_token_and_long_ones_are_split(model, monkeypatch):
    text = SimpleNamespace(args=("12343412",))
    token_ids = model.tok_encode("12343412", add_special_tokens=False)
    whole = elbos(model.policy, [([model.prefix_token_id], token_ids)], 128, 0, 7)
    assert model.loglikelihood_rolling([text, text], disable_tqdm=True) == pytest.approx(whole * 2, abs=1e-4)
    monkeypatch.setattr(model.policy, "max_length", 6)
    parts = [([model.prefix_token_id], token_ids[:5]), (token_ids[2:5], token_ids[5:])]
    assert model.loglikelihood_rolling([text], disable_tqdm=True) == pytest.approx(
        [sum(elbos(model.policy, parts, 128, 0, 7))], abs=1e-3
    )
    with pytest.raises(RecipeError, match="have 9 tokens together; the model has 6 positions"):
        likelihood.check_lengths(model.policy, [([1], token_ids)])
    with pytest.raises(RecipeError, match="sampler.gen_length is 16, together 20; the model has 6 positions"):
        generate(model, ["0243"])


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "model_args has no path"),
        ({"path": "nowhere/at-all"}, "no readable model at 'nowhere/at-all'"),
        ({"path": "tiny/sudoku", "gen_lenght": 16}, "has gen_lenght, which is no setting; did you mean gen_length?"),
        ({"path": "tiny/sudoku", "pretrained": "x"}, "model_args has pretrained, which is no setting; allowed: path,"),
        ({"path": "tiny/sudoku", "block_length": 5}, "block_length"),
        ({"path": "tiny/sudoku", "temperature": -1}, "sampler.temperature is -1"),
        ({"path": "tiny/sudoku", "num_samples": 0}, "num_samples is 0; it must be a whole number, 1 or more"),
        ({"path": "tiny/sudoku", "batch_size": "many"}, "batch_size is 'many'"),
        ({"path": "tiny/sudoku", "device": "gpu"}, "device is 'gpu', which torch does not know"),
        ({"path": "tiny/sudoku", "dtype": "float8"}, "model.dtype is 'float8'"),
    ],
)
def test_bad_input_is_one_sentence_before_the_model_is_loaded(given, message, monkeypatch):
    monkeypatch.setattr("stipule.models.loading.load_network", None)
    with pytest.raises(StipuleError) as error:
        StipuleLM(**given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_a_gpu_the_device_that_lm_eval_asks_for_is_the_cpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert StipuleLM(path="tiny/sudoku", device="cuda:0").device.type == "cpu"


def test_settings_reach_the_sampler_and_the_model():
    model = StipuleLM(path="tiny/sudoku", steps=4, block_length=8, dtype="bfloat16", batch_size="auto", device="cpu")
    assert (model.sampler.gen_length, model.sampler.steps, model.sampler.block_length) == (16, 4, 8)
    assert model.policy.compute_dtype == torch.bfloat16 and model.batch_size == AUTO_BATCH_SIZE
    assert model.get_model_info() | {"model": ""} == {
        "gen_length": 16,
        "steps": 4,
        "block_length": 8,
        "num_samples": 128,
        "seed": 0,
        "model": "",
    }
    with pytest.raises(StipuleError, match="the text 'two' ... cannot be encoded"):
        generate(model, ["two"])
