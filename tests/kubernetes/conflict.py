#!/usr/bin/env python3
"""conflict.py API TOKEN PV NODE HOLDER: asks for a volume on one more node, by a VolumeAttachment, while HOLDER has it alone.

What has to hold: the VolumeAttachment keeps the refusal, by the code that docs/csi.md has for it and with the names of the volume
and of HOLDER; it never becomes attached; and once it is deleted, it goes.
"""
import sys
import time

from api import OBJECTS, Api, Watch

FAILED_PRECONDITION = 9
api, volume, node, holder = Api(*sys.argv[1:3]), *sys.argv[3:6]
watch = Watch(api)
made = api.attach(volume, node)
try:
    for _ in range(120):
        refusal = api.get(f"{OBJECTS}/{made.name}").get("status", {}).get("attachError")
        if refusal: break
        time.sleep(0.5)
    else: raise SystemExit(f"{node} was not refused {volume} within a minute")
    print(f"{node} is refused {volume}, with the code {refusal.get('errorCode')}: {refusal.get('message')}")
    if refusal.get("errorCode") != FAILED_PRECONDITION: raise SystemExit(f"the code is not {FAILED_PRECONDITION}")
    lacks = [name for name in (api.handle(volume), holder) if name not in refusal["message"]]
    if lacks: raise SystemExit(f"the refusal does not name {' and '.join(lacks)}")
finally: api.detach(made)
watch.wait(watch.gone, [made])
if made.uid in watch.attached: raise SystemExit(f"{volume} was attached to {node} as well")
