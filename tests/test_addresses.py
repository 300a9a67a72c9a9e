"""What of an address may be shown: nothing of its user-info, no value that looks like a secret, all else as it is."""

import pytest

from rayssl.addresses import has_secret, sentence_without_secrets, without_secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:word@host:5000", "http://***@host:5000"),
        ("https://a-token@host/path?x=1#y", "https://***@host/path?x=1#y"),
        ("HTTP://me:word@host", "HTTP://***@host"),
        ("http://me:word@[::1]:5000/a@b", "http://***@b"),
        ("http://me:w@rd@host", "http://***@host"),
        ("http://me:w/o#r?d@host", "http://***@host"),
        ("postgresql+psycopg://me:w/ord@127.0.0.1:5432/db", "postgresql+psycopg://***@127.0.0.1:5432/db"),
        ("postgresql://me:12/3@host/db?sslmode=require", "postgresql://***@host/db?sslmode=require"),
        ("postgresql:///db?host=h&user=me&pass%77ord=word", "postgresql:///db?host=h&user=me&pass%77ord=***"),
        ("mysql://host/db?PASSWD=word;charset=utf8", "mysql://host/db?PASSWD=***;charset=utf8"),
        ("mssql://?odbc_connect=UID%3Dme%3BPWD%3Dword", "mssql://?odbc_connect=***"),
        ("s3://key%3Aword%40bucket/runs", "s3://***%40bucket/runs"),
        (
            "s3://bucket/runs?access_key=a&secret_key=b&region=c",
            "s3://bucket/runs?access_key=***&secret_key=***&region=c",
        ),
        ("s3://bucket?endpoint_override=http%3A%2F%2Fme%3Aword%40host", "s3://bucket?endpoint_override=***"),
        ("s3://bucket?endpoint_override=http%253A%252F%252Fme%253Aword%2540host", "s3://bucket?endpoint_override=***"),
        ("https://box/runs?sv=2024&sig=abc%2Bd", "https://box/runs?sv=2024&sig=***"),
        (
            "https://box/runs?X-Amz-Signature=a&X-Amz-Credential=b",
            "https://box/runs?X-Amz-Signature=***&X-Amz-Credential=***",
        ),
        ("https://box?AccountKey=a&sasToken=b&apikey=c", "https://box?AccountKey=***&sasToken=***&apikey=***"),
        ("https://box#access_token=abc", "https://box#access_token=***"),
    ],
)
def test_secrets_are_masked_and_nothing_else(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
    assert has_secret(address)
    assert without_secrets(shown) == shown  # so that a masked address can be compared with a masked one
    assert not has_secret(shown)


@pytest.mark.parametrize(
    "address",
    [
        "runs",
        "/home/me@work/runs?key=x",
        "sqlite:////home/me@work/runs/mlflow.db",
        "http://127.0.0.1:5000/page@2",
        "http://[::1]:5000",
        "http://@host",
        "http://[",
        "s3://bucket/runs/a@b?region=eu-west-1&scheme=http&endpoint_override=host:9000",
        "s3://bucket?monkey=1&author=me&passage=north&keyspace=2&key=",
        "file:///runs/a%40b",
        "",
    ],
)
def test_what_has_no_secret_stays_as_it_is(address: str) -> None:
    assert without_secrets(address) == address
    assert not has_secret(address)


def test_a_message_shows_neither_an_address_nor_its_parts() -> None:
    uri = "http://me:a%2Fword@host:1"
    message = f"request to {uri}/api failed: 'http://you:other@proxy' (authorisation a/word, me:a%2Fword) for \"{uri}\""
    assert sentence_without_secrets(message, uri) == (
        "request to http://***@host:1/api failed: 'http://***@proxy' (authorisation ***, ***) for \"http://***@host:1\""
    )


def test_a_short_password_does_not_tear_words_apart() -> None:
    """One letter stands in every sentence; within the address it is masked all the same."""
    assert sentence_without_secrets("at http://a:e@host: refused", "http://a:e@host") == "at http://***@host: refused"
