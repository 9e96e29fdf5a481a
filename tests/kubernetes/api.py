"""Asks an API server, and watches VolumeAttachments and Cleat's records: what the programs beside it are made of."""
import hashlib
import json
import ssl
import threading
import time
import urllib.request
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

DRIVER = "cleat.io"
CONTROLLERS = "/api/v1/namespaces/cleat-system/pods"
OBJECTS = "/apis/storage.k8s.io/v1/volumeattachments"
RECORDS = "/apis/cleat.io/v1alpha1/cleatvolumes"
NODES = "/apis/cleat.io/v1alpha1/cleatnodes"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/cleat-system/leases/cleat-controller"
LONGEST = 240

# A VolumeAttachment that was made. Its name is Kubernetes' own, and comes again with the same volume on the same node.
Made = namedtuple("Made", "name uid")


class Api:
    def __init__(self, address, token):
        self.address, self.token, self.handles = address, token, {}
        self.unverified = ssl.create_default_context()
        self.unverified.check_hostname, self.unverified.verify_mode = False, ssl.CERT_NONE

    def ask(self, method, path, body=None, timeout=30, kind="application/json"):
        request = urllib.request.Request(self.address + path, method=method, data=json.dumps(body).encode() if body else None)
        request.add_header("Authorization", "Bearer " + self.token)
        request.add_header("Content-Type", kind)
        return urllib.request.urlopen(request, context=self.unverified, timeout=timeout)

    def get(self, path):
        return json.load(self.ask("GET", path))

    def follow(self, path):
        """What is there, and a stream of every change from then on. Without a time the API server ends it after half an hour."""
        now = self.get(path)
        query = f"watch=1&timeoutSeconds=86400&resourceVersion={now['metadata']['resourceVersion']}"
        return now["items"], self.ask("GET", f"{path}?{query}", timeout=86400)

    def handle(self, volume):
        """The handle of a PersistentVolume."""
        if volume not in self.handles: self.handles[volume] = self.get(f"/api/v1/persistentvolumes/{volume}")["spec"]["csi"]["volumeHandle"]
        return self.handles[volume]

    def attach(self, volume, node):
        # As the attach/detach controller names it (getAttachmentName): Cleat looks for that name first.
        name = "csi-" + hashlib.sha256(f"{self.handle(volume)}{DRIVER}{node}".encode()).hexdigest()
        made = json.load(self.ask("POST", OBJECTS, {
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name},
            "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": volume}}}))
        return Made(name, made["metadata"]["uid"])

    def detach(self, made):
        self.ask("DELETE", f"{OBJECTS}/{made.name}").read()

    def controllers(self):
        """The controllers' pods."""
        return self.get(CONTROLLERS + "?labelSelector=app.kubernetes.io/component%3Dcontroller")["items"]

    def leader(self):
        """The pod that leads, as the Lease says."""
        return (self.get(LEASE)["spec"].get("holderIdentity") or "").split("_")[0]


class Watch:
    """When each VolumeAttachment became attached, and when it was gone, by its UID."""

    def __init__(self, api, longest=LONGEST):
        self.attached, self.gone, self.changed, self.longest = {}, {}, threading.Condition(), longest
        _, self.stream = api.follow(OBJECTS)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.stream:
            event, now = json.loads(line), time.monotonic()
            one = event["object"]
            uid = one["metadata"].get("uid")
            with self.changed:
                if event["type"] == "DELETED": self.gone[uid] = now
                elif one.get("status", {}).get("attached"): self.attached.setdefault(uid, now)
                self.changed.notify_all()

    def wait(self, which, made):
        with self.changed:
            if not self.changed.wait_for(lambda: all(one.uid in which for one in made), self.longest):
                raise SystemExit("not in time: " + ", ".join(one.name for one in made if one.uid not in which))


class Records:
    """The nodes that may write to a volume, by Cleat's records: those of each now, and what ever named more than one.

    With `lost`, more than one that was granted it: where a record is lost, whoever may have the volume counts as having it.
    """

    def __init__(self, api, lost=False):
        self.nodes, self.twice, self.lost = {}, [], lost
        there, self.stream = api.follow(RECORDS)
        for record in there: self.see(record)
        self.reading = threading.Thread(target=self.read, daemon=True)
        self.reading.start()

    def see(self, record):
        name, all = record["metadata"].get("name"), ((record.get("spec") or {}).get("record") or {}).get("attachments") or []
        self.nodes[name] = [a["node"] for a in all]
        counted = [a["node"] for a in all if not (self.lost and a.get("stray"))]
        if len(counted) > 1: self.twice.append((name, counted))

    def read(self):
        for line in self.stream:
            event = json.loads(line)
            if event["type"] == "ERROR": return
            self.see({"metadata": event["object"]["metadata"]} if event["type"] == "DELETED" else event["object"])


def side_by_side(work, all):
    """What came of each. The first error of any of them is raised."""
    with ThreadPoolExecutor(max(1, len(all))) as pool: return list(pool.map(work, all))
