#!/usr/bin/env python3
"""images.py OUT.tar PAUSE ROOT AGNHOST KIND=NAME ...: a docker archive of images made of what is on this machine.

Kinds: pause, busybox, agnhost, glibc (GNU tools out of ROOT, the nodes' Debian tree); program:FILE, which is that one
program and nothing else, as the cluster's own sidecars are; tree:FOLDER, the files below that folder; target:NAME:FOLDER, which is what that target of
deploy/Dockerfile makes, of the Debian trees in FOLDER (base.tar, NAME.tar) and the programs in FOLDER/out. The names of
images are the caller's.

images.py --packages TARGET: the packages that deploy/Dockerfile installs there, with those of the stages below.
"""
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile

def stage(name):
    """What a stage of the Dockerfile does, with the stages below it, in the forms that it keeps to."""
    text = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../deploy/Dockerfile")).read()
    text = re.sub(r"\\\n\s*", "", text)
    body = re.search(r"^FROM (\S+) AS %s\n(.*?)(?=^FROM |\Z)" % name, text, re.M | re.S)
    if body is None: raise SystemExit("deploy/Dockerfile has no stage " + name)
    below = stage(body[1]) if ":" not in body[1] else {"packages": [], "files": [], "config": {}}
    packages, files, config = below["packages"][:], below["files"][:], dict(below["config"])
    for line in body[2].splitlines():
        if not line.strip() or line.startswith("#"): continue
        word, rest = line.split(" ", 1)
        installed = re.fullmatch(r"apt-get update && apt-get install -y --no-install-recommends ([-a-z0-9 .+]+) && rm -rf /var/lib/apt/lists/\*", rest)
        copied = re.fullmatch(r"--from=build /out/(\S+) (/\S+/)", rest)
        if word == "RUN" and installed: packages += installed[1].split()
        elif word == "COPY" and copied: files.append((copied[1], copied[2]))
        elif word == "USER": config["User"] = rest
        elif word == "ENTRYPOINT": config["Entrypoint"] = json.loads(rest)
        else: raise SystemExit("deploy/Dockerfile, stage %s: cannot build %r without docker; see its first lines" % (name, line))
    return {"packages": packages, "files": files, "config": config}

if sys.argv[1] == "--packages":
    print(",".join(stage(sys.argv[2])["packages"])); raise SystemExit

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
def below(base, whole):
    """The files of one tree that the other does not have like that: a layer."""
    def known(t): return {m.name: (m.type, m.mode, m.size, m.linkname, hashlib.sha256(t.extractfile(m).read()).digest() if m.isreg() else None) for m in t}
    out = io.BytesIO()
    with tarfile.open(base) as b, tarfile.open(whole) as w, tarfile.open(fileobj=out, mode="w") as t:
        have = known(b)
        for m, what in ((m, w) for m in w.getmembers()):
            data = what.extractfile(m).read() if m.isreg() else None
            like = (m.type, m.mode, m.size, m.linkname, hashlib.sha256(data).digest() if m.isreg() else None)
            if have.get(m.name) != like: t.addfile(m, io.BytesIO(data) if data is not None else None)
    return out.getvalue()
def target(name, folder):
    s = stage(name)
    layers = [read(folder + "/base.tar")]
    if os.path.exists(folder + "/" + name + ".tar"): layers.append(below(folder + "/base.tar", folder + "/" + name + ".tar"))
    layers.append(layer([(to.lstrip("/") + program, read(folder + "/out/" + program), 0o755) for program, to in s["files"]]))
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return layers, {**s["config"], "Env": [path]}
def tree(folder):
    """All files below a folder, which are root's."""
    def owned(i):
        i.uid = i.gid = i.mtime = 0; i.uname = i.gname = "root"; return i
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for name in sorted(os.listdir(folder)): t.add(folder + "/" + name, name, filter=owned)
    return out.getvalue()
def kinds(k):
    if k.startswith("target:"): return target(*k.split(":", 2)[1:])
    if k.startswith("program:"):
        name = os.path.basename(k[8:])
        return [layer([(name, read(k[8:]), 0o755)])], {"Entrypoint": ["/" + name], "User": "65532:65532"}
    if k.startswith("tree:"): return [tree(k[5:])], {"Env": ["PATH=/usr/bin"]}
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
