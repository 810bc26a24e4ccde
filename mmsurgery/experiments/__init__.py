"""Grids of runs that answer a question of the paper, and the tables they give."""
