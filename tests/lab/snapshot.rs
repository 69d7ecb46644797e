//! What a host's network configuration looks like to the standard tools, as text, and the difference between two.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::net::Namespace;

/// One host's configuration at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot(Vec<String>);

impl Namespace {
    /// Links, addresses, routes of every table, rules of both families (ip), the ruleset (nft), every per-interface
    /// kernel setting and the forwarding switches (sysctl).
    pub fn snapshot(&self) -> Snapshot {
        // two starts of ip: in a batch the family is the program's, not the line's
        let script = "ip -batch - <<E\nlink show\naddress show\nroute show table all\nrule show\nE\n\
                      echo '# v6'; ip -6 -batch - <<E\nroute show table all\nrule show\nE\n\
                      echo '# nft'; nft list ruleset";
        let text = self.output("sh", &["-ec", script]);
        let mut lines: Vec<String> = text.lines().map(steady).collect();
        lines.push("# sysctl".to_owned());
        self.run(|| {
            for tree in ["net/ipv4/conf", "net/ipv6/conf"] {
                settings(Path::new("/proc/sys").join(tree).as_path(), &mut lines);
            }
            for key in ["net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding"] {
                setting(&Path::new("/proc/sys").join(key), &mut lines);
            }
        });
        Snapshot(lines)
    }
}

impl Snapshot {
    /// The same without kernel settings, and without the anycast routes that come with IPv6 forwarding.
    #[allow(dead_code, reason = "for tests of crashes")]
    pub fn without_settings(&self) -> Snapshot {
        let before = self.0.iter().take_while(|line| *line != "# sysctl");
        Snapshot(before.filter(|line| !line.starts_with("anycast")).cloned().collect())
    }
}

/// Panics with the lines that differ unless the host is as it was.
#[track_caller]
pub fn assert_unchanged(when: &str, before: &Snapshot, after: &Snapshot) {
    if before != after {
        panic!("the host is not as it was {when}:\n{}", difference(before, after));
    }
}

/// A line without what changes by itself: lifetimes, counters, and the state of a peer's carrier.
fn steady(line: &str) -> String {
    let mut words = Vec::new();
    let mut input = line.split_whitespace().peekable();
    while let Some(word) = input.next() {
        match word {
            "valid_lft" | "preferred_lft" | "expires" | "packets" | "bytes" => {
                input.next();
            }
            "tentative" | "dynamic" => {}
            _ => words.push(word),
        }
    }
    let indent = line.len() - line.trim_start().len();
    format!("{}{}", " ".repeat(indent), words.join(" "))
}

/// Every readable setting under `dir`, interface by interface, in order of name.
fn settings(dir: &Path, lines: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<_> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            settings(&path, lines);
        } else {
            setting(&path, lines);
        }
    }
}

fn setting(path: &Path, lines: &mut Vec<String>) {
    // stable_secret is unreadable until it is set
    if let Ok(value) = fs::read_to_string(path) {
        lines.push(format!("{} = {}", path.strip_prefix("/proc/sys").unwrap_or(path).display(), value.trim()));
    }
}

/// Lines only in one of the two, in order, `-` before and `+` after, each under its last common line.
fn difference(before: &Snapshot, after: &Snapshot) -> String {
    let (mut text, mut i, mut j) = (String::new(), 0, 0);
    let (a, b) = (&before.0, &after.0);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
            continue;
        }
        // the nearest place where both agree again
        let meet = (1..=a.len() - i + b.len() - j)
            .find_map(|sum| {
                (0..=sum).map(|k| (i + k, j + sum - k)).find(|&(x, y)| a.get(x).is_some() && a.get(x) == b.get(y))
            })
            .unwrap_or((a.len(), b.len()));
        if i > 0 {
            let _ = writeln!(text, "  {}", a[i - 1]);
        }
        a[i..meet.0].iter().for_each(|line| text.push_str(&format!("- {line}\n")));
        b[j..meet.1].iter().for_each(|line| text.push_str(&format!("+ {line}\n")));
        (i, j) = meet;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Snapshot {
        Snapshot(lines.iter().map(|line| steady(line)).collect())
    }

    #[test]
    fn a_snapshot_sees_a_new_rule_and_not_a_lifetime() {
        let before = of(&["0: from all lookup local", " inet6 fe80::1/64 valid_lft 12sec preferred_lft 3sec", "end"]);
        let same = of(&["0: from all lookup local", " inet6 fe80::1/64 valid_lft 9sec preferred_lft 1sec", "end"]);
        let more = of(&["0: from all lookup local", "7: from all lookup 9", " inet6 fe80::1/64", "end"]);
        assert_unchanged("", &before, &same);
        assert_eq!(difference(&before, &more), "  0: from all lookup local\n+ 7: from all lookup 9\n");
    }
}
