"""An S3 of its own for a test run: moto's server."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_store() -> Iterator[str]:
    """URL of an empty store, for fsspec; the environment says where its server is."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests-alone")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # they remember an earlier server
        bucket = f"artifacts-{uuid.uuid4().hex[:8]}"  # moto's servers of one process share their buckets
        s3fs.S3FileSystem().mkdir(bucket)
        yield f"s3://{bucket}/anthesis"
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
