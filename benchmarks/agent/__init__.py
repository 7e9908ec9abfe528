"""Parts of `make bench-agent`: slots made of the shared models, and one file per thing measured."""
