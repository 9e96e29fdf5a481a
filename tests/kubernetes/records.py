#!/usr/bin/env python3
"""records.py API TOKEN NUMBER: removes every record by force, of volumes and of nodes, as who takes their finalizers off does.

Where NUMBER is even the leader goes at once, too: the next one has VolumeAttachments, lists and inventories to go by, and what
its records say that were made again meanwhile. Otherwise it stays, and makes each record again that it writes.
"""
import sys
import urllib.error

from api import CONTROLLERS, NODES, RECORDS, Api, side_by_side

api, number = Api(*sys.argv[1:3]), int(sys.argv[3])


def remove(path):
    for _ in range(20):
        try:
            api.ask("DELETE", path).read()
            api.ask("PATCH", path, {"metadata": {"finalizers": None}}, kind="application/merge-patch+json").read()
            return
        except urllib.error.HTTPError as error:
            if error.code == 404: return
            # The leader has written it in between.
            if error.code != 409: raise
    raise SystemExit(f"cannot remove {path}: somebody keeps changing it")


there = [f"{kind}/{one['metadata']['name']}" for kind in (RECORDS, NODES) for one in api.get(kind)["items"]]
side_by_side(remove, there)
goes = api.leader() if number % 2 == 0 else None
if goes: api.ask("DELETE", f"{CONTROLLERS}/{goes}").read()
print(f"{len(there)} records removed" + (f", and the leader, {goes}" if goes else ""), file=sys.stderr)
