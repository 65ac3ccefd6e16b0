"""The paper's tables and figure 3, run again in a small world and held against its claims."""
