"""Asks an API server, and watches VolumeAttachments: what bench.py and trials.py are made of."""
import json
import ssl
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

OBJECTS = "/apis/storage.k8s.io/v1/volumeattachments"
LONGEST = 240


class Api:
    def __init__(self, address, token):
        self.address, self.token = address, token
        self.unverified = ssl.create_default_context()
        self.unverified.check_hostname, self.unverified.verify_mode = False, ssl.CERT_NONE

    def ask(self, method, path, body=None, timeout=30):
        request = urllib.request.Request(self.address + path, method=method, data=json.dumps(body).encode() if body else None)
        request.add_header("Authorization", "Bearer " + self.token)
        request.add_header("Content-Type", "application/json")
        return urllib.request.urlopen(request, context=self.unverified, timeout=timeout)

    def get(self, path):
        return json.load(self.ask("GET", path))

    def attach(self, name, volume, node):
        self.ask("POST", OBJECTS, {
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name},
            "spec": {"attacher": "cleat.io", "nodeName": node, "source": {"persistentVolumeName": volume}}}).read()

    def detach(self, name):
        self.ask("DELETE", f"{OBJECTS}/{name}").read()


class Watch:
    """When each VolumeAttachment became attached, and when it was gone; and volumes that two nodes had at once."""

    def __init__(self, api):
        self.attached, self.gone, self.twice, self.has, self.changed = {}, {}, [], {}, threading.Condition()
        at = api.get(OBJECTS)["metadata"]["resourceVersion"]
        # Without a time of its own the API server ends it after half an hour to an hour.
        self.stream = api.ask("GET", f"{OBJECTS}?watch=1&timeoutSeconds=86400&resourceVersion={at}", timeout=86400)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.stream:
            event, now = json.loads(line), time.monotonic()
            one = event["object"]
            name, spec = one["metadata"].get("name"), one.get("spec", {})
            with self.changed:
                # One that is being deleted may be detached already: the attacher says so only in the end.
                nodes = self.has.setdefault(spec.get("source", {}).get("persistentVolumeName"), {})
                nodes.pop(name, None)
                if event["type"] == "DELETED": self.gone[name] = now
                elif one.get("status", {}).get("attached"):
                    self.attached.setdefault(name, now)
                    if "deletionTimestamp" not in one["metadata"]: nodes[name] = spec["nodeName"]
                    if len(set(nodes.values())) > 1: self.twice.append(dict(nodes))
                self.changed.notify_all()

    def wait(self, which, names):
        with self.changed:
            if not self.changed.wait_for(lambda: all(n in which for n in names), LONGEST):
                raise SystemExit("not in time: " + ", ".join(n for n in names if n not in which))


def side_by_side(work, all):
    """The first error of any of them is raised."""
    with ThreadPoolExecutor(max(1, len(all))) as pool: list(pool.map(work, all))
