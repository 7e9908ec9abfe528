"""The device: reads frames, runs the active model, reports, and updates itself. Imports `runtime` and `protocol` only."""
