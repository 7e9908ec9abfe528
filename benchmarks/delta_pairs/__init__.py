"""What `make bench-delta` needs besides the codec: pairs of models that it trains itself, and the other delta tools."""
