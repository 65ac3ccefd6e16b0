"""Predicts what a recipe needs before it runs: forward passes, operations, memory, seconds, scaling over devices."""
