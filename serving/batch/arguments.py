"""The command line of this process, which `ps` shows to everybody and Ray keeps for its dashboard."""

import shlex
import sys

from serving.addresses import has_credentials, shown_in


def hide_arguments() -> None:
    """From here on both show it without the credentials in its addresses.

    Imports Ray where there are any, so its environment must have been set; before Ray connects.
    """
    if any(map(has_credentials, sys.argv)):
        from ray._raylet import setproctitle  # type: ignore[attr-defined]  # its stub does not name it

        setproctitle(shlex.join(map(shown_in, sys.argv)))
