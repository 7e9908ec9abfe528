"""What a model is and how it is run. The device runs it; the server evaluates candidates with the very same code."""
