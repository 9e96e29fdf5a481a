#!/usr/bin/env python3
"""images.py OUT.tar PAUSE ROOT AGNHOST KIND=NAME ...: a docker archive of images made of what is on this machine.

Kinds: pause, busybox, agnhost, glibc (GNU tools out of ROOT, the nodes' Debian tree). The names are the caller's.
"""
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

pause, root, agnhost = sys.argv[2:5]

def layer(files, links=(), dirs=()):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for d, mode in dirs:
            i = tarfile.TarInfo(d); i.type, i.mode = tarfile.DIRTYPE, mode; t.addfile(i)
        for name, data, mode in files:
            i = tarfile.TarInfo(name); i.size, i.mode = len(data), mode; t.addfile(i, io.BytesIO(data))
        for name, to in links:
            i = tarfile.TarInfo(name); i.type, i.linkname = tarfile.SYMTYPE, to; t.addfile(i)
    return out.getvalue()
def read(p): return open(p, "rb").read()
applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True).stdout.split()
passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
base = layer([("bin/busybox", read("/bin/busybox"), 0o755), ("etc/passwd", passwd, 0o644), ("etc/group", b"root:x:0:\n", 0o644)],
             [("bin/" + a, "busybox") for a in applets if a != "busybox"] + [("usr/bin", "../bin"), ("usr/sbin", "../bin"), ("sbin", "bin")],
             [("bin", 0o755), ("etc", 0o755), ("usr", 0o755), ("root", 0o700), ("tmp", 0o1777), ("mnt", 0o755), ("var", 0o755), ("home", 0o755), ("opt", 0o755)])
def kinds(k):
    if k == "pause": return [layer([("pause", read(pause), 0o755)])], {"Entrypoint": ["/pause"]}
    if k == "busybox": return [base], {"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"]}
    if k == "agnhost":
        a = layer([("agnhost", read(agnhost), 0o755)], [("agnhost-2", "agnhost")])
        return [base, a], {"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "Env": ["PATH=/bin:/usr/bin:/"]}
    if k == "glibc":
        # GNU tools and their libraries out of the nodes' own Debian root: dd that means iflag=direct
        files, seen = [], set()
        tools = "bash sh dash dd sha256sum md5sum head tail cat echo ls stat base64 grep sed awk mawk find cp mv rm mkdir mktemp sleep true false test [ tr cut wc sync truncate tee touch chmod chown id env printf date sort uniq seq df du mount umount lsblk blockdev blkid fsfreeze od cmp diff getent hostname ps kill readlink ln mkfifo timeout".split()
        def resolve(path):  # inside the root, links followed by hand: they may be absolute
            while os.path.islink(root + path):
                to = os.readlink(root + path); path = to if to.startswith("/") else os.path.normpath(os.path.dirname(path) + "/" + to)
            return path
        def add(path):
            if path not in seen: seen.add(path); files.append((path.lstrip("/"), read(root + resolve(path)), 0o755))
        for tool in tools:
            path = next((d + tool for d in ("/usr/bin/", "/usr/sbin/") if os.path.lexists(root + d + tool)), None)
            if path is None: continue
            add(path)
            ldd = subprocess.run(["chroot", root, "ldd", resolve(path)], capture_output=True, text=True).stdout
            for w in ldd.split():
                if w.startswith("/"): add("/usr" + w if w.startswith("/lib") else w)
        return [layer(files + [("etc/passwd", passwd, 0o644), ("etc/group", b"root:x:0:\n", 0o644)],
                      [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")],
                      [("usr", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("mnt", 0o755), ("var", 0o755), ("opt", 0o755)])], \
               {"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
    raise SystemExit("kind? " + k)
manifest, done = [], {}
with tarfile.open(sys.argv[1], "w") as t:
    def put(name, data):
        if name in done: return
        done[name] = 1; i = tarfile.TarInfo(name); i.size, i.mode = len(data), 0o644; t.addfile(i, io.BytesIO(data))
    for word in sys.argv[5:]:
        k, name = word.split("=", 1); layers, config = kinds(k)
        ids = ["sha256:" + hashlib.sha256(l).hexdigest() for l in layers]
        c = json.dumps({"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": ids},
                        "history": [{"created_by": "images.py"} for _ in ids]}).encode()
        cn = hashlib.sha256(c).hexdigest() + ".json"; put(cn, c)
        paths = [i[7:] + "/layer.tar" for i in ids]
        for p, l in zip(paths, layers): put(p, l)
        manifest.append({"Config": cn, "RepoTags": [name], "Layers": paths})
    put("manifest.json", json.dumps(manifest).encode())
