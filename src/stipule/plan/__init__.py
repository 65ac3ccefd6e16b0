"""What a recipe will need, before it runs: calls, operations, memory, seconds, and how far it spreads over devices."""
