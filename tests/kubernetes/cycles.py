#!/usr/bin/env python3
"""cycles.py API TOKEN CYCLES TROUBLE PV... [--written COMMAND]: volumes go from node to node while TROUBLE is made, again and again.

In each cycle every volume gets a VolumeAttachment on the other node and loses the one it has, in an order by chance, and TROUBLE
is run, with the cycle's number, at a moment by chance in between: it kills the leader, or takes the records away. A cycle begins
with a controller that leads and another one that can. What has to hold: every VolumeAttachment comes to its end, no record ever
has two nodes, in whatever moment, and when all are gone no record says that a node may write. The last line says how long the
slowest cycle took.

With --written the nodes write to what they have meanwhile, and records are lost: COMMAND with a volume prints the last number
that each node has written to it, a line a node. Then no record may ever have two nodes that were granted the volume; a node
that has one writes to it; and what a node has written does not change once its VolumeAttachment has gone.
"""
import argparse
import random
import subprocess
import time

from api import LONGEST, Api, Records, Watch, side_by_side

parser = argparse.ArgumentParser()
for name in ("api", "token"): parser.add_argument(name)
parser.add_argument("cycles", type=int)
parser.add_argument("trouble")
parser.add_argument("volumes", nargs="+")
parser.add_argument("--written")
given = parser.parse_args()
NODES = ("node-a", "node-b")
api, volumes = Api(given.api, given.token), given.volumes
# Bounds are waited out where records are lost.
watch = Watch(api, 2 * LONGEST if given.written else LONGEST)
chance, records, slowest = random.Random(1), Records(api, lost=bool(given.written)), 0
has, off = {}, {}


def two_controllers():
    """Waits until one leads and another one is ready to: with one alone a cycle would take as long as a pod takes to start."""
    for _ in range(300):
        ready = [pod["metadata"]["name"] for pod in api.controllers() if "deletionTimestamp" not in pod["metadata"]
                 and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))]
        if len(ready) == 2 and api.leader() in ready: return
        time.sleep(1)
    raise SystemExit("a leader and a standby are not there in time: kubectl -n cleat-system get pods")


def written(volume):
    """The last number that each node has written to it, as the target has it; an empty text before its first."""
    said = subprocess.run(["sh", "-c", f"{given.written} {volume}"], check=True, capture_output=True, text=True, timeout=60).stdout
    return dict(zip(NODES, said.split("\n"), strict=False))


def is_off(volume, made, node):
    """Once the VolumeAttachment has gone: what the node has written by then is all that it ever writes."""
    watch.wait(watch.gone, [made])
    off[volume, node] = written(volume)[node]


def only_its_node_writes(volume, node):
    """The node writes to it, unless that is nobody, and no other has since it was off it."""
    for _ in range(60):
        now = written(volume)
        late = [f"{n}: number {off.get((volume, n), '')!r} then, {now[n]!r} now" for n in NODES
                if n != node and now[n] != off.get((volume, n), "")]
        if late: raise SystemExit(f"written to {volume} after it was off: {', '.join(late)}")
        if node is None or now[node] != off.get((volume, node), ""): return
        time.sleep(1)
    raise SystemExit(f"{node} has {volume}, and has not written to it within a minute: nothing is known of late writes")


for cycle in range(given.cycles):
    two_controllers()
    began, made, removed = time.monotonic(), [], []

    def move(volume):
        time.sleep(chance.random() * 3)
        before, was = has.get(volume, (None, chance.choice(NODES)))
        node = "node-b" if was == "node-a" else "node-a"
        if before:
            api.detach(before)
            removed.append(before)
        now = api.attach(volume, node)
        made.append(now)
        has[volume] = now, node
        if given.written and before: is_off(volume, before, was)

    delay = chance.random() * 4
    trouble = subprocess.Popen(["sh", "-c", f"sleep {delay}; {given.trouble} {cycle + 1}"], stdout=subprocess.DEVNULL)
    side_by_side(move, volumes)
    watch.wait(watch.gone, removed)
    watch.wait(watch.attached, made)
    if records.twice: raise SystemExit(f"a record had two nodes: {records.twice}")
    if trouble.wait(120): raise SystemExit(f"no trouble was made: {given.trouble} {cycle + 1} ended with {trouble.returncode}")
    took = time.monotonic() - began
    slowest = max(slowest, took)
    if given.written: side_by_side(lambda volume: only_its_node_writes(volume, has[volume][1]), volumes)
    print(f"cycle {cycle + 1}: trouble after {delay:.1f} s, all {len(volumes)} volumes attached after {took:.1f} s", flush=True)
last = [made for made, _ in has.values()]
side_by_side(api.detach, last)
if given.written: side_by_side(lambda volume: is_off(volume, *has[volume]), volumes)
watch.wait(watch.gone, last)
for _ in range(60):
    if not any(records.nodes.get(volume) for volume in volumes): break
    time.sleep(1)
else:
    raise SystemExit("a record still says that a node may write: kubectl get cleatvolumes")
if given.written: side_by_side(lambda volume: only_its_node_writes(volume, None), volumes)
if records.twice: raise SystemExit(f"a record had two nodes: {records.twice}")
if not records.reading.is_alive(): raise SystemExit("the watch of the records has ended early: what they said meanwhile is not known")
late = ", no write of a node that was off" if given.written else ""
print(f"{given.cycles} cycles, no VolumeAttachment stuck, no record with two nodes{late}; the slowest cycle took {slowest:.1f} s")
