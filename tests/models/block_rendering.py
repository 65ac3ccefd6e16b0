"""A plain rendering of block-causal attention for Qwen2 and Qwen3, token by token, in the precision of the weights."""

import torch


def block_causal_logits(model, token_ids, block_length, visible=None, position_ids=None):
    """Logits of every token of one text. Token i sees the tokens of its own block and of earlier blocks.

    `visible`: for each token the indices of the tokens that it sees instead. `position_ids`: their positions.
    """
    length = len(token_ids)
    if visible is None:
        visible = [[j for j in range(length) if j // block_length <= i // block_length] for i in range(length)]
    positions = list(range(length)) if position_ids is None else position_ids
    with torch.no_grad():
        return _forward(model, token_ids, visible, positions)


def _forward(model, token_ids, visible, positions):
    base, config = model.model, model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    states = [base.embed_tokens.weight[token] for token in token_ids]
    for layer in base.layers:
        attention = layer.self_attn
        inputs = [_norm(layer.input_layernorm, x) for x in states]
        queries = [_heads(attention.q_proj, x, head_dim, getattr(attention, "q_norm", None)) for x in inputs]
        keys = [_heads(attention.k_proj, x, head_dim, getattr(attention, "k_norm", None)) for x in inputs]
        values = [_heads(attention.v_proj, x, head_dim, None) for x in inputs]
        theta = config.rope_parameters["rope_theta"]
        queries = [_rotate(x, p, theta) for x, p in zip(queries, positions, strict=True)]
        keys = [_rotate(x, p, theta) for x, p in zip(keys, positions, strict=True)]
        group = config.num_attention_heads // config.num_key_value_heads
        new = []
        for i, seen in enumerate(visible):
            heads = []
            for head in range(config.num_attention_heads):
                scores = torch.stack([queries[i][head] @ keys[j][head // group] for j in seen]) / head_dim**0.5
                weights = scores.exp() / scores.exp().sum()
                heads.append(sum(w * values[j][head // group] for w, j in zip(weights, seen, strict=True)))
            state = states[i] + attention.o_proj(torch.cat(heads))
            x = _norm(layer.post_attention_layernorm, state)
            gate = layer.mlp.gate_proj(x)
            new.append(state + layer.mlp.down_proj(gate * torch.sigmoid(gate) * layer.mlp.up_proj(x)))
        states = new
    return torch.stack([model.lm_head(_norm(base.norm, x)) for x in states])


def _norm(norm, x):
    return x / (x.square().mean() + norm.variance_epsilon).sqrt() * norm.weight


def _heads(projection, x, head_dim, norm):
    heads = projection(x).view(-1, head_dim)
    return heads if norm is None else torch.stack([_norm(norm, head) for head in heads])


def _rotate(heads, position, theta):
    """Rotary embedding: dimension d of the first half and d of the second half turn together."""
    half = heads.shape[-1] // 2
    angle = position / theta ** (torch.arange(half, dtype=heads.dtype) / half)
    first, second = heads[:, :half], heads[:, half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], 1)
