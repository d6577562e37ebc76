"""`gangway demo-model`."""

from pathlib import Path
from typing import Annotated

import typer


def demo_model(folder: Annotated[Path, typer.Argument(help="Where to write it.")]) -> None:
    """Fetch the small demo model and write it as a Hugging Face folder."""
    from serving.homes import settle
    from serving.tools.demo_model import write_demo_model

    settle()
    written = write_demo_model(folder)
    typer.echo(f"{folder}: {'written' if written else 'already there'}")
