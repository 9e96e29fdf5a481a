#!/bin/bash
# The first program of a node machine: mounts, modules, addresses, and a shell on port 2222 of the control network.
export PATH=/payload/bin:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin HOME=/root
# What the kernel's command line says of the node: node.name=…, node.number=…
for word in $(cat /proc/cmdline); do
    case $word in node.name=*) name=${word#*=} ;; node.number=*) number=${word#*=} ;; esac
done
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp; mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup; mount -t configfs configfs /sys/kernel/config 2>/dev/null; mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null; mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
modprobe -a nvme-tcp loop overlay veth bridge br_netfilter nf_tables xt_comment ip_tables 2>/dev/null
hostname $name; echo $name >/etc/hostname; echo "127.0.0.1 localhost
10.77.3.$number $name" >/etc/hosts
ip link set lo up
for p in 3:eth0 1:eth1 2:eth2; do ip addr add 10.77.${p%:*}.$number/24 dev ${p#*:}; ip link set ${p#*:} up; done
ip route add default via 10.77.3.254
for other in 11 12; do [ $other = $number ] || ip route add 10.88.$other.0/24 via 10.77.3.$other; done
sysctl -qw net.ipv4.ip_forward=1
cat >/run/env <<K
export PATH=$PATH HOME=/root name=$name number=$number
K
mkdir -p /var/log/pods
setsid socat -t 3600 TCP-LISTEN:2222,fork,reuseaddr,bind=10.77.3.$number EXEC:"/bin/bash --rcfile /dev/null",stderr </dev/null >/dev/null 2>&1 &
echo "NODE-UP $name $(cut -d' ' -f1 /proc/uptime)"
while :; do wait -n 2>/dev/null; sleep 5; done
