"""Trains the rows of the paper's tables 2-7 and figure 3 on a small testbed, and checks the paper's claims."""
