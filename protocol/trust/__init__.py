"""Which files this device may run: python-tuf's client, stricter and durable, over the image repository and the director."""
