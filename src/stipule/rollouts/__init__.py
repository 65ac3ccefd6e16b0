"""From prompts to finished responses: schedule, pruning, anchors, denoising."""
