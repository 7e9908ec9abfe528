"""Devices: who they are, where they belong, what they should be like."""
