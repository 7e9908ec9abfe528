"""Mergeable bounded summaries: counts on a fixed grid. Whoever adds them up, in whatever order, gets the same."""
