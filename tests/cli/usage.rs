//! Wrong usage and wrong configuration: nothing is touched, so no namespace is needed.

use std::io::Read as _;
use std::process::Stdio;

use crate::harness::*;

/// Runs `peervpn ARGS` and compares.
fn check(name: &str, args: &[&str]) {
    let place = Place::new(name);
    let output = finish(&mut place.peervpn(args));
    golden(name, &place, &output);
    assert!(!place.state().exists() && !place.run().exists(), "{name}: a directory was made");
}

/// Runs `peervpn --config FILE exit` with this file and compares.
fn check_config(name: &str, text: &str) {
    let place = Place::new(name);
    let config = place.config(text);
    let output = finish(&mut place.peervpn(&["--config", config.to_str().unwrap(), "exit"]));
    golden(name, &place, &output);
    assert!(!place.state().exists() && !place.run().exists(), "{name}: a directory was made");
}

#[test]
fn help() {
    check("help", &["--help"]);
    check("help-exit", &["exit", "--help"]);
    check("help-connect", &["connect", "--help"]);
    check("help-peers-accept", &["peers", "accept", "--help"]);
    check("no-command", &[]);
    check("version", &["--version"]);
}

#[test]
fn wrong_flags() {
    check("unknown-command", &["exti"]);
    check("unknown-option", &["exit", "--acept", "any"]);
    check("bad-port", &["exit", "--port", "70000"]);
    check("bad-cidr", &["connect", "KEY@192.0.2.1:1", "--allowed-ips", "10.0.0.0/8,192.0.2.0/33"]);
    check("bad-accept", &["exit", "--accept", "maybe"]);
    check("bad-backend", &["exit", "--backend", "gpu"]);
    check("bad-interface", &["exit", "--interface", "a/b"]);
    check("bad-mtu", &["exit", "--mtu", "576"]);
    check("bad-timeout", &["connect", "KEY@192.0.2.1:1", "--timeout", "soon"]);
    check("timeout-of-nothing", &["connect", "KEY@192.0.2.1:1", "--timeout", "0"]);
    check("expires-at-once", &["invite", "--expires", "0"]);
    check("no-tries", &["connect", "KEY@192.0.2.1:1", "--retry", "0"]);
    check("bad-stun-server", &["exit", "--stun-server", "2001:db8::1"]);
    check("no-target", &["connect"]);
    check("prototype-bad-timeout", &["--timeout=x", "--connect=KEY@192.0.2.1:1"]);
    check("two-prototype-commands", &["--exit", "--info"]);
}

#[test]
fn malformed_targets() {
    check("target-bad-key", &["connect", "short@192.0.2.1:51820"]);
    check("target-no-endpoint", &["connect", EXIT_KEY]);
    check("target-bad-endpoint", &["connect", &format!("{EXIT_KEY}@192.0.2.1")]);
    check("target-bad-port", &["connect", &format!("{EXIT_KEY}@192.0.2.1:99999")]);
    check("target-bare-v6", &["connect", &format!("{EXIT_KEY}@2001:db8::1:51820")]);
}

#[test]
fn wrong_configuration() {
    check_config("config-unknown-key", "allow_lan = true\n");
    check_config("config-unknown-key-in-table", "[exit]\nacept = \"any\"\n");
    check_config("config-wrong-table", "[exit]\ntimeout = 15\n");
    check_config("config-wrong-type", "port = \"http\"\n");
    check_config("config-out-of-range", "mtu = 100\n");
    check_config("config-no-toml", "port = 1\naccept any\n");
    check_config("config-too-short", "[connect]\ntimeout = 0\n");
    check("config-missing", &["--config", "/nonexistent/peervpn.toml", "exit"]);
}

#[test]
fn a_closed_stdout_is_no_panic() {
    let place = Place::new("closed-stdout");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = finish_child(place.peervpn(&["--help"]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap());
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn colour_only_where_wanted() {
    let place = Place::new("colour");
    let stderr = |args: &[&str]| {
        let mut text = String::new();
        let mut child = place.peervpn(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        text
    };
    let down = ["--config", "/nonexistent/c.toml", "exit", "--color"];
    assert!(!stderr(&down[..3]).contains('\x1b'));
    assert!(!stderr(&[&down[..], &["never"]].concat()).contains('\x1b'));
    assert!(stderr(&[&down[..], &["always"]].concat()).starts_with("\x1b[1;31merror:\x1b[0m "));
}

/// Most of a short command's time is its start; each library costs about a tenth of it.
#[test]
#[cfg(target_env = "gnu")]
fn no_library_is_loaded_but_libc() {
    let mut command = std::process::Command::new(PEERVPN);
    command.arg("--version").env("LD_TRACE_LOADED_OBJECTS", "1");
    let output = finish(&mut command);
    let listed = String::from_utf8(output.stdout).unwrap();
    let libraries: Vec<_> = listed.split_whitespace().filter(|word| word.starts_with("lib")).collect();
    assert_eq!(libraries, ["libc.so.6"], "{listed}");
}
