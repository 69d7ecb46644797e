#!/bin/sh
# Installs the Debian packages that the tests and the demo need, those that are missing. Run as root.
#   tests/install-deps.sh [--check|--bench]   --check installs nothing: it names what is missing and fails if something is
#                                             --bench installs what tests/bench measures with, too
set -eu
PATH=$PATH:/usr/sbin:/sbin
missing=
need() { # PROGRAM PACKAGE
  command -v "$1" > /dev/null || case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
}
need ip iproute2
need nft nftables
need wg wireguard-tools
need wireguard-go wireguard-go
need turnserver coturn
need conntrack conntrack
need miniupnpd miniupnpd-nftables
need curl curl
need python3 python3-minimal
need unshare util-linux
need ps procps
need strace strace
need zbarimg zbar-tools
need rsvg-convert librsvg2-bin
need resolvconf openresolv
need dnsmasq dnsmasq-base
need dbus-daemon dbus-daemon
need chattr e2fsprogs
need sshd openssh-server
need iptables-legacy iptables
need ssh openssh-client
need systemctl systemd
need make make
if [ "${1:-}" = --bench ]; then
  need iperf3 iperf3
fi
# only unpacked: installed, systemd-resolved would make itself this machine's resolver, and resolvconf takes openresolv's
# place
unpacked=/usr/local/lib/peervpn-tests
unpack=
[ -x /lib/systemd/systemd-resolved ] || [ -x $unpacked/lib/systemd/systemd-resolved ] || unpack=systemd-resolved
[ -x $unpacked/sbin/resolvconf ] || unpack="$unpack resolvconf"
[ -n "$missing$unpack" ] || exit 0
if [ "${1:-}" = --check ]; then
  echo "missing:$missing${unpack:+ $unpack}"
  exit 1
fi
if ! command -v apt-get > /dev/null; then
  echo "install-deps: no apt-get here; install what these Debian packages hold:$missing${unpack:+ $unpack}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# a service must not start beside the tests: coturn's would take this machine's STUN port (policy-rc.d: 101 forbids)
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' > $policy
  chmod +x $policy
  trap 'rm -f $policy' EXIT
fi
# shellcheck disable=SC2086
[ -z "$missing" ] || apt-get install -q -y --no-install-recommends $missing
if [ -n "$unpack" ]; then
  download=$(mktemp -d)
  # shellcheck disable=SC2086
  (cd "$download" && apt-get download -q $unpack && for package in ./*.deb; do dpkg-deb -x "$package" $unpacked; done)
  rm -rf "$download"
fi
