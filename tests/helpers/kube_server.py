"""A server on loopback that speaks the few paths of Kubernetes' API that jobs need: objects kept in memory, by the rules of the
API (404, 409, merge patches, dry runs, label selectors, owned objects deleted with their owner). No operator acts in it: a test
writes what KubeRay would.
"""

import json
import re
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
        self.refused: dict[str, str] = {}
        """plural → what an admission webhook says to a new one"""
        self.changed = threading.Condition()
        self.put("/api/v1/namespaces/fsl-dist", {"metadata": {"name": "fsl-dist"}})
        self.put("/apis/ray.io/v1", {"resources": [{"name": "rayjobs"}, {"name": "rayclusters"}]})

    def put(self, path: str, one: dict) -> dict:
        """Keep an object, as of now."""
        metadata = one.setdefault("metadata", {})
        metadata.setdefault("uid", str(uuid.uuid4()))
        stamp = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=len(self.objects))
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

    def write_log(self, pod: str, text: str, *, ends: bool = False) -> None:
        with self.changed:
            self.logs.setdefault(pod, []).append(text)
            (self.open_logs.discard if ends else self.open_logs.add)(pod)
            self.changed.notify_all()

    def kubeconfig(self, folder: Path, token: str = TOKEN) -> Path:
        cluster = {"server": f"http://127.0.0.1:{self._server.server_port}"}
        found = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "me", "user": {"token": token}}],
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
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"message": "Unauthorized"})
        path = url.path
        plural = next(iter(re.findall(r"/namespaces/[^/]+/([a-z]+)", path)), "")
        is_listing = path.endswith(f"/{plural}") and bool(plural)
        if path.endswith("selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked["subresource"])))
            return self._answer(201, {"status": {"allowed": (asked["verb"], resource) not in state.denied}})
        if (verb, plural) in state.denied:
            return self._answer(403, {"message": f"{plural} is forbidden: you cannot {verb} it"})
        if path.endswith("/log"):
            return self._send_log(path.split("/")[-2], follows=query.get("follow") == "true")
        if verb == "create":
            return self._create(f"{path}/{body['metadata']['name']}", plural, body, query)
        if is_listing:
            return self._answer(200, {"items": self._select(path, query.get("labelSelector", ""))})
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

    def _select(self, path: str, selector: str) -> list[dict]:
        wanted = [part.partition("=") for part in selector.split(",") if part]
        found = [one for key, one in self.server_state.objects.items() if key.rpartition("/")[0] == path]
        return [
            one
            for one in found
            if all(
                key in (labels := one["metadata"].get("labels", {}))
                and (not has_value or labels[key] == value)
                for key, has_value, value in wanted
            )
        ]

    def _send_log(self, pod: str, *, follows: bool) -> None:
        state = self.server_state
        if f"/api/v1/namespaces/fsl-dist/pods/{pod}" not in state.objects:
            return self._answer(404, {"message": f"pod {pod} not found"})
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        while True:
            with state.changed:
                pieces = state.logs.get(pod, [])[sent:]
                is_open = follows and pod in state.open_logs
                if not pieces and is_open:
                    state.changed.wait(0.2)
                    continue
            for piece in pieces:
                data = piece.encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()
            sent += len(pieces)
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
