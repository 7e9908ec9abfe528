"""The inference process: capture, engine with hot swap, and its supervision by the control process."""
