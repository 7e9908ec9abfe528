"""Scripts that run in the environments of the peers, not in ours: they import nothing of this project."""
