#!/bin/bash
# containerd over runc and overlayfs, pods on a bridge; the images are in /payload/containerd already
. /run/env
mkdir -p /etc/containerd /etc/cni/net.d /opt/cni
cat >/etc/containerd/config.toml <<K
version = 3
root = "/payload/containerd"
state = "/run/containerd"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "local.test/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "/etc/cni/net.d"
K
cat >/etc/cni/net.d/10-pods.conflist <<K
{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,
 "ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.$number.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}
K
(setsid containerd </dev/null >/var/log/containerd.log 2>&1 &)
for i in $(seq 200); do ctr version >/dev/null 2>&1 && break; sleep 0.2; done
ctr -n k8s.io images ls -q | grep -v sha256
