"""TRL's trainer and configuration for diffusion language models: another way to write a recipe."""
