"""The tables of revision 0001, a module per domain. Frozen at the first release: later changes are new revisions."""
