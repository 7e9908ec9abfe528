"""Device configuration: sections of fleet, groups and devices, and their releases on the way to devices."""
