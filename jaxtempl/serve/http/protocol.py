"""HTTP/1.1 of uvicorn and httptools, with the bodies of requests that offer an upgrade."""

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """Ignore each offer of another protocol, as RFC 9110 section 7.8 allows.

    The parser ends a request with an offer at its head, so its body would be lost. Java's HttpClient, Ktor and
    `curl --http2` offer h2c with their first request. The head is parsed again without the offer.
    """

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; each offer in it ends a call of the parser."""
        rest = memoryview(data)  # not copied, however many offers it has
        while rest:
            try:
                return super().data_received(rest)  # pyright: ignore[reportArgumentType]: the parser takes any buffer
            except httptools.HttpParserUpgrade as offer:
                rest = rest[offer.args[0] :]
                self.parser = httptools.HttpRequestParser(self)  # the old one is done if the request also says close
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                super().data_received(self._head_without_offer())

    def handle_websocket_upgrade(self) -> None:
        """Leave the offer to `data_received`, which knows the bytes after it."""
        raise  # uvicorn calls this while it handles HttpParserUpgrade

    def _should_upgrade(self) -> bool:
        """Return whether uvicorn skips this head; a CONNECT has no offer that could be left out."""
        return self.scope["method"] != "CONNECT"

    def _head_without_offer(self) -> bytes:
        start = f"{self.scope['method']} ".encode() + self.url + f" HTTP/{self.scope['http_version']}".encode()
        fields = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([start, *fields, b"", b""])
