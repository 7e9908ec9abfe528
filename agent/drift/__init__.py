"""Drift on the device: rows become sub-windows, hours on their way to the server, and a check that needs no server (DRIFT.md)."""
