"""Rules on telemetry, what was fired, who is told, and the history that charts are drawn from."""
