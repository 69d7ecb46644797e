//! The socket for STUN before the handoff: it must notice every other holder of its port.
#![cfg(target_os = "linux")]

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};

use peervpn_platform::os::udp::bind;
use peervpn_platform::types::Family;
use socket2::{Domain, Socket, Type};

/// Another program's socket, as careless as it can be.
fn foreign(address: &str, reuse: bool) -> UdpSocket {
    let address: SocketAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
    if reuse {
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    socket.into()
}

#[test]
fn both_families_share_one_port_number_and_closing_frees_it() {
    let v4 = bind(Family::V4, 0, None).unwrap();
    let port = v4.local_addr().unwrap().port();
    let v6 = bind(Family::V6, port, None).unwrap();
    assert_eq!(v6.local_addr().unwrap().port(), port);
    let mut buffer = [0; 1];
    assert_eq!(v4.recv_from(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop((v4, v6));
    bind(Family::V4, port, None).unwrap();
}

#[test]
fn another_holder_is_always_noticed() {
    for (address, reuse) in
        [("0.0.0.0:0", false), ("0.0.0.0:0", true), ("127.0.0.1:0", true), ("[::]:0", true), ("[::]:0", false)]
    {
        let holder = foreign(address, reuse);
        let port = holder.local_addr().unwrap().port();
        let error = bind(Family::V4, port, None).expect_err(address);
        assert_eq!(error.kind(), Some(ErrorKind::AddrInUse), "{address} reuse {reuse}");
        assert!(error.to_string().starts_with(&format!("cannot bind UDP 0.0.0.0:{port}: ")), "{error}");
    }
    let holder = foreign("[::1]:0", true);
    let error = bind(Family::V6, holder.local_addr().unwrap().port(), None).expect_err("v6 loopback holder");
    assert_eq!(error.kind(), Some(ErrorKind::AddrInUse));
}

#[test]
fn the_mark_is_set() {
    match bind(Family::V4, 0, Some(0x5180)) {
        Ok(socket) => assert_eq!(socket2::SockRef::from(&socket).mark().unwrap(), 0x5180),
        Err(error) if error.kind() == Some(ErrorKind::PermissionDenied) => eprintln!("SKIP: needs CAP_NET_ADMIN"),
        Err(error) => panic!("{error}"),
    }
}
