"""A server on loopback that speaks the few paths of Kubernetes' API that jobs need: objects kept in memory, by the rules of the
API (404, 409, merge patches, dry runs, label selectors, owned objects deleted with their owner). No operator acts in it: a test
writes what KubeRay would.
"""

import json
import re
import socket
import threading
import uuid
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml
from k8s_schema import schema_faults

TOKEN = "a-token-of-this-test"


class KubeServer:
    """Start with `with`; `kubeconfig(folder)` writes the file that finds it."""

    def __init__(self) -> None:
        self.objects: dict[str, dict] = {}
        self.logs: dict[str, list[str]] = {}
        self.open_logs: set[str] = set()
        """pods that still write"""
        self.denied: set[tuple[str, str]] = set()
        """verb and resource that nobody may"""
        self.granted: set[tuple[str, str]] | None = None
        """verb and resource that may be used, where a role is tried; None: all"""
        self.token = TOKEN
        """of whoever asks; a test renews it"""
        self.faults: list[str] = []
        """what the next requests meet, one each: an HTTP code, or `reset` for a connection that breaks"""
        self.requests: list[str] = []
        """method and path of each request"""
        self.log_breaks: list[int] = []
        """lines after which the next streams of logs break off, one each"""
        self.refused: dict[str, str] = {}
        """plural → what an admission webhook says to a new one"""
        self.changed = threading.Condition()
        self.put("/api/v1/namespaces/fsl-dist", {"metadata": {"name": "fsl-dist"}})
        self.put("/apis/ray.io/v1", {"resources": [{"name": "rayjobs"}, {"name": "rayclusters"}]})

    def put(self, path: str, one: dict) -> dict:
        """Keep an object, as of now."""
        metadata = one.setdefault("metadata", {})
        metadata.setdefault("uid", str(uuid.uuid4()))
        stamp = datetime.now(UTC) + timedelta(seconds=len(self.objects))  # later ones are newer
        metadata.setdefault("creationTimestamp", stamp.strftime("%Y-%m-%dT%H:%M:%SZ"))
        with self.changed:
            self.objects[path] = one
            self.changed.notify_all()
        return one

    def add_pod(self, name: str, job: str, part: str, **status: object) -> None:
        labels = {"fsl-dist/job": job, "fsl-dist/part": part}
        path = f"/api/v1/namespaces/fsl-dist/pods/{name}"
        self.put(
            path, {"metadata": {"name": name, "labels": labels}, "status": {"phase": "Pending", **status}}
        )

    def add_event(
        self, kind: str, name: str, reason: str, message: str, at: str, event_type: str = "Warning"
    ) -> None:
        about = {"kind": kind, "name": name}
        one = {
            "involvedObject": about,
            "reason": reason,
            "message": message,
            "type": event_type,
            "lastTimestamp": at,
        }
        self.put(f"/api/v1/namespaces/fsl-dist/events/{name}.{len(self.objects)}", one)

    def write_log(self, pod: str, text: str, *, ends: bool = False) -> None:
        with self.changed:
            self.logs.setdefault(pod, []).append(text)
            (self.open_logs.discard if ends else self.open_logs.add)(pod)
            self.changed.notify_all()

    def kubeconfig(self, folder: Path, token: str = TOKEN, token_file: Path | None = None) -> Path:
        cluster = {"server": f"http://127.0.0.1:{self._server.server_port}"}
        found = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [
                {"name": "me", "user": {"tokenFile": str(token_file)} if token_file else {"token": token}}
            ],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(found))
        return path

    def __enter__(self) -> "KubeServer":
        store = self

        class Handler(_Handler):
            server_state = store

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: KubeServer

    def do_GET(self) -> None:
        self._serve("get")

    def do_POST(self) -> None:
        self._serve("create")

    def do_PATCH(self) -> None:
        self._serve("patch")

    def do_DELETE(self) -> None:
        self._serve("delete")

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self, verb: str) -> None:
        state, url = self.server_state, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else {}
        path = url.path
        state.requests.append(f"{self.command} {path}")
        if state.faults:
            fault = state.faults.pop(0)
            if fault == "reset":
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            return self._answer(int(fault), {"message": "the server is busy"})
        if self.headers.get("Authorization") != f"Bearer {state.token}":
            return self._answer(401, {"message": "Unauthorized"})
        plural = next(iter(re.findall(r"/namespaces/[^/]+/([a-z]+)", path)), "")
        is_listing = path.endswith(f"/{plural}") and bool(plural)
        if path.endswith("selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked["subresource"])))
            return self._answer(201, {"status": {"allowed": (asked["verb"], resource) not in state.denied}})
        allowed = "list" if verb == "get" and is_listing else verb
        resource = plural + ("/log" if path.endswith("/log") else "")
        is_open = not plural or (verb == "get" and resource == plural and (verb, plural) in state.denied)
        if state.granted is not None and not is_open and (allowed, resource) not in state.granted:
            return self._answer(403, {"message": f"{resource} is forbidden: you cannot {allowed} it"})
        if (verb, plural) in state.denied or (allowed, plural) in state.denied:
            return self._answer(403, {"message": f"{plural} is forbidden: you cannot {verb} it"})
        if path.endswith("/log"):
            return self._send_log(path.split("/")[-2], query)
        if verb == "create":
            return self._create(f"{path}/{body['metadata']['name']}", plural, body, query)
        if is_listing:
            return self._answer(200, {"items": self._select(path, query)})
        if path not in state.objects:
            return self._answer(404, {"message": f"{path} not found"})
        if verb == "delete":
            self._delete(path)
        elif verb == "patch":
            assert self.headers["Content-Type"] == "application/merge-patch+json"
            state.put(path, _merge(state.objects[path], body))
        return self._answer(200, state.objects.get(path, {"status": "Success"}))

    def _create(self, path: str, plural: str, body: dict, query: dict) -> None:
        state = self.server_state
        if path in state.objects:
            return self._answer(409, {"message": f"{path} already exists"})
        if faults := schema_faults(body):
            return self._answer(422, {"message": "; ".join(faults)})
        if plural in state.refused and "dryRun" not in query:
            return self._answer(403, {"message": state.refused[plural]})
        return self._answer(201, body if query.get("dryRun") == "All" else state.put(path, body))

    def _delete(self, path: str) -> None:
        objects = self.server_state.objects
        gone = objects.pop(path)["metadata"]["uid"]
        for other, one in list(objects.items()):
            if gone in [owner["uid"] for owner in one["metadata"].get("ownerReferences", [])]:
                del objects[other]

    def _select(self, path: str, query: dict) -> list[dict]:
        wanted = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
        found = [one for key, one in self.server_state.objects.items() if key.rpartition("/")[0] == path]
        if field := query.get("fieldSelector"):
            assert field.startswith("involvedObject.name=")
            found = [one for one in found if one["involvedObject"]["name"] == field.partition("=")[2]]
        return [
            one
            for one in found
            if all(
                key in (labels := one["metadata"].get("labels", {}))
                and (not has_value or labels[key] == value)
                for key, has_value, value in wanted
            )
        ]

    def _send_log(self, pod: str, query: dict) -> None:
        """A pod's lines, each a piece of the log; with timestamps one second for two lines, so that a resume meets a tie."""
        state, follows = self.server_state, query.get("follow") == "true"
        if f"/api/v1/namespaces/fsl-dist/pods/{pod}" not in state.objects:
            return self._answer(404, {"message": f"pod {pod} not found"})
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent, lines_left = 0, state.log_breaks.pop(0) if state.log_breaks else None
        while True:
            with state.changed:
                lines = "".join(state.logs.get(pod, [])).splitlines(keepends=True)
                new = lines[sent:]
                is_open = follows and pod in state.open_logs
                if not new and is_open:
                    state.changed.wait(0.2)
                    continue
            for number, line in enumerate(new, sent):
                stamp = f"2026-01-01T00:{number // 2 // 60:02d}:{number // 2 % 60:02d}"
                if stamp + "Z" < query.get("sinceTime", ""):
                    continue
                shown = f"{stamp}.{number:09d}Z {line}" if query.get("timestamps") == "true" else line
                if lines_left == 0:  # in the middle of a line
                    shown = shown[: len(shown) // 2]
                data = shown.encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()
                if lines_left == 0:
                    self.close_connection = True
                    return self.connection.shutdown(socket.SHUT_RDWR)
                lines_left = None if lines_left is None else lines_left - 1
            sent = len(lines)
            if not is_open:
                break
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _merge(one: dict, patch: dict) -> dict:
    merged = dict(one)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key, {}), value) if isinstance(value, dict) else value
    return merged
