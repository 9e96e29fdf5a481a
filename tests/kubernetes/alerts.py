#!/usr/bin/env python3
"""alerts.py URL targets N | documented DOCS/metrics.md | firing ALERT | quiet ALERT: asks a Prometheus until that is so.
alerts.py pods: of `kubectl get pods -A -o json` makes what Prometheus' own discovery of pods would find, as a file of targets.

targets: so many pods are scraped, and nothing that was found is down. documented: every metric that was read is in the
document's tables, with the same kind and help. firing, quiet: whether the alert fires. Fails after four minutes.
"""
import json
import re
import sys
import time
import urllib.parse
import urllib.request

def found(pods):
    """A target for each port of each pod that has an address."""
    word = lambda text: re.sub(r"\W", "_", text)
    for pod in pods:
        meta, address = pod["metadata"], pod.get("status", {}).get("podIP")
        labels = {"pod_ip": address, "pod_node_name": pod["spec"].get("nodeName", "")}
        labels.update({"pod_annotation_" + word(k): v for k, v in meta.get("annotations", {}).items()})
        labels.update({"pod_label_" + word(k): v for k, v in meta.get("labels", {}).items()})
        for port in [p["containerPort"] for c in pod["spec"]["containers"] for p in c.get("ports", [])]:
            of_port = dict(labels, pod_container_port_number=str(port))
            if address: yield {"targets": ["%s:%d" % (address, port)], "labels": {"__meta_kubernetes_" + k: v for k, v in of_port.items()}}

if sys.argv[1] == "pods":
    json.dump(list(found(json.load(sys.stdin)["items"])), sys.stdout); sys.exit(0)
url, what, argument = sys.argv[1:4]

def ask(path, **query):
    with urllib.request.urlopen(url + path + "?" + urllib.parse.urlencode(query), timeout=5) as answer:
        return json.load(answer)["data"]

def wrong():
    """What is not as it should be; nothing if all is."""
    if what == "targets":
        found = ask("/api/v1/targets", state="active")["activeTargets"]
        down = [t["scrapeUrl"] + ": " + t["lastError"] for t in found if t["health"] != "up"]
        return down or ([] if len(found) == int(argument) else ["targets: %d" % len(found)])
    if what == "documented":
        rows = re.findall(r"^\| `(cleat_\w+)` \| (\w+) \| (.*) \|$", open(argument).read(), re.M)
        known = {name: (kind, help) for name, kind, help in rows}
        read = {m["metric"]: (m["type"], m["help"]) for m in ask("/api/v1/targets/metadata", metric="") if m["metric"].startswith("cleat_")}
        if len(read) < 20: return ["only %d metrics are read" % len(read)]
        return ["%s is read as %s, and documented as %s" % (n, r, known.get(n)) for n, r in read.items() if known.get(n) != r]
    firing = [a for a in ask("/api/v1/alerts")["alerts"] if a["labels"]["alertname"] == argument and a["state"] == "firing"]
    return [] if bool(firing) == (what == "firing") else ["%s: %s" % (argument, firing)]

deadline = time.monotonic() + 240
while True:
    try: left = wrong()
    except OSError as error: left = [str(error)]
    if not left:
        print("%s %s: yes" % (what, argument)); sys.exit(0)
    if time.monotonic() > deadline: sys.exit("\n".join(left))
    time.sleep(2)
