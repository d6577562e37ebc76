"""The command line: one file a command."""

from serving.cli.app import main

__all__ = ["main"]
