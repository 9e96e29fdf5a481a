#!/usr/bin/env python3
"""bench.py API TOKEN NODE ROUNDS PV...: how long an attach takes through Kubernetes, beside the same at the CSI socket.

Makes VolumeAttachments of those PersistentVolumes, 1, 8 and 32 (as many as there are) at once, and waits until the API
server says that each is attached; then removes them, and waits until each is gone. The controllers' logs say how long each
of the same calls took at the CSI socket, and which were answered otherwise than OK, to be repeated. A line for each number:
the medians of all attachments of all rounds, their ratio, and the calls that were answered otherwise. Then all of it as one
line of JSON.
"""
import json
import re
import statistics
import sys
import time

from api import CONTROLLERS, Api, Watch, side_by_side

api, node, rounds, volumes = Api(*sys.argv[1:3]), sys.argv[3], int(sys.argv[4]), sys.argv[5:]
ATTACH, DETACH = "ControllerPublishVolume", "ControllerUnpublishVolume"
FIELD = re.compile(r'(\w+)="?([^"\s]*)"?')
ours = {api.handle(volume) for volume in volumes}


class Answers:
    """The calls about our volumes on that node that the controllers' logs have, from now on."""

    def __init__(self):
        self.lines, self.took, self.otherwise = {}, {ATTACH: [], DETACH: []}, 0
        self.read()
        self.took, self.otherwise = {ATTACH: [], DETACH: []}, 0

    def read(self):
        for pod in api.controllers():
            name = pod["metadata"]["name"]
            with api.ask("GET", f"{CONTROLLERS}/{name}/log?container=controller") as log: lines = log.read().decode().splitlines()
            for line in lines[self.lines.get(name, 0):]:
                if " answered " not in line: continue
                # An error's own words come last.
                call = dict(reversed(FIELD.findall(line)))
                if call.get("rpc") not in self.took or call.get("volume") not in ours or call.get("node") != node: continue
                if call["code"] == "OK": self.took[call["rpc"]].append(int(call["duration_ms"]))
                else: self.otherwise += 1
            self.lines[name] = len(lines)

    def median(self, rpc, number):
        """Of so many at least: what was answered is in the log a moment later."""
        for _ in range(100):
            if len(self.took[rpc]) >= number: return statistics.median(self.took[rpc])
            time.sleep(0.1)
            self.read()
        raise SystemExit(f"the controllers' logs have {len(self.took[rpc])} of {number} calls of {rpc}")


def measured(through, socket):
    return {"kubernetes_ms": round(through, 1), "socket_ms": socket, "ratio": round(through / max(socket, 1), 2)}


watch, found = Watch(api), []
print(f"{'at once':>8} {'attach ms':>10} {'socket ms':>10} {'x':>6} {'detach ms':>10} {'socket ms':>10} {'x':>6} {'otherwise':>10}")
for number in [n for n in (1, 8, 32) if n <= len(volumes)]:
    attach, detach, answers = [], [], Answers()
    for round_ in range(rounds):
        def make(volume):
            began = time.monotonic()
            return api.attach(volume, node), began

        def remove(pair):
            began = time.monotonic()
            api.detach(pair[0])
            return pair[0], began

        pairs = side_by_side(make, volumes[:number]); watch.wait(watch.attached, [made for made, _ in pairs])
        attach += [watch.attached[made.uid] - began for made, began in pairs]
        pairs = side_by_side(remove, pairs); watch.wait(watch.gone, [made for made, _ in pairs])
        detach += [watch.gone[made.uid] - began for made, began in pairs]
    a = measured(1000 * statistics.median(attach), answers.median(ATTACH, number * rounds))
    d = measured(1000 * statistics.median(detach), answers.median(DETACH, number * rounds))
    found.append({"at_once": number, "attach": a, "detach": d, "answered_otherwise": answers.otherwise})
    line = " ".join(f"{m['kubernetes_ms']:>10.0f} {m['socket_ms']:>10.0f} {m['ratio']:>6.2f}" for m in (a, d))
    print(f"{number:>8} {line} {answers.otherwise:>10}", flush=True)
print(json.dumps({"rounds": rounds, "medians": found}))
