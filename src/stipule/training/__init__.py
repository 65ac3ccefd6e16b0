"""The loop, its checkpoints, its records, and pre-training."""
