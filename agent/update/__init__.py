"""How a release gets onto this device and, when it does not hold, off it again."""
