#!/usr/bin/env python3
"""bench.py API TOKEN NODE ROUNDS PV...: how long an attach takes through Kubernetes, beside the same at the CSI socket.

Makes VolumeAttachments of those PersistentVolumes, 1, 8 and 32 (as many as there are) at once, and waits until the API
server says that each is attached; then removes them, and waits until each is gone. The controller's own histograms say how
long the same calls took at its CSI socket. METRICS, in the environment, has the controllers' addresses, separated by commas.
A line for each number: the median of all attachments of all rounds, and the mean of the same calls at the socket.
"""
import os
import statistics
import sys
import time
import urllib.request

from api import Api, Watch, side_by_side

api, node, rounds, volumes = Api(*sys.argv[1:3]), sys.argv[3], int(sys.argv[4]), sys.argv[5:]


def calls():
    """Seconds and number of the calls at the socket that have ended well, by method."""
    total = {}
    for address in os.environ["METRICS"].split(","):
        for line in urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode().splitlines():
            for end in ("_sum", "_count"):
                if line.startswith("cleat_controller_csi_seconds" + end):
                    method = next((m for m in ("ControllerPublishVolume", "ControllerUnpublishVolume") if m in line), None)
                    if method: total[method + end] = total.get(method + end, 0) + float(line.rsplit(" ", 1)[1])
    return total


def mean_ms(before, after, method):
    count = after.get(method + "_count", 0) - before.get(method + "_count", 0)
    if not count: raise SystemExit(f"no {method} was counted at {os.environ['METRICS']}")
    return 1000 * (after.get(method + "_sum", 0) - before.get(method + "_sum", 0)) / count


watch = Watch(api)
print(f"{'at once':>8} {'attach ms':>10} {'socket ms':>10} {'x':>6} {'detach ms':>10} {'socket ms':>10} {'x':>6}")
for number in [n for n in (1, 8, 32) if n <= len(volumes)]:
    attach, detach, before = [], [], calls()
    for round in range(rounds):
        pairs, began = [(f"bench-{number}-{round}-{v}", v) for v in volumes[:number]], {}

        def make(pair):
            began[pair[0]] = time.monotonic()
            api.attach(*pair, node)

        def remove(pair):
            began[pair[0]] = time.monotonic()
            api.detach(pair[0])

        names = [name for name, _ in pairs]
        side_by_side(make, pairs); watch.wait(watch.attached, names)
        attach += [watch.attached[n] - began[n] for n in names]
        side_by_side(remove, pairs); watch.wait(watch.gone, names)
        detach += [watch.gone[n] - began[n] for n in names]
    after = calls()
    a, d = 1000 * statistics.median(attach), 1000 * statistics.median(detach)
    at, dt = mean_ms(before, after, "ControllerPublishVolume"), mean_ms(before, after, "ControllerUnpublishVolume")
    print(f"{number:>8} {a:>10.0f} {at:>10.0f} {a / at:>6.2f} {d:>10.0f} {dt:>10.0f} {d / dt:>6.2f}", flush=True)
