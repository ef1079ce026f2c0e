#!/bin/sh
# SPDX-License-Identifier: MIT
#
# First program of the guest, in the initial RAM disk: makes the root out of the host's, which it can only read, and a
# temporary file system for what changes, then goes on with session.sh there.

b=/bin/busybox
fail() {
    echo "vm: $1"
    $b reboot -f
}

$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    [ ! -e "$module" ] || $b insmod "$module" || fail "cannot load $module"
done

options=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o $options,ro,cache=loose host /host || fail "cannot mount the host's root"
$b mount -t tmpfs -o size=75% changes /changes && $b mkdir /changes/upper /changes/work || fail "no space for changes"
$b chmod 755 /changes/upper
$b mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work root /root || fail "cannot mount the overlay"

for directory in proc sys dev run tmp; do
    [ -d /root/$directory ] || $b mkdir -p /root/$directory
done
$b mount -t tmpfs -o mode=755 run /root/run
$b mkdir -p /root/run/vm/control /root/run/vm/exchange /root/run/lock
$b mount -t 9p -o $options,rw,cache=none control /root/run/vm/control || fail "cannot mount the directory for the result"
$b mount -t 9p -o $options,rw,cache=none exchange /root/run/vm/exchange || fail "cannot mount the scratch directory"
$b cp /bin/busybox /root/run/vm/busybox
for directory in proc sys dev; do
    $b mount -o move /$directory /root/$directory
done
# Not chroot: in a chroot nobody may make a user namespace.
exec $b switch_root /root /bin/sh /run/vm/control/session.sh
fail "cannot go to the new root"
