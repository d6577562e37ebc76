"""What a client may rely on over HTTP, as cases that ask one running server: `python -m tests.interop URL`.

A module per topic; each case is a function that takes an `Asker` and asserts. A case that the server's model or
settings make pointless raises `NotHere`, which is counted and shown.
"""
