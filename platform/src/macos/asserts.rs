//! The layouts that `macos_formats` and our own structures assume, held against libc's and the published headers'
//! when this is compiled for macOS.

use std::mem::{align_of, offset_of, size_of};

use super::{process, sys};
use crate::bpf::Instruction;
use crate::macos_formats::{capture, route};

const _: () = {
    // net/route.h
    assert!(size_of::<libc::rt_msghdr>() == route::HEADER);
    assert!(offset_of!(libc::rt_msghdr, rtm_msglen) == route::AT_MSGLEN);
    assert!(offset_of!(libc::rt_msghdr, rtm_version) == route::AT_VERSION);
    assert!(offset_of!(libc::rt_msghdr, rtm_type) == route::AT_TYPE);
    assert!(offset_of!(libc::rt_msghdr, rtm_index) == route::AT_INDEX);
    assert!(offset_of!(libc::rt_msghdr, rtm_flags) == route::AT_FLAGS);
    assert!(offset_of!(libc::rt_msghdr, rtm_addrs) == route::AT_ADDRS);
    assert!(offset_of!(libc::rt_msghdr, rtm_seq) == route::AT_SEQ);
    assert!(offset_of!(libc::rt_msghdr, rtm_inits) == route::AT_INITS);
    assert!(offset_of!(libc::rt_msghdr, rtm_rmx) + offset_of!(libc::rt_metrics, rmx_mtu) == route::AT_MTU);
    assert!(libc::RTM_VERSION == 5);
    // net/if_dl.h, netinet/in.h, netinet6/in6.h
    assert!(size_of::<libc::sockaddr_dl>() == 20 && offset_of!(libc::sockaddr_dl, sdl_index) == 2);
    assert!(size_of::<libc::sockaddr_in>() == 16 && offset_of!(libc::sockaddr_in, sin_addr) == 4);
    assert!(size_of::<libc::sockaddr_in6>() == 28 && offset_of!(libc::sockaddr_in6, sin6_addr) == 8);
    assert!(libc::AF_INET == 2 && libc::AF_INET6 == 30 && libc::AF_LINK == 18);
    // net/bpf.h
    assert!(offset_of!(libc::bpf_hdr, bh_caplen) == capture::AT_CAPLEN);
    assert!(offset_of!(libc::bpf_hdr, bh_hdrlen) == capture::AT_HDRLEN);
    assert!(size_of::<Instruction>() == 8 && align_of::<Instruction>() == 4);
    assert!(offset_of!(Instruction, jt) == 2 && offset_of!(Instruction, jf) == 3 && offset_of!(Instruction, k) == 4);
    assert!(libc::BIOCSETF == 0x8010_4267 && libc::BIOCSETIF == 0x8020_426c);
    // netinet6/in6_var.h
    assert!(size_of::<sys::In6AliasReq>() == 128 && align_of::<sys::In6AliasReq>() == 8);
    assert!(offset_of!(sys::In6AliasReq, address) == 16);
    assert!(offset_of!(sys::In6AliasReq, destination) == 44);
    assert!(offset_of!(sys::In6AliasReq, mask) == 72);
    assert!(offset_of!(sys::In6AliasReq, flags) == 100);
    assert!(offset_of!(sys::In6AliasReq, lifetime) == 104);
    // sys/proc_info.h
    assert!(size_of::<process::FileInfo>() == 24 && offset_of!(process::FileInfo, kind) == 16);
    assert!(size_of::<process::OpenFile>() == 1200 && offset_of!(process::OpenFile, vnode) == 24);
    assert!(size_of::<libc::proc_fdinfo>() == 8 && size_of::<libc::proc_bsdinfo>() == 136);
    // net/if.h
    assert!(size_of::<libc::ifreq>() == 32 && size_of::<libc::ifaliasreq>() == 64);
    // sys/sockio.h, netinet6/in6_var.h, net/bpf.h, net/pfvar.h: what their macros come to
    assert!(sys::SIOCSIFFLAGS == 0x8020_6910 && sys::SIOCGIFFLAGS == 0xc020_6911);
    assert!(sys::SIOCSIFMTU == 0x8020_6934);
    assert!(sys::SIOCAIFADDR == 0x8040_691a && sys::SIOCAIFADDR_IN6 == 0x8080_691a);
    assert!(sys::BIOCSSEESENT == 0x8004_4277);
    assert!(sys::DIOCSTARTREF == 0x4008_4408);
};
