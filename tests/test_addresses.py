"""What is shown of an address, and of an error that repeats one."""

import fsspec  # type: ignore[import-untyped]
import pyarrow.fs  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.addresses import has_credentials, reason, shown, shown_in

SHOWN = {
    "/work/in.jsonl": "/work/in.jsonl",
    "s3://bucket/in.jsonl": "s3://bucket/in.jsonl",
    "s3://bucket/a@b/in.jsonl": "s3://bucket/a@b/in.jsonl",
    "s3://KEY:SECRET@bucket/in.jsonl": "s3://***@bucket/in.jsonl",
    "s3://KEY:SE/CR?E#T@bucket/in.jsonl": "s3://***@bucket/in.jsonl",
    "s3://bucket/in?region=here&scheme=http": "s3://bucket/in?region=here&scheme=http",
    "s3://bucket/in?access_key=KEY&secret_key=SECRET&region=here": (
        "s3://bucket/in?access_key=***&secret_key=***&region=here"
    ),
    "s3://bucket/in?endpoint_override=u:p@host": "s3://bucket/in?endpoint_override=***",
    "https://bucket.example.com/in?X-Amz-Signature=abc&X-Amz-Expires=9": (
        "https://bucket.example.com/in?X-Amz-Signature=***&X-Amz-Expires=***"
    ),
    "https://host/in?TOKEN": "https://host/in?***",
    "https://TOKEN@host/in": "https://***@host/in",
    "https://host:8443/in": "https://host:8443/in",
    "abfs://container@account.dfs.core.windows.net/in": "abfs://container@account.dfs.core.windows.net/in",
    "abfs://container@account.dfs.core.windows.net/in?sig=abc": (
        "abfs://container@account.dfs.core.windows.net/in?sig=***"
    ),
    "hdfs://user@namenode:8020/in": "hdfs://user@namenode:8020/in",
    "simplecache::s3://KEY:SECRET@bucket/in": "simplecache::s3://***@bucket/in",
    "simplecache::https://TOKEN@host/in": "simplecache::https://***@host/in",
    "zip://in.jsonl::https://user:SECRET@host/in.zip": "zip://***@host/in.zip",
}


@pytest.mark.parametrize(("address", "told"), SHOWN.items())
def test_what_grants_access_is_hidden_and_the_place_is_told(address: str, told: str) -> None:
    assert shown(address) == told
    assert has_credentials(address) == (address != told)
    assert shown(told) == told


def test_every_address_in_a_text_is_shown_so() -> None:
    text = (
        "cannot ask http://user:SECRET@host:4318/v1 nor 's3://K:S@bucket/in?secret_key=SECRET' as s3://bucket/x is away"
    )
    assert (
        shown_in(text)
        == "cannot ask http://***@host:4318/v1 nor 's3://***@bucket/in?secret_key=*** as s3://bucket/x is away"
    )
    assert shown_in("no address: here") == "no address: here"


@given(st.text())
def test_no_password_is_shown_whatever_is_in_it(password: str) -> None:
    address = f"s3://u:<{password}>@bucket/in"
    assert f"<{password}>" not in shown(address)
    assert shown(address).startswith("s3://***@")


@pytest.mark.parametrize(
    "address",
    [
        "s3://KEY:SEC/RET@bucket/in",
        "ftp://user:SEC/RET@host/in",
        "s3://KEY:SEC%2FRET@[bad/in",
        "s3://b/in?secret_key=SEC",
    ],
)
def test_an_error_of_a_library_that_takes_an_address_apart_is_told_without_its_parts(address: str) -> None:
    """fsspec's and Arrow's own words, the standard library's among them."""
    told = []
    for read in (fsspec.core.url_to_fs, pyarrow.fs.FileSystem.from_uri, _port):
        try:
            read(address)
        except Exception as error:  # whichever it is
            told.append(reason(error, address))
    assert told
    assert not any(secret in words for words in told for secret in ("SEC", "RET")), told


def _port(address: str) -> None:
    from urllib.parse import urlsplit

    raise ValueError(f"{urlsplit(address.replace('[', '')).port}")


def test_an_error_is_told_in_full_where_it_holds_no_credential() -> None:
    error = OSError("bucket 'rows' does not exist")
    assert reason(error, "s3://KEY:SECRET@rows/in") == "bucket 'rows' does not exist"
    assert reason(error, "s3://rows/in") == "bucket 'rows' does not exist"
    assert (
        reason(ValueError("Port could not be cast to integer value as 'SECRET'"), "s3://KEY:SECRET/x@rows")
        == "ValueError"
    )
