"""Gangway: one model over several machines, answering HTTP. `README.md` has the life of a request and a module table."""
