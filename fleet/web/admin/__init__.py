"""The resources of /api/v1, a file per domain: each handler parses, calls one service function, renders."""
