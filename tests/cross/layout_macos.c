/* The numbers that platform/src/macos/asserts.rs and macos/formats hold of their structures, held against macOS's published
 * headers (zig carries them): python -m ziglang cc -target aarch64-macos -c -o /dev/null tests/cross/layout_macos.c
 * netinet6/in6_var.h and net/pfvar.h are not among them: in6_aliasreq and DIOCSTARTREF are as XNU's source has them. */
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/event.h>
#include <sys/ioctl.h>
#include <sys/proc.h>
#include <sys/proc_info.h>
#include <sys/socket.h>
#include <sys/sockio.h>
#include <sys/sysctl.h>
#include <sys/un.h>
#include <net/bpf.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_dl.h>
#include <net/route.h>
#include <netinet/in.h>

#define SAME(what, number) _Static_assert((what) == (number), #what)

/* net/route.h: formats/route.rs */
SAME(sizeof(struct rt_msghdr), 92);
SAME(offsetof(struct rt_msghdr, rtm_msglen), 0);
SAME(offsetof(struct rt_msghdr, rtm_version), 2);
SAME(offsetof(struct rt_msghdr, rtm_type), 3);
SAME(offsetof(struct rt_msghdr, rtm_index), 4);
SAME(offsetof(struct rt_msghdr, rtm_flags), 8);
SAME(offsetof(struct rt_msghdr, rtm_addrs), 12);
SAME(offsetof(struct rt_msghdr, rtm_seq), 20);
SAME(offsetof(struct rt_msghdr, rtm_inits), 32);
SAME(offsetof(struct rt_msghdr, rtm_rmx.rmx_mtu), 40);
SAME(RTM_VERSION, 5);
SAME(RTM_ADD, 0x1);
SAME(RTM_DELETE, 0x2);
SAME(RTM_CHANGE, 0x3);
SAME(RTM_GET, 0x4);
SAME(RTM_REDIRECT, 0x6);
SAME(RTM_NEWADDR, 0xc);
SAME(RTM_DELADDR, 0xd);
SAME(RTM_IFINFO, 0xe);
SAME(RTF_UP, 0x1);
SAME(RTF_GATEWAY, 0x2);
SAME(RTF_HOST, 0x4);
SAME(RTF_REJECT, 0x8);
SAME(RTF_LLINFO, 0x400);
SAME(RTF_STATIC, 0x800);
SAME(RTF_BLACKHOLE, 0x1000);
SAME(RTF_PROTO1 | RTF_PROTO2, 0x4000 | 0x8000);
SAME(RTF_WASCLONED, 0x20000);
SAME(RTF_IFSCOPE, 0x1000000);
SAME(RTA_DST, 0x1);
SAME(RTA_GATEWAY, 0x2);
SAME(RTA_NETMASK, 0x4);
SAME(RTAX_MAX, 8);
SAME(RTV_MTU, 0x1);

/* addresses */
SAME(AF_INET, 2);
SAME(AF_LINK, 18);
SAME(AF_INET6, 30);
SAME(sizeof(struct sockaddr), 16);
SAME(sizeof(struct sockaddr_in), 16);
SAME(offsetof(struct sockaddr_in, sin_addr), 4);
SAME(sizeof(struct sockaddr_in6), 28);
SAME(offsetof(struct sockaddr_in6, sin6_addr), 8);
SAME(sizeof(struct sockaddr_dl), 20);
SAME(offsetof(struct sockaddr_dl, sdl_index), 2);

/* net/bpf.h: formats/capture.rs, tap.rs */
SAME(offsetof(struct bpf_hdr, bh_caplen), 8);
SAME(offsetof(struct bpf_hdr, bh_hdrlen), 16);
SAME(BPF_ALIGNMENT, 4);
SAME(DLT_NULL, 0);
SAME(DLT_EN10MB, 1);
SAME(DLT_RAW, 12);
SAME(ETHERTYPE_IP, 0x0800);
SAME(ETHERTYPE_IPV6, 0x86dd);
SAME(sizeof(struct bpf_insn), 8);
SAME(offsetof(struct bpf_insn, jt), 2);
SAME(offsetof(struct bpf_insn, jf), 3);
SAME(offsetof(struct bpf_insn, k), 4);
SAME(sizeof(struct bpf_program), 16);
SAME(offsetof(struct bpf_program, bf_insns), 8);
SAME(sizeof(struct bpf_stat), 8);
SAME(offsetof(struct bpf_stat, bs_drop), 4);
SAME(BIOCSETF, 0x80104267);
SAME(BIOCSETIF, 0x8020426c);
SAME(BIOCSSEESENT, 0x80044277);

/* net/if.h, sys/sockio.h: sys.rs */
SAME(IFNAMSIZ, 16);
SAME(sizeof(struct ifreq), 32);
SAME(offsetof(struct ifreq, ifr_mtu), 16);
SAME(offsetof(struct ifreq, ifr_flags), 16);
SAME(sizeof(struct ifaliasreq), 64);
SAME(offsetof(struct ifaliasreq, ifra_mask), 48);
SAME(SIOCSIFFLAGS, 0x80206910);
SAME(SIOCGIFFLAGS, 0xc0206911);
SAME(SIOCSIFMTU, 0x80206934);
SAME(SIOCAIFADDR, 0x8040691a);

/* sys/proc_info.h, sys/proc.h: process.rs */
SAME(sizeof(struct proc_fdinfo), 8);
SAME(sizeof(struct proc_bsdinfo), 136);
SAME(sizeof(struct proc_fileinfo), 24);
SAME(offsetof(struct proc_fileinfo, fi_type), 16);
SAME(sizeof(struct vnode_fdinfowithpath), 1200);
SAME(offsetof(struct vnode_fdinfowithpath, pvip), 24);
SAME(offsetof(struct vnode_fdinfowithpath, pvip.vip_path), 176);
SAME(PROC_ALL_PIDS, 1);
SAME(PROC_PIDFDVNODEPATHINFO, 2);
SAME(SZOMB, 5);

/* sys/event.h: queue.rs; sys/un.h: process.rs */
SAME(NOTE_MACH_CONTINUOUS_TIME, 0x80);
SAME(LOCAL_PEERPID, 2);
