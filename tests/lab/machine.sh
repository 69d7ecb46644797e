#!/bin/bash
# A machine that boots systemd, in namespaces: machine.sh DIR, run in a network and a mount namespace of its own.
# Its files are this machine's under a layer of their own in DIR/disk, which lasts until this script ends.
# Commands on standard input: `install MAKEFILE_DIR BINARY`, `boot`, `cut` (the power). Each is answered by one line.
set -eu
dir=$1
disk=$dir/disk
mount --make-rprivate /
mkdir "$disk" "$dir/cgroup"
mount -t tmpfs -o size=512m tmpfs "$disk"
mkdir "$disk/upper" "$disk/work" "$disk/root" "$disk/etc"
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" "$disk/root"
mount -t cgroup2 cgroup2 "$dir/cgroup"
cgroup=$dir/cgroup/peervpn-lab-$$
root=$disk/root
machine=

prepare() { # what an installed system has, and only its units that matter here
  rm -rf "$root/etc/systemd/system" "$root/etc/peervpn" "$root/var/lib/peervpn" "$root/etc/resolv.conf"
  mkdir -p "$root/etc/systemd/system" "$root/etc/peervpn"
  : > "$root/etc/machine-id"
  : > "$root/etc/fstab"
  echo 'nameserver 192.0.2.53' > "$root/etc/resolv.conf"
  local unit
  # kernel settings of all namespaces, devices, consoles, clean-up of /tmp, other programs that configure networks
  for unit in systemd-sysctl.service systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket \
    systemd-udevd-kernel.socket systemd-modules-load.service kmod-static-nodes.service systemd-random-seed.service \
    systemd-tmpfiles-setup.service systemd-tmpfiles-clean.timer \
    systemd-remount-fs.service systemd-logind.service systemd-networkd.service systemd-resolved.service \
    systemd-timesyncd.service networking.service ssh.service getty.target console-getty.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
  done
}

boot() {
  cat > "$dir/init" <<END
set -eu
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs $root/run
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
mount -t tmpfs -o mode=755 tmpfs $root/dev
mkdir $root/dev/pts $root/dev/shm $root/dev/net
while read -r name major minor; do mknod -m 666 $root/dev/\$name c \$major \$minor; done <<LIST
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
net/tun 10 200
LIST
ln -s /proc/self/fd $root/dev/fd
mount -t devpts -o newinstance,ptmxmode=666 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
mount -t tmpfs tmpfs $root/dev/shm
: > $root/dev/console
[ ! -e $dir/boot-id ] || mount --bind $dir/boot-id $root/proc/sys/kernel/random/boot_id
cd $root
mkdir -p old
pivot_root . old
umount -l old
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
  /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
END
  mkdir -p "$cgroup"
  (
    echo "$BASHPID" > "$cgroup/cgroup.procs"
    exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child setsid bash "$dir/init"
  ) < /dev/null > "$dir/console" 2>&1 &
  machine=$!
  local first i
  for i in $(seq 600); do
    first=$(pgrep -P "$machine" || true)
    if [ -n "$first" ] && nsenter --target "$first" --all systemctl is-system-running > "$dir/state" 2> /dev/null; then
      echo "pid $first"
      return
    fi
    # a unit that failed is the test's business
    if grep -qs degraded "$dir/state"; then echo "pid $first"; return; fi
    kill -0 "$machine" 2> /dev/null || break
    sleep 0.1
  done
  echo "no boot: $(cat "$dir/state" 2> /dev/null) $(tail -n 5 "$dir/console" | tr '\n' '|')"
}

cut() {
  [ -z "$machine" ] || { kill -KILL "$machine" 2> /dev/null; wait "$machine" 2> /dev/null; } || true
  machine=
  local i
  for i in $(seq 100); do
    [ -n "$(cat "$cgroup/cgroup.procs" "$cgroup"/*/cgroup.procs "$cgroup"/*/*/cgroup.procs 2> /dev/null)" ] || break
    sleep 0.05
  done
  # outside our namespaces it would stay
  find "$cgroup" -depth -type d -exec rmdir {} \; 2> /dev/null || true
}

prepare
while read -r command one two; do
  case $command in
  install) make -s -C "$one" -o release install "BIN=$two" "DESTDIR=$root" > "$dir/install" 2>&1 && echo installed || tail -n 1 "$dir/install" ;;
  boot) boot ;;
  cut) cut; echo dark ;;
  esac
done
cut
