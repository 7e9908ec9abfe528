"""What devices say: stored once each, shown, judged."""
