"""Asks an API server, and watches VolumeAttachments and Cleat's records: what bench.py and cycles.py are made of."""
import json
import ssl
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

OBJECTS = "/apis/storage.k8s.io/v1/volumeattachments"
RECORDS = "/apis/cleat.io/v1alpha1/cleatvolumes"
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

    def follow(self, path):
        """What is there, and a stream of every change from then on. Without a time the API server ends it after half an hour."""
        now = self.get(path)
        query = f"watch=1&timeoutSeconds=86400&resourceVersion={now['metadata']['resourceVersion']}"
        return now["items"], self.ask("GET", f"{path}?{query}", timeout=86400)

    def attach(self, name, volume, node):
        self.ask("POST", OBJECTS, {
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name},
            "spec": {"attacher": "cleat.io", "nodeName": node, "source": {"persistentVolumeName": volume}}}).read()

    def detach(self, name):
        self.ask("DELETE", f"{OBJECTS}/{name}").read()


class Watch:
    """When each VolumeAttachment became attached, and when it was gone."""

    def __init__(self, api):
        self.attached, self.gone, self.changed = {}, {}, threading.Condition()
        _, self.stream = api.follow(OBJECTS)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.stream:
            event, now = json.loads(line), time.monotonic()
            one = event["object"]
            name = one["metadata"].get("name")
            with self.changed:
                if event["type"] == "DELETED": self.gone[name] = now
                elif one.get("status", {}).get("attached"): self.attached.setdefault(name, now)
                self.changed.notify_all()

    def wait(self, which, names):
        with self.changed:
            if not self.changed.wait_for(lambda: all(n in which for n in names), LONGEST):
                raise SystemExit("not in time: " + ", ".join(n for n in names if n not in which))


class Records:
    """The nodes that may write to a volume, by Cleat's records: those of each now, and what ever named more than one."""

    def __init__(self, api):
        self.nodes, self.twice = {}, []
        there, self.stream = api.follow(RECORDS)
        for record in there: self.see(record)
        self.reading = threading.Thread(target=self.read, daemon=True)
        self.reading.start()

    def see(self, record):
        found = [a["node"] for a in ((record.get("spec") or {}).get("record") or {}).get("attachments") or []]
        self.nodes[record["metadata"].get("name")] = found
        if len(found) > 1: self.twice.append((record["metadata"].get("name"), found))

    def read(self):
        for line in self.stream:
            event = json.loads(line)
            if event["type"] == "ERROR": return
            self.see({"metadata": event["object"]["metadata"]} if event["type"] == "DELETED" else event["object"])


def side_by_side(work, all):
    """The first error of any of them is raised."""
    with ThreadPoolExecutor(max(1, len(all))) as pool: list(pool.map(work, all))
