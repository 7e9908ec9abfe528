"""Small models with the scripts that made them, and the demo that shows the whole loop."""
