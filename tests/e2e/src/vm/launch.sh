# Runs QEMU on a node as a pod would have it: mounts of its own, a /dev with the volume in it and nothing of the host's.
#   sh -c SCRIPT NAME DEVICE QEMU-ARGUMENTS...
set -e
run=/run/vm/$0 device=$1 root=/image
shift
mkdir -p "$run"
rm -f "$run"/*
mount -t tmpfs tmpfs $root/dev
mknod $root/dev/null c 1 3
mknod $root/dev/zero c 1 5
mknod $root/dev/urandom c 1 9
# As a container's runtime does it: another node of the same device number.
mknod $root/dev/disk0 b "$((0x$(stat -L -c %t "$device")))" "$((0x$(stat -L -c %T "$device")))"
mount -t proc proc $root/proc
mount -o bind /sys $root/sys
mount -t tmpfs tmpfs $root/tmp
mount -o bind "$run" $root/run
exec chroot $root /usr/bin/qemu-system-x86_64 "$@"
