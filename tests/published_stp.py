"""STP as its authors' public code runs it, in its plainest form: one row at a time, no caches, every pass complete.

Written from the behaviour of that code, to compare the library with. The authors draw tokens with Gumbel noise; here
the token is the quantile of a given uniform number, as in the library, so that both can be given the same noise.
"""

import re

import torch


def published_rollout(policy, prompt_ids, anchors, uniform, *, length, steps, block, temperature, stop_fraction):
    """Response and number of forward passes for one unpadded prompt, those after the last mask not counted.

    `anchors` are `length` token ids, the mask id where nothing is fixed. `uniform[j]` has the noise of forward pass j.
    `stop_fraction` is the share of the response that is filled when the last pass begins (1 - t_cutoff); None: no end.
    """
    x = torch.cat([prompt_ids, anchors])
    start = len(prompt_ids)
    stop_count = None if stop_fraction is None else int(stop_fraction * length)
    filled = int((anchors != policy.mask_id).sum())
    calls = 0
    passes = steps // (length // block)
    for first in range(start, start + length, block):
        masks = int((x[first : first + block] == policy.mask_id).sum())
        per_pass = [masks // passes + (i < masks % passes) for i in range(passes)]
        for count in per_pass:
            if not bool((x == policy.mask_id).any()):
                return x[start:], calls
            token, confidence = _predict(policy, x, start, uniform[calls], temperature)
            calls += 1
            stops = stop_count is not None and filled + count > stop_count
            if stops:
                count = stop_count - filled
            confidence = confidence.clone()
            confidence[first + block - start :] = -1.0
            confidence[x[start:] != policy.mask_id] = -1.0
            for position in confidence.topk(max(count, 0)).indices.tolist():
                x[start + position] = token[position]
            filled += count
            if stops:
                token, _ = _predict(policy, x, start, uniform[calls], temperature)
                x[start:] = torch.where(x[start:] == policy.mask_id, token, x[start:])
                return x[start:], calls + 1
    return x[start:], calls


def _predict(policy, x, start, uniform, temperature):
    """A sampled token for every position of the response, and its probability without temperature."""
    every = torch.ones(1, len(x), dtype=torch.bool)
    logits = policy.logits(x[None], None, every)[start:]
    logits[:, policy.mask_id] = -torch.inf
    running = (logits / temperature).softmax(1).cumsum(1)
    token = torch.searchsorted(running, (uniform * running[:, -1])[:, None], right=True)[:, 0]
    return token, logits.softmax(1).gather(1, token[:, None])[:, 0]


def published_loss(policy, old_logps, ref_logps, prompt_ids, responses, anchored, subsets, rewards, *, epsilon, beta):
    """The loss of a micro-batch that is one group: clipped ratios and k3, averaged over all tokens up to the end.

    `subsets` are K x B x L: the random tokens that each copy masks, before anchors are taken out. `old_logps` and
    `ref_logps` are scores (`published_score`) of the other two policies.
    """
    score, text = published_score(policy, prompt_ids, responses, anchored, subsets)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    ratio = (score - old_logps).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    gain = torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
    kl = (ref_logps - score).exp() - (ref_logps - score) - 1
    return ((-gain + beta * kl) * text).sum() / text.sum()


def published_score(policy, prompt_ids, responses, anchored, subsets):
    """Mean over K copies of log p at every position, masked or not; and which tokens are not after the end."""
    rows, length = responses.shape
    text = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        ends = (responses[row] == policy.eos_id).nonzero()[:, 0].tolist()
        text[row, : ends[0] + 1 if ends else length] = True
    score = []
    for row in range(rows):
        copies = []
        for subset in subsets[:, row]:
            masked = (subset | ~text[row]) & ~anchored[row]
            x = torch.cat([prompt_ids[row], responses[row].masked_fill(masked, policy.mask_id)])[None]
            logits = policy.logits(x, None, torch.ones_like(x, dtype=torch.bool))[len(prompt_ids[row]) :]
            copies.append(logits.log_softmax(1).gather(1, responses[row][:, None])[:, 0])
        score.append(torch.stack(copies).mean(0))
    return torch.stack(score), text


def published_candidates(token_texts):
    """Which tokens of a response may become anchors: those that overlap no answer inside tags and no content of a box.

    Each box is read on its own, brace by brace, until its own is closed.
    """
    text = "".join(token_texts)
    protected = [match.span(1) for match in re.finditer(r"<answer>(.*?)</answer>", text, re.DOTALL)]
    for box in re.finditer(r"\\boxed\{", text):
        depth = 1
        for end in range(box.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                protected.append((box.end(), end))
                break
    candidates, start = [], 0
    for token_text in token_texts:
        end = start + len(token_text)
        candidates.append(not any(end > first and start < last for first, last in protected))
        start = end
    return candidates


def published_text_anchors(tokenizer, mask_id, response, is_anchor, length):
    """The fixed tokens of a response (ids up to its end) after its text: {position: token}."""
    masked = [token if fixed else mask_id for token, fixed in zip(response, is_anchor, strict=True)]
    encoded = tokenizer(tokenizer.decode(masked, skip_special_tokens=False), add_special_tokens=False)["input_ids"]
    return {position: token for position, token in enumerate(encoded[:length]) if token != mask_id}
