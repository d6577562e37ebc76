"""Load, and comparisons under load, from outside: nothing here imports the server."""
