#!/bin/sh
# /init of a rig machine; see initramfs.rs.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
/bin/mount -t proc proc /proc
/bin/mount -t sysfs sysfs /sys
/bin/mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
/bin/mount -t devpts devpts /dev/pts
/bin/mount -t tmpfs tmpfs /run
ln -sf /proc/self/fd /dev/fd
arg() { tr ' ' '\n' </proc/cmdline | sed -n "s/^cleat\.$1=//p"; }

for module in virtio_pci virtio_net virtio_blk virtio-rng configfs nvme-fabrics nvme-tcp; do
    modprobe $module 2>/dev/null
done
/bin/mount -t configfs configfs /sys/kernel/config

name=$(arg name); number=$(arg number)
hostname "$name"; echo "$name" >/etc/hostname
printf '127.0.0.1 localhost %s\n' "$name" >/etc/hosts
id=$(arg machine_id); [ -z "$id" ] || echo "$id" >/etc/machine-id

ip link set lo up
for nic in /sys/class/net/*; do
    # 52:54:00:77:NET:MACHINE, all hexadecimal
    mac=$(cat "$nic/address"); case $mac in 52:54:00:77:*) ;; *) continue ;; esac
    net=$((0x$(echo "$mac" | cut -d: -f5)))
    ip addr add "10.77.$net.$number/24" dev "${nic##*/}"
    ip link set "${nic##*/}" up
done

if [ "$(arg data)" = 1 ]; then
    /bin/mount -t ext4 /dev/vda /data || echo "rig: cannot mount /data" >/dev/console
fi
image=$(arg image)
if [ -n "$image" ]; then
    mkdir -p /image
    /bin/mount -t ext4 -o ro "/dev/$image" /image || echo "rig: cannot mount /image" >/dev/console
fi
exec /sbin/init
