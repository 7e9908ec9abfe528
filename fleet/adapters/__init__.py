"""Outside systems: a file each; they bring what other floors decided, and decide nothing themselves."""
