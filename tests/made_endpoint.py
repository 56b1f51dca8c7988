"""An OpenAI-compatible endpoint on loopback that answers as it is told to, oddly for the most part."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(content: Any, finish: str = "stop", **more: Any) -> bytes:
    message = {"role": "assistant", "content": content, **more}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    ).encode()


class Server:
    """An endpoint on loopback that gives `replies` (status, body) one after the other, the last one for good.

    A reply of None closes the connection, a number waits so many seconds. `seen`: what was asked, with its headers.
    """

    def __init__(self) -> None:
        self.replies: list[Any] = [(200, completion("네"))]
        self.seen: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = json.loads(body) if body else {}
                outer.seen.append({**asked, "path": self.path, "key": self.headers["Authorization"]})
                reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                if reply is None:
                    self.close_connection = True
                    return
                if isinstance(reply, float):
                    time.sleep(reply)
                    return
                status, answer = reply
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **outer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.place}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
