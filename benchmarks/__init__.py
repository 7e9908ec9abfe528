"""Everything that measures: ours beside a named peer, interleaved in one run, ratios with medians and spread, JSON in `results/`."""
