"""A reward function of your own for 4x4 Sudoku: how many rows, columns and boxes have four different digits.

stipule train examples/custom_reward.yaml training.steps=2 --out runs/mine
"""


def complete_groups(prompts, completions, log_metric, **columns):
    """The fraction of the 12 groups that are complete; 0 where a clue of the puzzle was changed."""
    rewards = []
    for prompt, text in zip(prompts, completions, strict=True):
        keeps_clues = len(text) == 16 and all(clue in ("0", digit) for clue, digit in zip(prompt, text, strict=True))
        rows = [[4 * i + j for j in range(4)] for i in range(4)]
        columns_of_grid = [list(column) for column in zip(*rows, strict=True)]
        boxes = [[rows[i + a][j + b] for a in (0, 1) for b in (0, 1)] for i in (0, 2) for j in (0, 2)]
        groups = rows + columns_of_grid + boxes
        complete = sum({text[cell] for cell in group} == set("1234") for group in groups) if keeps_clues else 0
        rewards.append(complete / len(groups))
    log_metric("solved", sum(reward == 1 for reward in rewards) / len(rewards))
    return rewards
