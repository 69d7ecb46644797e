//! The table test of the house: who may use whom, and what stays out of the pure modules.
//!
//! `main → cli → node → {nat join tunnel host} → {key config error}`, and `node → platform`. It reads the sources token
//! by token (comments, strings and `#[cfg(test)]` items left out), resolves `use` and relative paths, and holds each
//! against [`check`]. The second half of this file feeds it snippets, so that a rule that went blind fails too.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use source::{Token, past_group, paths, text, tokens, without_tests};

#[path = "layering/source.rs"]
mod source;

/// From the top down; a module may use those on the rows below it, and those on its own row as [`check`] says.
const ROWS: [&[&str]; 5] =
    [&["main"], &["cli"], &["node"], &["nat", "join", "tunnel", "host"], &["key", "config", "error"]];

const PURE: &[&str] = ROWS[3];

/// What a pure module may not name, and what it should have instead.
const NOT_PURE: &[(&str, &str)] = &[
    ("tokio", "the event loop is src/node's; return what should happen"),
    ("std::net::UdpSocket", "bytes come in and go out; src/node owns the sockets"),
    ("std::net::TcpStream", "bytes come in and go out; src/node owns the sockets"),
    ("std::net::TcpListener", "bytes come in and go out; src/node owns the sockets"),
    ("std::net::ToSocketAddrs", "it asks a name server; take addresses as a parameter"),
    ("std::os", "descriptors belong to src/node"),
    ("std::fs", "take the contents as a parameter, return what should be written"),
    ("std::env", "take the setting as a parameter"),
    ("std::process", "return what should happen"),
    ("std::thread", "return when to be called again"),
    ("std::io::stdin", "src/cli talks to the person"),
    ("std::io::stdout", "src/cli talks to the person"),
    ("std::io::stderr", "src/cli talks to the person"),
    ("std::time::Instant::now", "take `now` as a parameter"),
    ("std::time::SystemTime::now", "take `now` as a parameter"),
    ("socket2", "bytes come in and go out; src/node owns the sockets"),
    ("libc", "system calls belong to platform/"),
    ("gotatun::device", "the userspace device runs in a process of its own, see src/node"),
    ("gotatun::tun", "the userspace device runs in a process of its own, see src/node"),
    ("gotatun::udp", "bytes come in and go out; src/node owns the sockets"),
];

/// Ways to start another program; only `platform/src/<system>/{process,launch}.rs` may, for the userspace device, and
/// `dns/resolvconf.rs`: resolvconf(8) has no interface but its command.
const STARTS_PROGRAMS: &[&str] = &[
    "std::process::Command",
    "tokio::process",
    "libc::fork",
    "libc::vfork",
    "libc::system",
    "libc::popen",
    "libc::posix_spawn",
    "libc::posix_spawnp",
    "libc::execl",
    "libc::execlp",
    "libc::execle",
    "libc::execv",
    "libc::execve",
    "libc::execvp",
    "libc::execvpe",
    "libc::fexecve",
];

/// Those files.
const MAY_START: &[&str] = &["/process.rs", "/launch.rs", "/dns/resolvconf.rs"];

/// The files of platform/ for what each system awaits in a way of its own.
const MAY_AWAIT: &[&str] = &["/ready.rs", "/control.rs", "/signals.rs", "/uapi_listener.rs"];

/// Lines of code allowed in `src/main.rs`.
const MAIN_LINES: usize = 10;

// ---- rules ----------------------------------------------------------------------------------------------------------

#[derive(Debug)]
struct Violation {
    file: String,
    line: usize,
    what: String,
    why: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {} ({})", self.file, self.line, self.what, self.why)
    }
}

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// Holds one file against the rules. `file` is its path in the repository, `t` its tokens without test items, and
/// `insides` the submodules of each pure module.
fn check(file: &str, t: &[Token], insides: &HashMap<String, HashSet<String>>) -> Vec<Violation> {
    let module = module_of(file);
    let top = module.first().map_or(if file == "src/main.rs" { "main" } else { "lib" }, String::as_str);
    let in_platform = file.starts_with("platform/");
    let pure = !in_platform && PURE.contains(&top);
    let mut out = Vec::new();
    let mut say = |line: usize, what: &str, why: &str| {
        out.push(Violation { file: file.to_owned(), line, what: what.to_owned(), why: why.to_owned() });
    };

    for named in paths(t, &module) {
        let what = named.text();
        if STARTS_PROGRAMS.iter().any(|p| named.reaches(p) && !(named.glob && named.path.len() == 1))
            && !(in_platform && MAY_START.iter().any(|allowed| file.ends_with(allowed)))
        {
            say(named.line, &what, "no other program is started, but the userspace device by platform");
        }
        if in_platform {
            if named.reaches("tokio") && !MAY_AWAIT.iter().any(|allowed| file.ends_with(allowed)) {
                say(named.line, &what, "platform is synchronous; hand out non-blocking sources for ready.rs");
            }
            continue;
        }
        if pure {
            for (of, why) in NOT_PURE {
                if named.reaches(of) {
                    say(named.line, &what, why);
                }
            }
        }
        if named.path[0] == "peervpn_platform" && top != "node" {
            let part = named.path.get(1).map_or("", String::as_str);
            // error.rs gives the platform's error its hint
            let may = matches!(part, "types" | "firewall" | "nft" | "pf" | "wfp" | "OUR_PROTOCOL" | "OUR_ALIAS")
                || (top == "error" && part == "Error");
            if !may {
                say(
                    named.line,
                    &what,
                    "outside src/node only plain data: peervpn_platform::{types, firewall, nft, pf, wfp} and our marks",
                );
            }
        }
        let Some(used) = named.path.get(1).filter(|_| named.path[0] == "crate") else {
            if named.path[0] == "crate" && named.glob && !module.is_empty() {
                say(named.line, &what, "name what you use");
            }
            continue;
        };
        if top == "lib" || used == top || row(used).is_none() {
            continue;
        }
        match (row(top), row(used)) {
            (Some(from), Some(to)) if from < to => {}
            (Some(from), Some(to)) if from == to && from == ROWS.len() - 1 => {}
            (Some(from), Some(to)) if from == to && pure => {
                if named.path.get(2).is_some_and(|part| insides.get(used).is_some_and(|i| i.contains(part))) {
                    say(named.line, &what, "another module's inside; use what its mod.rs offers");
                }
            }
            _ => say(named.line, &what, "against the direction main → cli → node → pure → {key config error}"),
        }
    }

    for (i, token) in t.iter().enumerate() {
        let line = token.line;
        match token.text.as_str() {
            "unsafe" if !in_platform => say(line, "unsafe", "only platform/ may"),
            "now" if pure && i > 0 && text(t, i - 1) == "::" => say(line, "::now", "take `now` as a parameter"),
            "elapsed" if pure && i > 0 && text(t, i - 1) == "." => {
                say(line, ".elapsed()", "it reads the clock; take `now` as a parameter");
            }
            "print" | "println" | "eprint" | "eprintln" if pure && text(t, i + 1) == "!" => {
                say(line, &format!("{}!", token.text), "src/cli talks to the person");
            }
            "cfg" | "cfg_attr" | "cfg_select" if !in_platform => {
                let open = i + 1 + usize::from(text(t, i + 1) == "!");
                if !matches!(text(t, open), "(" | "{") {
                    continue;
                }
                let systems = ["target_os", "target_family", "target_vendor", "unix", "windows"];
                if t[open..past_group(t, open)].iter().any(|t| systems.contains(&t.text.as_str())) {
                    say(line, "cfg of an operating system", "only platform/ selects one");
                }
            }
            _ => {}
        }
    }
    out
}

/// `src/nat/stun.rs` → `[nat, stun]`; `src/nat/mod.rs` → `[nat]`; `src/lib.rs` → `[]`.
fn module_of(file: &str) -> Vec<String> {
    let inside = file.trim_start_matches("platform/").trim_start_matches("src/").trim_end_matches(".rs");
    let mut parts: Vec<String> = inside.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

// ---- the house as it stands -----------------------------------------------------------------------------------------

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("cannot read {}: {e}", dir.display())) {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Every source file by its path in the repository, without test items and files that are only tests.
fn house() -> Vec<(String, Vec<Token>)> {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    rust_files(&root().join("platform/src"), &mut files);
    files.sort();
    let mut tests_only = HashSet::new();
    let mut out = Vec::new();
    for path in files {
        let name = path.strip_prefix(root()).expect("under the root").to_string_lossy().into_owned();
        let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {name}: {e}"));
        let (t, modules) = without_tests(&tokens(&source));
        let crate_of = if name.starts_with("platform/") { "platform" } else { "" };
        for module in modules {
            let mut path = module_of(&name);
            path.push(module);
            tests_only.insert((crate_of, path));
        }
        out.push((crate_of, module_of(&name), name, t));
    }
    out.retain(|(crate_of, module, ..)| {
        !(1..=module.len()).any(|n| tests_only.contains(&(*crate_of, module[..n].to_vec())))
    });
    out.into_iter().map(|(_, _, name, t)| (name, t)).collect()
}

/// The submodules of each pure module.
fn insides(house: &[(String, Vec<Token>)]) -> HashMap<String, HashSet<String>> {
    let mut out: HashMap<String, HashSet<String>> = HashMap::new();
    for (file, _) in house.iter().filter(|(file, _)| file.starts_with("src/")) {
        if let [top, inside, ..] = module_of(file).as_slice()
            && PURE.contains(&top.as_str())
        {
            out.entry(top.clone()).or_default().insert(inside.clone());
        }
    }
    out
}

#[test]
fn the_house_keeps_its_direction() {
    let house = house();
    for module in ROWS.iter().flat_map(|row| row.iter()) {
        let there = house.iter().any(|(f, _)| f == &format!("src/{module}.rs") || f == &format!("src/{module}/mod.rs"));
        assert!(there, "src/{module} is gone: bring ROWS up to date");
    }
    let insides = insides(&house);
    let found: Vec<String> =
        house.iter().flat_map(|(file, t)| check(file, t, &insides)).map(|v| v.to_string()).collect();
    assert!(found.is_empty(), "{} against the house rules:\n{}", found.len(), found.join("\n"));
}

#[test]
fn every_module_has_its_row() {
    let source = std::fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let words: Vec<String> = tokens(&source).into_iter().map(|t| t.text).collect();
    let mut at = words.as_slice();
    while let [first, rest @ ..] = at {
        at = match (first.as_str(), rest) {
            ("#", [bang, open, ..]) if bang == "!" && open == "[" => {
                let end = rest.iter().position(|t| t == "]").expect("an attribute's end");
                &rest[end + 1..]
            }
            ("pub", [kind, module, end, rest @ ..]) if kind == "mod" && end == ";" => {
                assert!(row(module).is_some(), "module {module} has no row in ROWS");
                rest
            }
            _ => panic!("src/lib.rs is the map of the house and holds only `pub mod`, found `{first}`"),
        };
    }
}

#[test]
fn main_parses_dispatches_and_exits() {
    let source = std::fs::read_to_string(root().join("src/main.rs")).expect("src/main.rs");
    let lines: HashSet<usize> = tokens(&source).iter().map(|t| t.line).collect();
    assert!(lines.len() <= MAIN_LINES, "src/main.rs has {} lines of code, {MAIN_LINES} are enough", lines.len());
}

// ---- does it see? ---------------------------------------------------------------------------------------------------

fn seen(file: &str, source: &str) -> Vec<String> {
    let insides = HashMap::from([("tunnel".to_owned(), HashSet::from(["mtu".to_owned()]))]);
    let (t, _) = without_tests(&tokens(source));
    check(file, &t, &insides).into_iter().map(|v| v.what).collect()
}

#[test]
fn violations_are_seen() {
    for (file, source) in [
        ("src/nat/stun.rs", "use tokio::net::UdpSocket;"),
        ("src/nat/stun.rs", "use tokio as t;"),
        ("src/nat/stun.rs", "use std::{io, net::{IpAddr, UdpSocket as Udp}};"),
        ("src/nat/stun.rs", "use std::net; fn f() { net::TcpStream::connect(a); }"),
        ("src/nat/stun.rs", "use std::net::*;"),
        ("src/nat/stun.rs", "use std::os::unix::net::UnixStream;"),
        ("src/nat/stun.rs", "fn f() -> u8 { ::std::fs::read(p)[0] }"),
        ("src/nat/stun.rs", "use core::time::Duration; use std::time::{Instant as I}; fn f() { I::now() }"),
        ("src/nat/stun.rs", "type T = std::time::Instant; fn f() { T::now() }"),
        ("src/nat/stun.rs", "fn f() { <std::time::Instant>::now() }"),
        ("src/nat/stun.rs", "fn f(start: std::time::Instant) { start.elapsed(); }"),
        ("src/nat/stun.rs", "fn f() { std::time::SystemTime /* hidden */ :: now() }"),
        ("src/nat/stun.rs", "const C: char = '\"'; use std::env; // \"\n"),
        ("src/nat/stun.rs", "#[cfg(not(test))] mod real { use std::fs; }"),
        ("src/nat/stun.rs", "#[cfg(test)] use std::fs; use std::env;"),
        ("src/nat/stun.rs", "#[cfg(test)] mod tests { } fn f() { println!() }"),
        ("src/nat/stun.rs", "use peervpn_platform::Host;"),
        ("src/nat/stun.rs", "use peervpn_platform::os;"),
        ("src/nat/stun.rs", "use peervpn_platform as p; fn f() { p::os::host() }"),
        ("src/nat/stun.rs", "use peervpn_platform::*;"),
        ("src/nat/stun.rs", "use super::super::node::Node;"),
        ("src/nat/mod.rs", "mod inner { use super::super::cli; }"),
        ("src/nat/mod.rs", "use crate::tunnel::mtu::inner;"),
        ("src/nat/mod.rs", "use crate::{key::PublicKey, tunnel::{self, mtu}};"),
        ("src/nat/mod.rs", "use crate::tunnel; fn f() { tunnel::mtu::inner() }"),
        ("src/nat/mod.rs", "use crate::*;"),
        ("src/join/noise.rs", "use gotatun::device::Device;"),
        ("src/key.rs", "use crate::nat;"),
        ("src/key.rs", "use peervpn_platform::Error;"),
        ("src/node/mod.rs", "fn f() { crate::cli::render::text() }"),
        ("src/cli/mod.rs", "use peervpn_platform::{types, WireGuard};"),
        ("src/cli/mod.rs", "use std::process::{Command, ExitCode};"),
        ("src/node/device.rs", "use std::process; fn f() { process::Command::new(\"ip\") }"),
        ("src/node/device.rs", "fn f() { tokio::process::Command::new(\"ip\") }"),
        ("src/node/device.rs", "fn f() { unsafe { g() } }"),
        ("src/node/device.rs", "#[cfg(target_os = \"linux\")] fn f() {}"),
        ("src/node/device.rs", "fn f() { if cfg!(windows) {} }"),
        ("src/node/device.rs", "#[cfg_attr(not(unix), allow(dead_code))] fn f() {}"),
        ("src/main.rs", "use peervpn::node;  fn main() { peervpn_platform::os::host() }"),
        ("platform/src/linux/link.rs", "fn f() { std::process::Command::new(\"ip\") }"),
        ("platform/src/linux/link.rs", "use libc::*; fn f() { libc::execv(p, a) }"),
        ("platform/src/linux/udp.rs", "use tokio::net::UdpSocket;"),
    ] {
        assert!(!seen(file, source).is_empty(), "not seen in {file}: {source}");
    }
}

#[test]
fn what_is_allowed_is_let_through() {
    for (file, source) in [
        (
            "src/nat/stun.rs",
            "//! tokio::net, std::fs\n/* use std::fs; /* nested */ use std::env; */ use std::net::IpAddr;",
        ),
        (
            "src/nat/stun.rs",
            "const S: &str = \"std::fs \\\" use std::env;\"; const R: &str = r#\"use \"tokio::net\";\"#;",
        ),
        ("src/nat/stun.rs", "fn f<'a>(now: std::time::Instant, x: &'a str) -> char { ':' }"),
        ("src/nat/stun.rs", "#[cfg(test)] mod tests { use std::fs; fn f() { std::time::Instant::now() } }"),
        ("src/nat/stun.rs", "#[cfg(test)] #[allow(x)] pub(crate) fn f() -> u8 { tokio::x(); 1 } fn g() {}"),
        ("src/nat/stun.rs", "#![cfg(test)] use std::fs;"),
        (
            "src/nat/stun.rs",
            "use super::Probe; use crate::key::PublicKey; use peervpn_platform::{nft::Table, types::*};",
        ),
        ("src/nat/mod.rs", "use crate::tunnel::Mtu; mod inner { use super::Probe; }"),
        ("src/nat/mod.rs", "use std::time::{Duration, Instant, SystemTime};"),
        ("src/join/noise.rs", "use gotatun::noise::handshake;"),
        ("src/error.rs", "impl Hint for peervpn_platform::Error {}"),
        ("src/key.rs", "use crate::error::Hint;"),
        ("src/cli/mod.rs", "use crate::{config, join::ConnectString, node}; use std::process::ExitCode;"),
        (
            "src/node/mod.rs",
            "use crate::nat::stun; use peervpn_platform::{Host, os}; fn f() { std::time::Instant::now() }",
        ),
        ("platform/src/linux/process.rs", "use std::process::Command;"),
        ("platform/src/unix/ready.rs", "use tokio::io::unix::AsyncFd;"),
        ("platform/src/lib.rs", "#[cfg(target_os = \"linux\")] pub mod os; use std::process::ExitStatus;"),
    ] {
        assert_eq!(seen(file, source), Vec::<String>::new(), "seen in {file}: {source}");
    }
}
