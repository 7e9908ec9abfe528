"""What the control loop does, a file per duty: each holds what it alone remembers, and returns the rows to keep."""
