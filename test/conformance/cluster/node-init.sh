#!/bin/bash
# node-init.sh NODE RUN PAUSE: first process of a node, in new mount, pid, net, uts,
# ipc and cgroup namespaces. Gives the node file systems of its own, then becomes
# PAUSE, which only reaps. Nothing here is seen outside the node.
set -euo pipefail
NODE=$1 RUN=$2 PAUSE=$3 DIR=$2/$1
mount --make-rprivate /
hostname "$NODE"

# writable copies of /etc, /opt and /var; the machine's own stay as they are
for d in etc opt var; do
	mkdir -p "$DIR/over/$d" "$DIR/over/.$d"
	mount -t overlay -o "lowerdir=/$d,upperdir=$DIR/over/$d,workdir=$DIR/over/.$d" overlay "/$d"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns /run/tmp
[ -L /var/run ] || { rm -rf /var/run; ln -s /run /var/run; }
# what is big, or itself the upper layer of an overlay, lives on the plain disk
for p in var/lib/containerd var/lib/kubelet var/log; do
	mkdir -p "$DIR/disk/$p" "/$p"
	mount --bind "$DIR/disk/$p" "/$p"
done
# a fresh node: no plugin, no network, no Open vSwitch, whatever the machine has
rm -rf /etc/cni /opt/cni /etc/openvswitch /var/lib/openvswitch /var/lib/cni
mkdir -p /etc/cni/net.d /opt/cni/bin
printf '127.0.0.1 localhost\n' | cat - "$RUN/hosts" >/etc/hosts
echo 'nameserver 10.96.0.10' >/etc/resolv.conf
tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id

# /sys of the new network namespace, cgroups as seen from the node's own
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
while read -r controller _; do
	mkdir "/sys/fs/cgroup/$controller"
	case $controller in systemd) o=none,name=systemd ;; *) o=$controller ;; esac
	mount -t cgroup -o "$o" cgroup "/sys/fs/cgroup/$controller"
done <"$DIR/cgroups"

# A node may not change the machine's settings. kubelet would set some and does
# not start where it cannot; it leaves alone what already reads as it wants, so
# it is shown files that do.
for p in kernel vm fs; do
	mount --bind "/proc/sys/$p" "/proc/sys/$p"
	mount -o remount,bind,ro "/proc/sys/$p"
done
mkdir -p /run/sysctl
while read -r file value; do
	echo "$value" >"/run/sysctl/${file//\//.}"
	mount --bind "/run/sysctl/${file//\//.}" "/proc/sys/$file"
done <<'S'
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
vm/overcommit_memory 1
vm/panic_on_oom 0
S
mount --make-rshared /
ip link set lo up
: >"$DIR/ready"
exec "$PAUSE"
