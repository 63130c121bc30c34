#!/bin/busybox sh
# Process 1 of a test machine: mounts the host's root read-only, with a layer in memory for changes, and goes there.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
# What udev does elsewhere: TOMOYO, which 5.10 has on, looks for what fexecve names (runc does so).
ln -s /proc/self/fd /dev/fd
for module in $(cat /modules/order); do insmod "/modules/$module"; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro host /host
mount -t tmpfs -o mode=755 changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work overlay /root
mkdir -p /root/dev /root/proc /root/sys /root/run
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
mount -t tmpfs -o mode=755 run /root/run
mkdir -p /root/run/vm /root/run/lock
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none out /root/run/vm
exec switch_root /root /bin/sh /run/vm/start
