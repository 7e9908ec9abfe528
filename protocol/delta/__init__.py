"""Bit-exact deltas between two model files: what a device needs to rebuild the new one. Format: docs/adr/0010-delta-format.md."""
