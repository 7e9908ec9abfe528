"""What the commands of `mooring-agent` do: one file per subject. What only one command needs is imported by that command."""
