#!/usr/bin/env python3
"""cycles.py API TOKEN CYCLES KILL PV...: volumes go from node to node while the leader is killed, again and again.

In each cycle every volume gets a VolumeAttachment on the other node and loses the one it has, in an order by chance, and KILL
is run at a moment by chance in between. A cycle begins with a controller that leads and another one that can. What has to hold:
every VolumeAttachment comes to its end, no record ever has two nodes, in whatever moment, and when all are gone no record says
that a node may write. The last line says how long the slowest cycle took.
"""
import random
import subprocess
import sys
import time

from api import Api, Records, Watch, side_by_side

api, cycles, kill, volumes = Api(*sys.argv[1:3]), int(sys.argv[3]), sys.argv[4], sys.argv[5:]
chance, watch, records, slowest = random.Random(1), Watch(api), Records(api), 0
if not volumes: raise SystemExit("no volumes")
has = {}


def two_controllers():
    """Waits until one leads and another one is ready to: with one alone a cycle would take as long as a pod takes to start."""
    for _ in range(300):
        ready = [pod["metadata"]["name"] for pod in api.controllers() if "deletionTimestamp" not in pod["metadata"]
                 and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))]
        lease = api.get("/apis/coordination.k8s.io/v1/namespaces/cleat-system/leases/cleat-controller")
        leader = (lease["spec"].get("holderIdentity") or "").split("_")[0]
        if len(ready) == 2 and leader in ready: return
        time.sleep(1)
    raise SystemExit("a leader and a standby are not there in time: kubectl -n cleat-system get pods")


for cycle in range(cycles):
    two_controllers()
    began, made, removed = time.monotonic(), [], []

    def move(volume):
        time.sleep(chance.random() * 3)
        before, was = has.get(volume, (None, chance.choice(["node-a", "node-b"])))
        node = "node-b" if was == "node-a" else "node-a"
        if before:
            api.detach(before)
            removed.append(before)
        now = api.attach(volume, node)
        made.append(now)
        has[volume] = now, node

    delay = chance.random() * 4
    killer = subprocess.Popen(["sh", "-c", f"sleep {delay}; {kill}"], stdout=subprocess.DEVNULL)
    side_by_side(move, volumes)
    watch.wait(watch.gone, removed)
    watch.wait(watch.attached, made)
    if records.twice: raise SystemExit(f"a record had two nodes: {records.twice}")
    if killer.wait(120): raise SystemExit("the leader was not killed")
    took = time.monotonic() - began
    slowest = max(slowest, took)
    print(f"cycle {cycle + 1}: killed after {delay:.1f} s, all {len(volumes)} volumes attached after {took:.1f} s", flush=True)
last = [made for made, _ in has.values()]
side_by_side(api.detach, last)
watch.wait(watch.gone, last)
for _ in range(60):
    if not any(records.nodes.get(volume) for volume in volumes): break
    time.sleep(1)
else:
    raise SystemExit("a record still says that a node may write: kubectl get cleatvolumes")
if records.twice: raise SystemExit(f"a record had two nodes: {records.twice}")
if not records.reading.is_alive(): raise SystemExit("the watch of the records has ended early: what they said meanwhile is not known")
print(f"{cycles} leaders killed, no VolumeAttachment stuck, no record with two nodes; the slowest cycle took {slowest:.1f} s")
