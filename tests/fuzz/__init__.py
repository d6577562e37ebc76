"""Bytes of any kind at everything that reads bytes: only the declared errors come of them, and nothing hangs or grows.

In CI the same few examples each time. `python -m tests.fuzz --minutes 10` goes on with new ones.
"""
