/* The numbers that platform/src/wireguard_nt.rs asserts of its own structures (no others: the rest of Windows' are windows-sys', which are
 * Microsoft's), held against the published header:
 * x86_64-w64-mingw32-gcc -fsyntax-only -I vendor/wireguard-nt tests/cross/layout.c */
#include <stddef.h>
#include "wireguard.h"

#define SAME(what, number) _Static_assert((what) == (number), #what)

SAME(sizeof(WIREGUARD_INTERFACE), 80);
SAME(_Alignof(WIREGUARD_INTERFACE), 8);
SAME(offsetof(WIREGUARD_INTERFACE, Flags), 0);
SAME(offsetof(WIREGUARD_INTERFACE, ListenPort), 4);
SAME(offsetof(WIREGUARD_INTERFACE, PrivateKey), 6);
SAME(offsetof(WIREGUARD_INTERFACE, PublicKey), 38);
SAME(offsetof(WIREGUARD_INTERFACE, PeersCount), 72);

SAME(sizeof(WIREGUARD_PEER), 136);
SAME(_Alignof(WIREGUARD_PEER), 8);
SAME(offsetof(WIREGUARD_PEER, Flags), 0);
SAME(offsetof(WIREGUARD_PEER, Reserved), 4);
SAME(offsetof(WIREGUARD_PEER, PublicKey), 8);
SAME(offsetof(WIREGUARD_PEER, PresharedKey), 40);
SAME(offsetof(WIREGUARD_PEER, PersistentKeepalive), 72);
SAME(offsetof(WIREGUARD_PEER, Endpoint), 76);
SAME(offsetof(WIREGUARD_PEER, TxBytes), 104);
SAME(offsetof(WIREGUARD_PEER, RxBytes), 112);
SAME(offsetof(WIREGUARD_PEER, LastHandshake), 120);
SAME(offsetof(WIREGUARD_PEER, AllowedIPsCount), 128);

SAME(sizeof(WIREGUARD_ALLOWED_IP), 24);
SAME(_Alignof(WIREGUARD_ALLOWED_IP), 8);
SAME(offsetof(WIREGUARD_ALLOWED_IP, Address), 0);
SAME(offsetof(WIREGUARD_ALLOWED_IP, AddressFamily), 16);
SAME(offsetof(WIREGUARD_ALLOWED_IP, Cidr), 18);

/* the endpoint: sockaddr_in and sockaddr_in6 in one */
SAME(sizeof(SOCKADDR_INET), 28);
SAME(offsetof(SOCKADDR_INET, Ipv4.sin_port), 2);
SAME(offsetof(SOCKADDR_INET, Ipv4.sin_addr), 4);
SAME(offsetof(SOCKADDR_INET, Ipv6.sin6_port), 2);
SAME(offsetof(SOCKADDR_INET, Ipv6.sin6_addr), 8);
SAME(offsetof(SOCKADDR_INET, Ipv6.sin6_scope_id), 24);
SAME(AF_INET, 2);
SAME(AF_INET6, 23);

SAME(WIREGUARD_INTERFACE_HAS_PUBLIC_KEY, 1);
SAME(WIREGUARD_INTERFACE_HAS_PRIVATE_KEY, 2);
SAME(WIREGUARD_INTERFACE_HAS_LISTEN_PORT, 4);
SAME(WIREGUARD_INTERFACE_REPLACE_PEERS, 8);
SAME(WIREGUARD_PEER_HAS_PUBLIC_KEY, 1);
SAME(WIREGUARD_PEER_HAS_PRESHARED_KEY, 2);
SAME(WIREGUARD_PEER_HAS_PERSISTENT_KEEPALIVE, 4);
SAME(WIREGUARD_PEER_HAS_ENDPOINT, 8);
SAME(WIREGUARD_PEER_REPLACE_ALLOWED_IPS, 32);
SAME(WIREGUARD_PEER_REMOVE, 64);
SAME(WIREGUARD_PEER_UPDATE, 128);
SAME(WIREGUARD_ADAPTER_STATE_DOWN, 0);
SAME(WIREGUARD_ADAPTER_STATE_UP, 1);
