"""Addresses as they may be shown: one that a person gave goes through here into an error, a log or a manifest.

Hidden is what may grant access: a name with its password before `@`, a lone token there in an HTTP address, and each
value behind `?` that is not known to be harmless. A lone name elsewhere is none: `abfs://CONTAINER@ACCOUNT`.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote

HIDDEN = "***"

HARMLESS = frozenset(
    {
        "allow_bucket_creation",
        "allow_bucket_deletion",
        "blob_storage_authority",
        "buffer_size",
        "default_block_size",
        "default_bucket_location",
        "dfs_storage_authority",
        "enable_tls",
        "endpoint_override",
        "project_id",
        "region",
        "replication",
        "retry_limit_seconds",
        "scheme",
        "tls_verify_certificates",
        "user",
        "versionId",
    }
)
"""Options of Arrow's file systems that say where and how, and S3's version of an object."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://\S+")
_WITH_PASSWORD = re.compile(r"[^/?#@]*:.*@", re.DOTALL)
"""To the last `@`, as a password may hold any character, `/` too: an address shows too little rather than too much."""
_LONE = re.compile(r"[^/?#@]*@")
_SHORTEST = 3
"""Characters of a piece of a credential that an error's words are searched for; shorter ones are in any sentence."""


def shown(address: str) -> str:
    """The address without credentials; what is no address stays as it is."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return address
    user = _user_of(scheme, rest)
    place, asked, query = rest[len(user) :].partition("?")
    told = "&".join(f"{name}{HIDDEN if secret else value}" for name, value, secret in _options(query))
    return f"{scheme}://{f'{HIDDEN}@' if user else ''}{place}{asked}{told}"


def shown_in(text: str) -> str:
    """The text with every address in it as `shown`."""
    return _ADDRESS.sub(lambda found: shown(found[0]), text) if "://" in text else text


def has_credentials(text: str) -> bool:
    """Whether something in it would be hidden."""
    return shown_in(text) != text


def reason(error: BaseException, address: str) -> str:
    """What an error about the address says, and its type alone where its words hold a piece of a credential."""
    said = str(getattr(error, "strerror", None) or error)
    words = shown_in(said.replace(address, shown(address)))
    return type(error).__name__ if any(piece in words for piece in _pieces(address)) else words


def _user_of(scheme: str, rest: str) -> str:
    """What stands before the place and grants access, with its `@`."""
    lone = _LONE if scheme.rpartition(":")[2] in {"http", "https"} else None
    found = _WITH_PASSWORD.match(rest) or (lone and lone.match(rest))
    return found[0] if found else ""


def _options(query: str) -> Iterator[tuple[str, str, bool]]:
    """Each option: its name with `=`, its value, and whether that may grant access."""
    for option in filter(None, query.split("&")):
        name, mark, value = option.partition("=")
        yield (f"{name}=", value, name not in HARMLESS or "@" in value) if mark else ("", option, True)


def _pieces(address: str) -> Iterator[str]:
    """What would give a credential away: its parts between the marks at which libraries take an address apart. The name
    before a password is hidden in an address, but may be a word of any sentence.
    """
    scheme, _, rest = address.partition("://")
    user = _user_of(scheme, rest)
    query = rest[len(user) :].partition("?")[2]
    for hidden in (user.partition(":")[2] or user, *(value for _, value, secret in _options(query) if secret)):
        for piece in re.split(r"[/:@?#&=\s]", hidden):
            if len(piece) >= _SHORTEST:
                yield piece
                yield unquote(piece)
