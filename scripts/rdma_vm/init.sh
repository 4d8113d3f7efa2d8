#!/bin/busybox sh
# First process of the guest: loads modules, mounts the host's root file system under a RAM overlay.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/lib/modules/$module" || echo "rdma_vm: insmod $module failed"
done </modules
mkdir -p /lower /up /root
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 host /lower
mount -t tmpfs -o size=60% tmpfs /up
mkdir -p /up/upper /up/work
mount -t overlay -o lowerdir=/lower,upperdir=/up/upper,workdir=/up/work overlay /root
mkdir -p /root/proc /root/sys /root/dev /root/run /root/mnt
for folder in proc sys dev; do mount --move "/$folder" "/root/$folder"; done
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs tmpfs /root/run
mount -t tmpfs tmpfs /root/tmp
mkdir /root/run/share
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /root/run/share
cp /guest.sh /root/run/guest.sh
exec switch_root /root /bin/bash /run/guest.sh
