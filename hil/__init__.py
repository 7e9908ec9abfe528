"""Hardware in the loop: one suite (boot, update, power cut, throughput) against a local process or a real board. See README.md here."""
