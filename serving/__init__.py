"""Gangway: one model over several machines, answering HTTP. `README.md` has a request's life and a module table."""
