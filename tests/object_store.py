"""An S3 server on this machine, which fails some of its requests."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Flaky:
    """Fails every n-th request: by turns with an error of the server, and without an answer."""

    def __init__(self, app, every: int = 0) -> None:
        self.app, self.every = app, every
        self.lock = threading.Lock()
        self.requests = self.failed = 0

    def __call__(self, environ, start_response):
        with self.lock:
            self.requests += 1
            fails = self.every and self.requests % self.every == 0
            self.failed += bool(fails)
        if not fails:
            return self.app(environ, start_response)
        if self.failed % 2:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)  # else the client would wait
            raise ConnectionAbortedError("the server goes away without an answer")
        start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
        return [b"<Error><Code>InternalError</Code><Message>not now</Message></Error>"]


@contextmanager
def object_store(patch, every: int = 0, bucket: str = "bucket") -> Iterator[Flaky]:
    """A server with one bucket, which the environment points to."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app = Flaky(DomainDispatcherApplication(create_backend_app), every)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    every_time, app.every = app.every, 0
    s3fs.S3FileSystem().mkdir(bucket)
    app.every = every_time
    try:
        yield app
    finally:
        server.shutdown()
        thread.join()
        s3fs.S3FileSystem.clear_instance_cache()
