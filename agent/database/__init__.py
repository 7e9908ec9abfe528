"""The agent's one SQLite file below `Store`: the file, its tables, the rows that wait for the server, and the room they may take."""
