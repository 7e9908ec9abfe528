"""Governance: who may do what, and whose yes a release needs."""
