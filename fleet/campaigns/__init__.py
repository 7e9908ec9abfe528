"""How a release is brought to devices: phases, thresholds, and verdicts that count signed reports only."""
