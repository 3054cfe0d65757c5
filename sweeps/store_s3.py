"""A store in a bucket, by the S3 protocol. Credentials, region and endpoint come by boto3's own chain
(AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, a web identity ...) and are neither read, kept nor told here.

Retries are botocore's (standard mode: 5xx, throttling, connections, time-outs; exponential back-off with jitter); it
leaves two things to its callers. A body that breaks off midway is read again. A conditional put whose first answer was
lost is refused by its own success at the second try: after a retry the content decides whether the winner were we.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from sweeps.store import S3, Entry, Look, StoreUnavailable, checked_key, parse_uri

TRIES = 6
"""Of one request, the first included: with back-off about 15 s in the mean, 31 s at most, and the time-outs."""
CONNECT_S = 5.0
READ_S = 30.0
"""Between two packets of an answer; a large object may take longer as long as it flows."""
PART_BYTES = 16 * 1024 * 1024
"""Files above it go up in parts of it: what is cut off never becomes an object."""
_MOST_KEYS = 1000  # of one DeleteObjects
_ABSENT = ("NoSuchKey", "404")
_TAKEN = ("PreconditionFailed", "412")
_BUSY = ("ConditionalRequestConflict", "OperationAborted", "409")

Answer = TypeVar("Answer")


class S3Store:
    """Keys under a prefix of a bucket. From any thread."""

    def __init__(self, client: Any, bucket: str, prefix: str, *, pause_s: Callable[[int], float] | None = None) -> None:
        """pause_s: seconds to wait before a try that botocore leaves to us, by its number."""
        self.uri = f"{S3}{bucket}/{prefix}".removesuffix("/")
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._pause_s = pause_s or (lambda number: 0.25 * 2**number)

    @classmethod
    def of(cls, uri: str, *, tries: int = TRIES, read_s: float = READ_S) -> "S3Store":
        """A store by s3://BUCKET/PREFIX. Raises ConfigError."""
        bucket, prefix = parse_uri(uri)
        config = Config(
            retries={"mode": "standard", "total_max_attempts": tries},
            connect_timeout=CONNECT_S,
            read_timeout=read_s,
            max_pool_connections=16,
            tcp_keepalive=True,
        )
        with _told(uri):
            return cls(boto3.client("s3", config=config), bucket, prefix)

    def under(self, prefix: str) -> "S3Store":
        """The store of the keys under a prefix, by the same client."""
        return S3Store(self._client, self._bucket, self._prefix + checked_key(prefix), pause_s=self._pause_s)

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """An object is whole and durable once the put is answered."""
        with _told(key):
            self._client.put_object(**self._at(key), Body=data)

    def put_new(self, key: str, data: bytes) -> None:
        """By `If-None-Match: *`, which the store itself decides."""
        sent_twice = False
        for number in range(TRIES):
            with _told(key):
                try:
                    self._client.put_object(**self._at(key), Body=data, IfNoneMatch="*")
                    return
                except ClientError as error:
                    code, sent_twice = _code(error), sent_twice or _retried(error)
                    if code in _TAKEN:
                        if sent_twice and self.get(key) == data:
                            return
                        raise FileExistsError(key) from error
                    if code not in _BUSY or number + 1 == TRIES:
                        raise
            time.sleep(self._pause_s(number))  # somebody else is about to make it, or our own first try is

    def get(self, key: str) -> bytes | None:
        """Its content, or None."""

        def read() -> bytes | None:
            try:
                body: bytes = self._client.get_object(**self._at(key))["Body"].read()
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise
            return body

        with _told(key):
            return self._again(read)

    def look(self, prefix: str, *, after: str = "", deep: bool = False) -> Look:
        """S3 lists what was put before, without delay."""
        base = self._prefix + (checked_key(prefix) if prefix else "")
        asked: dict[str, Any] = {"Bucket": self._bucket, "Prefix": base, "StartAfter": base + after if after else ""}
        if not deep:
            asked["Delimiter"] = "/"
        entries, folders = {}, []
        with _told(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(**asked):
                folders += [each["Prefix"].removeprefix(base)[:-1] for each in page.get("CommonPrefixes", ())]
                for each in page.get("Contents", ()):
                    name = each["Key"].removeprefix(base)
                    key = each["Key"].removeprefix(self._prefix)
                    entries[name] = Entry(key=key, etag=each["ETag"].strip('"'), size=each["Size"])
        entries.pop("", None)  # some consoles make an object for the folder itself
        return Look(entries=dict(sorted(entries.items())), folders=[name for name in folders if name > after])

    def delete(self, keys: Iterable[str]) -> None:
        """A thousand at a time."""
        names = [{"Key": self._prefix + checked_key(key)} for key in keys]
        for first in range(0, len(names), _MOST_KEYS):
            batch = {"Objects": names[first : first + _MOST_KEYS], "Quiet": True}
            with _told(self.uri):
                answer = self._client.delete_objects(Bucket=self._bucket, Delete=batch)
            if failed := answer.get("Errors"):
                raise StoreUnavailable(f"cannot be removed ({failed[0].get('Code')})", str(failed[0].get("Key")))

    def put_file(self, key: str, path: Path) -> None:
        """In parts where it is large; parts that do not become an object are given up, or left to the bucket's rule."""
        with _told(key):
            self._client.upload_file(str(path), **self._at(key), Config=_TRANSFER)

    def get_file(self, key: str, path: Path) -> bool:
        """In ranges where it is large, each tried again when it breaks off."""
        with _told(key):
            try:
                self._client.download_file(**self._at(key), Filename=str(path), Config=_TRANSFER)
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return False
                raise
        return True

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + checked_key(key)}

    def _again(self, ask: Callable[[], Answer]) -> Answer:
        """Ask again where the answer's body broke off, of which botocore's retries know nothing."""
        for number in range(TRIES - 1):
            try:
                return ask()
            except (HTTPClientError, OSError):
                time.sleep(self._pause_s(number))
        return ask()


_TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The store's trouble as ours. Of a server's answer only the code is quoted: the rest may name keys."""
    try:
        yield
    except ClientError as error:
        code = _code(error)
        raise StoreUnavailable(f"the object store answers {code}{_REMEDIES.get(code, '')}", what) from error
    except (BotoCoreError, Boto3Error) as error:
        name = type(error).__name__
        raise StoreUnavailable(f"the object store cannot be asked ({name}){_REMEDIES.get(name, '')}", what) from error


_REMEDIES = {
    "NoSuchBucket": ": make the bucket first",
    "AccessDenied": ": its policy must allow Get, Put, Delete, List and AbortMultipartUpload under the prefix",
    "NoCredentialsError": ": set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another source that boto3 knows",
    "NotImplemented": ": it must know If-None-Match on PutObject",
}


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "?"))


def _retried(error: ClientError) -> bool:
    return bool(error.response.get("ResponseMetadata", {}).get("RetryAttempts"))
