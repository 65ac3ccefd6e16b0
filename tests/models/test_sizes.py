"""Published sizes (bytes, tensor names, shapes) from configurations, and the positions that models predict."""

import pytest
import torch
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from stipule.models.checks import Probe, alignment
from stipule.models.families import family_of
from stipule.models.loading import ModelConfig, load_policy
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.models import published

LLADA = {
    "model_type": "llada", "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12288,
    "vocab_size": 126464, "embedding_size": 126464, "max_sequence_length": 4096, "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5, "weight_tying": False,
}  # fmt: skip
DREAM = {
    "model_type": "Dream", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 131072,
}  # fmt: skip
MOE = {
    "model_type": "llada", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
    "num_key_value_heads": 16, "expert_intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8,
    "vocab_size": 157184,
}  # fmt: skip


def network(config):
    family = family_of(config)
    with torch.device("meta"):
        return family.model_class(family.read_config(config)).bfloat16()


def num_bytes(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def test_llada_8b_has_the_published_bytes_and_its_291_tensors():
    model = network(LLADA)
    assert num_bytes(model) == 16_031_162_368
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # The published names are renamed by the mapping that loading uses.
    renames = get_checkpoint_conversion_mapping("llada")
    renamed = {}
    for name, shape in published.llada_shapes(126464, 4096, 12288, 32).items():
        for rename in renames:
            new, _ = rename.rename_source_key(name)
            if new != name:
                break
        renamed[new] = shape
    assert len(renamed) == 291
    assert renamed == shapes


def test_dream_7b_has_the_published_bytes():
    model = network(DREAM)
    assert num_bytes(model) == 15_231_233_024
    assert len(model.state_dict()) == 339  # 28 layers of 12, embedding, norm, LM head


def test_llada_moe_is_7b_and_routes_as_published():
    model = network(MOE)
    assert round(num_bytes(model) / 2e9, 2) == 7.36
    # LLaDA-MoE's code never divides the chosen experts' weights by their sum, for any value in config.json.
    assert (model.config.norm_topk_prob, model.config.moe_intermediate_size, model.config.head_dim) == (
        False,
        1024,
        128,
    )


def test_mmada_is_a_llada_with_a_larger_vocabulary():
    model = network({**LLADA, "model_type": "mmada", "new_vocab_size": 134656})
    assert num_bytes(model) == 16_031_162_368 + 2 * 2 * 4096 * (134656 - 126464)


def test_config_fields_override_the_defaults_of_the_model_type():
    config = family_of(DREAM).read_config(DREAM)
    assert config.rope_parameters["rope_theta"] == 1000000.0
    assert config.is_causal is False


@pytest.mark.parametrize("name", published.NAMES)
def test_a_copying_model_is_read_at_the_right_positions(tmp_path, name):
    """The output of every layer is 0, so the LM head gets the embedding of the input token and predicts that token.

    At position i, an unshifted family then predicts token i, a shifted one token i - 1.
    """
    published.write(name, tmp_path / name)
    policy = load_policy(ModelConfig(path=str(tmp_path / name), **published.settings(name)))
    network = policy.unwrapped_model
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            in_layer = ".layers." in key or ".layer." in key
            parameter.fill_(1.0 if parameter.ndim == 1 and "norm" in key.lower() and key.endswith("weight") else 0.0)
            if not in_layer and parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]:
                parameter.copy_(torch.eye(len(parameter)))  # a dense layer of the LM head
        embedding = torch.nn.functional.normalize(torch.randn(policy.vocab_size, published.WIDTH), dim=1) * 6
        network.get_input_embeddings().weight.copy_(embedding)
        network.get_output_embeddings().weight.copy_(embedding)
    input_ids = torch.randint(4, policy.vocab_size, (3, 8))
    every = torch.ones_like(input_ids, dtype=torch.bool)
    with torch.no_grad():
        predicted = policy.logits(input_ids, None, every).argmax(1).view(3, 8)
    shifted = torch.cat([input_ids[:, :1], input_ids[:, :-1]], 1)
    expected = shifted if name in published.SHIFTED else input_ids
    assert (predicted == expected).float().mean() > 0.95


def test_the_alignment_check_detects_a_wrong_shift(tmp_path):
    """A model that predicts the next token fails the check if it is read without shifted logits."""
    published.write("a2d_llama", tmp_path / "m")
    prompts = ["3,7,12=33", "1,2,3,7,7,12=33", "20,20,20=60"]
    sampler = SemiAutoregressiveSampler(gen_length=8, steps=4, block_length=4)
    for shift_logits, ok in ((True, True), (False, False)):
        policy = load_policy(ModelConfig(path=str(tmp_path / "m"), family="a2d", mask_id=1, shift_logits=shift_logits))
        policy.model.requires_grad_(True)
        optimizer = torch.optim.Adam(policy.model.parameters(), 3e-3)
        shifted = load_policy(ModelConfig(path=str(tmp_path / "m"), family="a2d", mask_id=1, shift_logits=True))
        shifted.model = policy.model  # both policies share one network, which is trained with shifted logits
        batch = shifted.encode(prompts)
        for step in range(60):
            masked = batch.prompt_mask & (
                torch.rand(batch.prompt_mask.shape, generator=torch.Generator().manual_seed(step)) < 0.3
            )
            logits = shifted.logits(batch.prompt_ids.masked_fill(masked, 1), batch.prompt_mask, masked)
            loss = torch.nn.functional.cross_entropy(logits, batch.prompt_ids[masked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        policy.model.requires_grad_(False)
        assert alignment(Probe(policy, sampler, prompts, prompts, 2)).ok is ok
