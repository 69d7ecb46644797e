//! What this process may do, and who holds a UDP port.

use std::collections::HashSet;
use std::fs;

use super::sysctl::read_proc;
use crate::types::PortHolder;

/// Bit numbers of capabilities(7).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

/// Whether this thread holds CAP_NET_ADMIN and CAP_NET_RAW in its effective set.
pub fn privileged() -> bool {
    let status = read_proc("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let wanted = 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW;
    bits & wanted == wanted
}

/// Inodes of the sockets bound to a UDP port, from a `/proc/net/udp` table; 0 (held by the kernel) left out.
fn inodes(table: &str, port: u16) -> impl Iterator<Item = u64> {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let inode = fields.nth(7)?.parse().ok()?;
        let (_, hex) = local.rsplit_once(':')?;
        (u16::from_str_radix(hex, 16).ok()? == port && inode != 0).then_some(inode)
    })
}

/// The process that holds a UDP port in this thread's network namespace. `None` if the port is free, the kernel holds
/// it (a kernel WireGuard device), or the process can't be seen from here.
pub fn port_holder(port: u16) -> Option<PortHolder> {
    let mut wanted = HashSet::new();
    for table in ["udp", "udp6"] {
        let table = read_proc(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        wanted.extend(inodes(&table, port).map(|inode| format!("socket:[{inode}]")));
    }
    if wanted.is_empty() {
        return None;
    }
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds = descriptors
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| wanted.contains(&*target.to_string_lossy())));
        if holds {
            let program = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(PortHolder { pid, program: program.trim_end().to_owned() });
        }
    }
    None
}

/// Tables of legacy iptables in this thread's network namespace: `ip_tables_names` or `ip6_tables_names` below
/// `/proc/net`. Needs root; empty where the kernel has none.
pub fn legacy_tables(names: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The TCP ports that this thread's network namespace listens on, sorted; proc(5) `/proc/net/tcp`.
pub fn listening_ports() -> Vec<u16> {
    const LISTEN: &str = "0A"; // include/net/tcp_states.h: TCP_LISTEN is 10
    let mut ports: Vec<u16> = Vec::new();
    for table in ["tcp", "tcp6"] {
        let table = read_proc(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        ports.extend(table.lines().skip(1).filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (_, port) = fields.nth(1)?.rsplit_once(':')?;
            (fields.nth(1)? == LISTEN).then(|| u16::from_str_radix(port, 16).ok())?
        }));
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_port_names_us_and_a_free_one_nobody() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(port_holder(port).unwrap().pid, std::process::id());
        drop(socket);
        assert_eq!(port_holder(port), None);
    }

    #[test]
    fn a_listening_port_is_listed_while_it_listens() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(listening_ports().contains(&port));
        drop(socket);
        assert!(!listening_ports().contains(&port));
    }

    #[test]
    fn the_kernels_own_sockets_have_no_inode() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            12: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0 0\n\
            13: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 77 2 0 0\n";
        assert_eq!(inodes(table, 51820).collect::<Vec<_>>(), [77]);
        assert_eq!(inodes(table, 1).count(), 0);
    }
}
