#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Process 1 of the guest after init.sh, on the host's files: runs command.sh, which the host wrote beside this file, says
# how that ended in the file "status", and stops the machine.  A file "problem" says what else went wrong.

control=/run/vm/control
b=/run/vm/busybox
: >"$control/started"
. "$control/settings.sh"   # MODULES, RELEASE, LOAD, LEAKS, NUMBER, SHELL_WANTED

finish() {  # STATUS
    $b dmesg >"$control/dmesg"
    echo "$1" >"$control/status"
    $b sync
    $b sleep 0.3           # until the console has sent all
    $b reboot -f
    exec $b sleep 1000
}
problem() {
    echo "vm: $1"
    echo "$1" >"$control/problem"
    finish 125
}
scan() {                   # what kmemleak suspects twice, seconds apart, is lost and not only on its way
    echo scan >/sys/kernel/debug/kmemleak
    $b sleep 6
    echo scan >/sys/kernel/debug/kmemleak
    $b cat /sys/kernel/debug/kmemleak
}

$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts /dev/pts
$b mount -t tmpfs -o mode=1777 shm /dev/shm
[ -e /dev/fd ] || $b ln -s /proc/self/fd /dev/fd
$b mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
$b chmod 666 /dev/console  # the program may open its standard output again, whoever it runs as
$b stty -onlcr </dev/console
$b ip link set lo up || problem "no loopback interface"
$b hostname vm

$b mkdir -p /lib/modules
if [ ! -d "/lib/modules/$RELEASE/kernel" ]; then
    $b rm -rf "/lib/modules/$RELEASE"
    $b ln -s "$MODULES" "/lib/modules/$RELEASE"
fi
$b grep -q "^[^:]*:[^:]*:$NUMBER:" /etc/passwd || echo "vm$NUMBER:x:$NUMBER:$NUMBER::/run/vm/home:/bin/sh" >>/etc/passwd
$b mkdir -p /run/vm/home
$b chown "$NUMBER:$NUMBER" /run/vm/home
$b chmod 1777 /run/vm/exchange /tmp
ulimit -Hn 65536

# Removing modules and namespaces waits for grace periods: make them short.
echo 1 >/sys/kernel/rcu_expedited

# From here on the kernel's warnings are about what runs here.
echo 1 >/proc/sys/kernel/panic_on_warn
[ ! -e /proc/sys/kernel/hung_task_timeout_secs ] || echo 120 >/proc/sys/kernel/hung_task_timeout_secs
[ -z "$LEAKS" ] || [ -e /sys/kernel/debug/kmemleak ] || problem "this kernel cannot look for leaks"
[ -z "$LEAKS" ] || { echo scan >/sys/kernel/debug/kmemleak; echo clear >/sys/kernel/debug/kmemleak; }
read -r booted _ </proc/uptime
echo "$booted" >"$control/booted"

if [ -n "$LOAD" ]; then
    for module in $(modinfo -F depends "$LOAD" | $b tr , ' '); do
        modprobe "$module" || problem "cannot load $module"
    done
    insmod "$LOAD" || problem "cannot load $LOAD"
fi
if [ -n "$SHELL_WANTED" ]; then
    setsid -c -w /bin/sh "$control/command.sh" <>/dev/console >&0 2>&1
else
    setsid -w /bin/sh "$control/command.sh" </dev/null
fi
status=$?
if [ -n "$LEAKS" ]; then
    scan >"$control/leaks"
    [ ! -s "$control/leaks" ] || { $b cat "$control/leaks"; problem "kmemleak found memory that nothing points to"; }
fi
finish $status
