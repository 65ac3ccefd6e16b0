"""Block diffusion models: block-causal attention on a grid of real tokens, and which settings make such a model."""

import json

import pytest
import torch
from safetensors.torch import load_file

from stipule.errors import CheckpointError
from stipule.models.bidirectional import check_bidirectional
from stipule.models.loading import ModelConfig, load_policy, save_policy
from tests.models import published
from tests.models.block_rendering import block_causal_logits

BLOCK = published.BLOCK_LENGTH
FAMILIES = pytest.mark.parametrize("name", published.BLOCK_NAMES)
DENSE = pytest.mark.parametrize("name", ["sdar", "fast_dllm_v2", "a2d_block"])
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """For each block family: the folder of a checkpoint, its tensors and its configuration."""
    root = tmp_path_factory.mktemp("published")
    return {name: (root / name, *published.write(name, root / name)) for name in (*published.BLOCK_NAMES, "llada")}


def load(checkpoints, name, **settings):
    return load_policy(ModelConfig(path=str(checkpoints[name][0]), **{**published.settings(name), **settings}))


def change(checkpoints, name, folder, **fields):
    """A copy of a checkpoint with other fields in its configuration; None removes a field."""
    folder = published.copy_without(checkpoints[name][0], folder)
    config = checkpoints[name][2] | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def random_ids(policy, *shape, seed=0):
    return torch.randint(4, policy.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def all_logits(policy, input_ids, attention_mask=None):
    """The logits of every real token."""
    every = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
    with torch.no_grad():
        return policy.logits(input_ids, attention_mask, every)


@DENSE
@ATTENTION
def test_logits_equal_a_plain_rendering_of_block_causal_attention(checkpoints, name, attention):
    policy = load(checkpoints, name, attention=attention)
    policy.model.double()
    input_ids = random_ids(policy, 2, 3 * BLOCK - 1)
    for row, logits in zip(input_ids, all_logits(policy, input_ids).unflatten(0, input_ids.shape), strict=True):
        plain = block_causal_logits(policy.unwrapped_model, row.tolist(), BLOCK)
        if name in published.SHIFTED:
            plain = torch.cat([plain[:1], plain[:-1]])
        assert plain.std() > 0.5
        assert (logits - plain).abs().max() <= 1e-5


@FAMILIES
@ATTENTION
def test_a_row_does_not_depend_on_padding_or_the_other_rows(checkpoints, name, attention):
    policy = load(checkpoints, name, attention=attention)
    lengths = range(1, 3 * BLOCK)  # texts of 0 to 2 whole blocks and every remainder
    width = max(lengths) + 2
    texts = [random_ids(policy, 1, length, seed=length) for length in lengths]
    input_ids = torch.cat([torch.nn.functional.pad(t, (width - t.shape[1], 0), value=policy.pad_id) for t in texts])
    attention_mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    together = all_logits(policy, input_ids, attention_mask).split(list(lengths))
    for text, logits in zip(texts, together, strict=True):
        assert (logits - all_logits(policy, text)).abs().max() <= 1e-4


@FAMILIES
def test_later_blocks_change_no_logit_and_the_own_block_does(checkpoints, name):
    policy = load(checkpoints, name)
    input_ids = random_ids(policy, 1, 3 * BLOCK)
    before = all_logits(policy, input_ids)
    for position in range(3 * BLOCK):
        changed = input_ids.clone()
        changed[0, position] = (changed[0, position] - 4 + 1) % (policy.vocab_size - 4) + 4
        difference = (all_logits(policy, changed) - before).abs().amax(1)
        first = position // BLOCK * BLOCK  # of the block that was changed
        if policy.family.shift_logits:  # the left neighbour predicts; the first token predicts itself
            first += first > 0
        assert difference[:first].max() <= 1e-5 if first else True
        assert difference[first : first + BLOCK - 1].min() > 1e-3


@FAMILIES
def test_a_saved_block_model_has_the_published_tensors_and_is_loaded_without_settings(checkpoints, name, tmp_path):
    _, tensors, config = checkpoints[name]
    policy = load(checkpoints, name)
    save_policy(policy, tmp_path / "saved", "x")
    saved_config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {key: saved_config[key] for key in config} == config
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in tensors.items()}
    assert all(torch.equal(saved[key], tensors[key]) for key in tensors)
    again = load_policy(ModelConfig(path=str(tmp_path / "saved")))
    assert (again.block_length, again.family.shift_logits) == (BLOCK, name in published.SHIFTED)
    input_ids = random_ids(policy, 2, 7)
    assert torch.equal(all_logits(again, input_ids), all_logits(policy, input_ids))


def test_the_recipe_comes_before_the_published_block_length(checkpoints, tmp_path):
    assert load(checkpoints, "sdar").block_length == BLOCK
    assert load(checkpoints, "sdar", block_length=8).block_length == 8
    renamed = change(checkpoints, "sdar", tmp_path / "renamed", block_size=None, block_length=2)
    assert load_policy(ModelConfig(path=str(renamed))).block_length == 2
    assert load(checkpoints, "llada").block_length is None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "llada",
            {"block_length": 4},
            "model.block_length is 4.*attend to the whole text.*leave model.block_length out",
        ),
        ("sdar", {"block_length": 0}, "model.block_length is 0; it is the number of tokens.*1 or more"),
        ("a2d_block", {"block_length": -1}, "model.block_length is -1"),
        ("sdar", {"attention": "flash_attention_2"}, "block length 4.*set model.attention=sdpa"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_before_weights_are_read(checkpoints, tmp_path, name, settings, message):
    folder = published.copy_without(checkpoints[name][0], tmp_path / "x", "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_policy(ModelConfig(path=str(folder), **{**published.settings(name), **settings}))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("sdar", {"block_size": None}, "does not state its block length.*set model.block_length"),
        ("fast_dllm_v2", {"bd_size": None}, "family fast_dllm_v2 does not state its block length"),
        ("sdar", {"block_size": "4"}, "block_size in config.json is '4'"),
        ("sdar", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("sdar", {"hidden_size": None}, "lacks hidden_size"),
    ],
)
def test_an_unsupported_config_of_a_block_model_is_refused(checkpoints, tmp_path, name, fields, message):
    folder = change(checkpoints, name, tmp_path / "x", **fields)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=message):
        load_policy(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (lambda block: block[:, :, :, None] < block[:, :, None, :] - 10**6, "attention is causal"),  # nothing is seen
        (
            lambda block: torch.ones_like(block[:, :, :, None] + block[:, :, None, :]).bool(),
            "not causal between blocks",
        ),
    ],
)
def test_the_load_time_check_finds_a_wrong_mask(checkpoints, monkeypatch, replace, message):
    policy = load(checkpoints, "sdar")
    check_bidirectional(policy)

    def wrong_mask(model, attention_mask, position_ids, block_length):
        mask = replace((position_ids // block_length)[:, None])
        return mask | torch.eye(mask.shape[-1], dtype=torch.bool)

    monkeypatch.setattr("stipule.models.masked_policy.block_causal_mask", wrong_mask)
    with pytest.raises(CheckpointError, match=message):
        check_bidirectional(policy)


def test_a_block_of_one_token_is_a_causal_model(checkpoints):
    policy = load(checkpoints, "sdar", block_length=1)
    policy.model.double()
    input_ids = random_ids(policy, 1, 6)
    plain = block_causal_logits(policy.unwrapped_model, input_ids[0].tolist(), 1)
    assert (all_logits(policy, input_ids) - plain).abs().max() <= 1e-5
