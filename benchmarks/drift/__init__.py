"""Simulated camera streams made from real pictures, and what judges them: how often is it wrong, how soon is it right."""
