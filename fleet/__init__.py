"""The server, its workers and the operator's command line. Imports `runtime` and `protocol` only, never `agent`."""
