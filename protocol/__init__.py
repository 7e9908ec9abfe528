"""What crosses between device and server, and only that. Every module here is reached by both sides."""
