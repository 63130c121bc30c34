# Process 1 of a test machine in the host's root: makes it a machine, runs the command, says how it ended.
# MODULES and VERSION are set above.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p "/lib/modules/$VERSION" /dev/pts /dev/shm
mount --bind "$MODULES" "/lib/modules/$VERSION"
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname pathtrace-vm
ip link set lo up
stty -F /dev/ttyS1 raw -echo
# Through a pipe: programs are not to think that a person reads.
mkfifo /run/said
cat /run/said > /dev/ttyS1 &
sh /run/vm/command < /dev/null > /run/said 2>&1
echo $? > /run/vm/status
wait
sync
echo o > /proc/sysrq-trigger
sleep 60
