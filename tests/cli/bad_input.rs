//! What can be wrong with the machine or the target: a clear error, the host unchanged.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use crate::harness::*;

/// A target that no one answers at.
fn target() -> String {
    format!("{EXIT_KEY}@198.51.100.1:51820")
}

#[test]
fn not_root() {
    let Some(namespace) = Namespace::new("not-root") else { return };
    for (name, args) in [
        ("not-root-exit", vec!["exit"]),
        ("not-root-connect", vec!["connect", &target()]),
        ("not-root-recover", vec!["recover"]),
    ] {
        let place = Place::new(name);
        // `ip netns exec` needs root, so the change of user comes after it
        let setpriv = ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", PEERVPN];
        let mut command = namespace.command("setpriv", &[&setpriv[..], &args].concat());
        place.environment(&mut command);
        golden_unchanged(name, &namespace, &place, &mut command);
        assert!(!place.state().exists(), "{name}: a directory was made");
    }
}

#[test]
fn no_node_runs() {
    for (name, args) in [
        ("no-node-status", vec!["status"]),
        ("no-node-peers", vec!["peers", "list"]),
        ("no-node-down", vec!["down"]),
        ("no-node-down-interface", vec!["down", "--interface", "peervpn7"]),
    ] {
        let place = Place::new(name);
        golden(name, &place, &finish(&mut place.peervpn(&args)));
    }
}

#[test]
fn own_key_as_target() {
    let Some(namespace) = Namespace::with_default_route("own-key") else { return };
    let place = Place::new("own-key").with_key();
    let info = finish(&mut namespace.peervpn(&place, &["info", "--json"]));
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    let target = format!("{}@198.51.100.1:51820", info["public_key"].as_str().unwrap());
    golden_unchanged("own-key", &namespace, &place, &mut namespace.peervpn(&place, &["connect", &target]));
}

#[test]
fn listen_port_in_use() {
    let Some(namespace) = Namespace::with_default_route("port-used") else { return };
    let place = Place::new("port-used").with_key();
    let held = namespace.bind("0.0.0.0:51820");
    let args = ["exit", "--port", "51820", "--no-stun"];
    golden_unchanged("port-used-exit", &namespace, &place, &mut namespace.peervpn(&place, &args));
    let args = ["connect", &target(), "--port", "51820", "--no-stun"];
    golden_unchanged("port-used-connect", &namespace, &place, &mut namespace.peervpn(&place, &args));
    drop(held);
}

#[test]
fn interface_exists_and_is_not_ours() {
    let Some(namespace) = Namespace::with_default_route("foreign-link") else { return };
    let place = Place::new("foreign-link").with_key();
    namespace.ip("link add peervpn0 type veth peer name other0");
    let command = &mut namespace.peervpn(&place, &["exit", "--port", "51820", "--no-stun"]);
    golden_unchanged("interface-not-ours", &namespace, &place, command);
}

#[test]
fn no_default_route() {
    let Some(namespace) = Namespace::new("no-route") else { return };
    let place = Place::new("no-route").with_key();
    let command = &mut namespace.peervpn(&place, &["exit", "--port", "51820", "--no-stun"]);
    golden_unchanged("no-default-route-exit", &namespace, &place, command);
    let command = &mut namespace.peervpn(&place, &["connect", &target()]);
    golden_unchanged("no-default-route-connect", &namespace, &place, command);
}

#[test]
fn no_handshake_within_the_timeout() {
    let Some(namespace) = Namespace::with_default_route("silence") else { return };
    let place = Place::new("silence").with_key();
    let command = &mut namespace.peervpn(&place, &["connect", &target(), "--timeout", "2", "--no-stun"]);
    golden_unchanged("no-handshake", &namespace, &place, command);
}

#[test]
fn a_name_that_does_not_resolve() {
    let Some(namespace) = Namespace::with_default_route("no-name") else { return };
    let place = Place::new("no-name").with_key();
    let target = format!("{EXIT_KEY}@exit.invalid:51820");
    let mut command = namespace.command("unshare", &["-m", "sh", "-c"]);
    // a resolver of its own that is not there: the machine's may be anything
    let script = format!(
        "echo nameserver 127.0.0.1 > {dir}/resolv.conf && mount --bind {dir}/resolv.conf /etc/resolv.conf && \
         exec {PEERVPN} connect {target} --no-stun",
        dir = place.dir.display()
    );
    command.arg(script);
    place.environment(&mut command);
    golden_unchanged("unresolvable", &namespace, &place, &mut command);
}

/// The servers' names are known; what fails is to look them up.
#[test]
fn nattest_without_a_name_server() {
    let Some(namespace) = Namespace::with_default_route("no-dns") else { return };
    let place = Place::new("no-dns");
    let mut command = namespace.command("unshare", &["-m", "sh", "-c"]);
    // one that never answers
    let script = format!(
        "echo nameserver 192.0.2.53 > {dir}/resolv.conf && mount --bind {dir}/resolv.conf /etc/resolv.conf && \
         exec {PEERVPN} nattest",
        dir = place.dir.display()
    );
    command.arg(script);
    place.environment(&mut command);
    let output = finish(&mut command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains("no STUN server can be asked") && !said.contains("none is configured"), "{said}");
}

#[test]
fn state_directory_not_writable() {
    let Some(namespace) = Namespace::with_default_route("read-only") else { return };
    let place = Place::new("read-only");
    fs::write(place.state(), "a file where the directory should be").unwrap();
    let args = ["exit", "--port", "51820", "--no-stun"];
    golden_unchanged("state-is-a-file", &namespace, &place, &mut namespace.peervpn(&place, &args));

    let place = Place::new("read-only-mount");
    fs::create_dir(place.state()).unwrap();
    let script = format!(
        "mount -t tmpfs -o ro,mode=0700 none {} && exec {PEERVPN} exit --port 51820 --no-stun",
        place.state().display()
    );
    let mut command = namespace.command("unshare", &["-m", "sh", "-c", &script]);
    place.environment(&mut command);
    golden_unchanged("state-read-only", &namespace, &place, &mut command);
}

#[test]
fn a_damaged_key_file_is_never_overwritten() {
    let Some(namespace) = Namespace::with_default_route("bad-key") else { return };
    let place = Place::new("bad-key");
    for (name, text) in [("key-cut-short", &OWN_PRIVATE_KEY[..20]), ("key-empty", "")] {
        place.write_key(text);
        let args = ["exit", "--port", "51820", "--no-stun"];
        golden_unchanged(name, &namespace, &place, &mut namespace.peervpn(&place, &args));
        assert_eq!(fs::read_to_string(place.key_file()).unwrap(), text, "{name}: the key file was touched");
    }
}

#[test]
fn neither_tun_nor_kernel_wireguard() {
    let Some(namespace) = Namespace::with_default_route("no-device") else { return };
    if kernel_has_wireguard(&namespace) {
        println!("SKIP: neither_tun_nor_kernel_wireguard: this kernel has WireGuard");
        return;
    }
    let run = |name: &str, options: &str| {
        let place = Place::new(name).with_key();
        let script = format!(
            "mount -t tmpfs none /dev/net 2>/dev/null || mount -t tmpfs none /dev; exec {PEERVPN} exit --port 51820 --no-stun {options}"
        );
        let mut command = namespace.command("unshare", &["-m", "sh", "-c", &script]);
        place.environment(&mut command);
        golden_unchanged(name, &namespace, &place, &mut command);
    };
    run("no-device", "");
    run("no-device-userspace", "--backend userspace");
    run("no-kernel-wireguard", "--backend kernel");
}

/// Asked as a person would: by making a link.
fn kernel_has_wireguard(namespace: &Namespace) -> bool {
    let made = namespace.command("ip", &["link", "add", "wgtest0", "type", "wireguard"]).output().unwrap();
    if made.status.success() {
        namespace.ip("link delete wgtest0");
    }
    made.status.success()
}

#[test]
fn a_userspace_program_that_is_not_there() {
    let Some(namespace) = Namespace::with_default_route("no-program") else { return };
    if !Path::new("/dev/net/tun").exists() {
        println!("SKIP: a_userspace_program_that_is_not_there: no /dev/net/tun");
        return;
    }
    let place = Place::new("no-program").with_key();
    let args = ["exit", "--port", "51820", "--no-stun", "--backend", "userspace=no-such-program"];
    golden_unchanged("no-program", &namespace, &place, &mut namespace.peervpn(&place, &args));
}

#[test]
fn info_as_someone_else_than_root_makes_nothing() {
    let place = Place::new("info");
    // SAFETY: geteuid(2) takes nothing and cannot fail
    let root = unsafe { libc::geteuid() } == 0;
    let mut command = place.peervpn(&["info", "--json"]);
    if root {
        command.uid(65534).gid(65534);
    }
    let output = finish(&mut command);
    assert!(output.status.success(), "{output:?}");
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(info["public_key"].is_null() && info["version"] == env!("CARGO_PKG_VERSION"), "{info}");
    assert!(!place.state().exists(), "a directory was made");
}
