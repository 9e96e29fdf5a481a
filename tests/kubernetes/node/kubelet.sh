#!/bin/bash
# kubelet.sh API_ADDRESS: a kubelet with real cgroups, over containerd; and Services by kube-proxy
. /run/env
mkdir -p /var/lib/kubelet/plugins /var/lib/kubelet/plugins_registry /var/log/pods /etc/kubernetes
# cgroup v2: everything that runs already goes into a leaf, so that the root may hand out controllers
mkdir -p /sys/fs/cgroup/system; for p in $(cat /sys/fs/cgroup/cgroup.procs); do echo $p >/sys/fs/cgroup/system/cgroup.procs 2>/dev/null; done
for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo +$c >/sys/fs/cgroup/cgroup.subtree_control; done
cat >/etc/kubernetes/kubelet.yaml <<K
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failSwapOn: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
makeIPTablesUtilChains: false
clusterDNS: []
syncFrequency: 10s
volumeStatsAggPeriod: 1m
serializeImagePulls: true
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "50Mi"}
K
cat >/etc/kubernetes/kubeconfig <<K
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://$1:16443", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: admin-token}}]
contexts: [{name: c, context: {cluster: c, user: admin}}]
current-context: c
K
printf 'nameserver '"$1"'\n' >/etc/resolv.conf
(setsid kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubeconfig --hostname-override=$name --node-ip=10.77.3.$number </dev/null >/var/log/kubelet.log 2>&1 & echo $! >/run/kubelet.pid)
(setsid kube-proxy --kubeconfig=/etc/kubernetes/kubeconfig --hostname-override=$name --proxy-mode=nftables --cluster-cidr=10.88.0.0/16 </dev/null >/var/log/kube-proxy.log 2>&1 &)
