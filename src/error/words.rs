//! What a person types and looks at, where it differs from system to system. Pure: every system's words on any host.

use peervpn_platform::types::System;

/// The words of a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words(pub System);

impl Words {
    /// Those of the system that this program was built for.
    pub const HERE: Words = Words(match std::env::consts::OS.as_bytes() {
        b"windows" => System::Windows,
        b"macos" => System::Macos,
        _ => System::Linux,
    });

    /// A command of ours (`down`) that an administrator types here. Windows' administrators open a terminal that is
    /// elevated as a whole.
    pub fn ours(self, command: &str) -> String {
        match self.0 {
            System::Linux | System::Macos => format!("sudo peervpn {command}"),
            System::Windows => format!("peervpn {command}"),
        }
    }

    /// A command of ours for another machine, whose system is not known; most of them have sudo.
    pub fn elsewhere(command: &str) -> String {
        format!("sudo peervpn {command}")
    }

    /// A help text that was written for a Unix. What stands in a column of its own stays there.
    pub fn help(self, text: &str) -> String {
        const SUDO: &str = "sudo ";
        if self.0 != System::Windows {
            return text.to_owned();
        }
        let line = |line: &str| {
            let Some((indent, command)) = line.split_once(SUDO).filter(|(before, _)| before.trim().is_empty()) else {
                return line.replace(SUDO, "");
            };
            match command.split_once("  ") {
                Some((command, about)) => {
                    format!("{indent}{command}  {:width$}{}", "", about.replace(SUDO, ""), width = SUDO.len())
                }
                None => format!("{indent}{command}"),
            }
        };
        text.split('\n').map(line).collect::<Vec<_>>().join("\n")
    }

    /// What it takes to configure the network.
    pub fn administrator(self) -> &'static str {
        match self.0 {
            System::Linux => "root (CAP_NET_ADMIN and CAP_NET_RAW)",
            System::Macos => "root",
            System::Windows => "an elevated administrator",
        }
    }

    /// Whom a node answers.
    pub fn answered(self) -> &'static str {
        match self.0 {
            System::Linux | System::Macos => "root",
            System::Windows => "elevated administrators",
        }
    }

    /// How to get there, for whatever was refused.
    pub fn elevate(self) -> &'static str {
        match self.0 {
            System::Linux | System::Macos => "run it as root, for example with sudo",
            System::Windows => "run it in a terminal that was opened with \"Run as administrator\"",
        }
    }

    /// The same for a command of ours.
    pub fn elevated(self, command: &str) -> String {
        match self.0 {
            System::Linux | System::Macos => format!("run it as root: {}", self.ours(command)),
            System::Windows => format!("open a terminal with \"Run as administrator\", then: {}", self.ours(command)),
        }
    }

    /// How to lift the kill switch.
    pub fn lift(self) -> String {
        format!("{} lifts it; after a crash: {}", self.ours("down"), self.ours("recover"))
    }

    /// How to start a node, where none runs.
    pub fn start(self) -> String {
        let connect = self.ours("connect PUBKEY@ENDPOINT");
        match self.0 {
            System::Linux | System::Macos => format!("start one: {}, or {connect}", self.ours("exit")),
            System::Windows => format!("start one: {connect}"),
        }
    }

    /// How to make an invite, where no exit runs.
    pub fn invite_without_exit(self) -> String {
        let offline = "say where it will be: peervpn invite --endpoint HOST:PORT";
        match self.0 {
            System::Linux | System::Macos => format!("start it: {}; or {offline}", self.ours("exit")),
            System::Windows => format!("{offline}; the exit itself can't run on Windows"),
        }
    }

    /// The command that shows the routes.
    pub fn routes(self) -> &'static str {
        match self.0 {
            System::Linux => "ip route",
            System::Macos => "netstat -rn",
            System::Windows => "route print",
        }
    }

    /// What to do about another program's routes that are asked before ours.
    pub fn routes_past(self) -> String {
        match self.0 {
            System::Linux => {
                "stop the other VPN, or move its rules behind ours: ip rule, ip route show table all".to_owned()
            }
            System::Macos | System::Windows => {
                format!("stop the other VPN; {} shows whose routes these are", self.routes())
            }
        }
    }

    /// What to do about an interface that has our name and is not ours.
    pub fn name_taken(self, interface: &str) -> String {
        let other = match self.0 {
            System::Linux => format!("or remove it: ip link delete {interface}"),
            System::Macos => "or stop the program that made it".to_owned(),
            System::Windows => {
                format!("or rename that adapter: Rename-NetAdapter \"{interface}\" NEW-NAME, in PowerShell")
            }
        };
        format!("choose another name with --interface NAME, {other}")
    }

    /// How to get a program that is not there, by the usual name of its package.
    pub fn install(self, program: &str) -> String {
        let packages = match self.0 {
            System::Linux => "apt",
            System::Macos => "brew",
            System::Windows => "winget",
        };
        format!("install it (for example: {packages} install {program})")
    }

    /// The kernel has no WireGuard, and no other back end was allowed: what is the matter, and what mends it.
    pub fn no_kernel(self) -> (&'static str, &'static str) {
        match self.0 {
            System::Linux => (
                "this kernel has no WireGuard",
                "load it: modprobe wireguard; or take the userspace device: --backend userspace",
            ),
            System::Macos => ("macOS has no WireGuard of its own", "leave --backend out: a userspace device does it"),
            System::Windows => ("there is no WireGuardNT here", "unpack the bundle again, with wireguard.dll"),
        }
    }

    /// The same where a userspace device was asked for and can't be.
    pub fn no_userspace(self) -> (&'static str, &'static str) {
        match self.0 {
            System::Linux => (
                "there is no TUN device here (/dev/net/tun)",
                "load it: modprobe tun; in a container, pass it in: --device /dev/net/tun",
            ),
            System::Macos => ("no utun device can be made here", "take a Mac: a container or sandbox has none"),
            System::Windows => (
                "the userspace back end is not supported on Windows",
                "leave --backend out: WireGuardNT comes with the bundle",
            ),
        }
    }

    /// The same where there is neither.
    pub fn no_back_end(self) -> (&'static str, &'static str) {
        match self.0 {
            System::Linux => (
                "this kernel has neither WireGuard nor a TUN device (/dev/net/tun)",
                "load one of them: modprobe wireguard, or modprobe tun; in a container, pass --device /dev/net/tun",
            ),
            System::Macos => self.no_userspace(),
            System::Windows => self.no_kernel(),
        }
    }

    /// What can't be put back without a whole journal.
    pub fn unmarked(self) -> &'static str {
        match self.0 {
            System::Linux => {
                "Kernel settings and files carry no mark: look at net.ipv4.conf.*.forwarding, \
                 net.ipv6.conf.*.forwarding and /etc/resolv.conf"
            }
            System::Macos => {
                "Kernel settings carry no mark: look at net.inet.ip.forwarding and net.inet6.ip6.forwarding"
            }
            System::Windows => "Whatever we change on Windows carries our mark",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEMS: [System; 3] = [System::Linux, System::Macos, System::Windows];

    fn all(system: System) -> String {
        let words = Words(system);
        let pairs = [words.no_kernel(), words.no_userspace(), words.no_back_end()];
        let mut lines = vec![
            words.ours("down"),
            words.administrator().to_owned(),
            words.answered().to_owned(),
            words.elevate().to_owned(),
            words.elevated("recover"),
            words.lift(),
            words.start(),
            words.invite_without_exit(),
            words.routes().to_owned(),
            words.routes_past(),
            words.name_taken("peervpn0"),
            words.install("wireguard-go"),
        ];
        lines.extend(pairs.into_iter().flat_map(|(what, mend)| [what.to_owned(), mend.to_owned()]));
        lines.push(words.unmarked().to_owned());
        format!("{system}\n  {}\n", lines.join("\n  "))
    }

    #[test]
    fn every_system_in_its_own_words() {
        let said: String = SYSTEMS.map(all).concat();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plan/words.txt");
        if std::env::var_os("PEERVPN_BLESS").is_some() {
            std::fs::write(golden, &said).unwrap();
        }
        assert_eq!(said, std::fs::read_to_string(golden).unwrap(), "PEERVPN_BLESS=1 writes {golden}");
    }

    #[test]
    fn no_system_is_told_another_ones_commands() {
        let of_linux = ["ip ", "apt ", "modprobe", "/dev/", "/etc/", "net.ipv4", "CAP_"];
        assert!(!of_linux.iter().any(|word| all(System::Macos).contains(word)), "{}", all(System::Macos));
        let windows = all(System::Windows);
        assert!(!of_linux.iter().chain(&["sudo", "root", "netstat"]).any(|word| windows.contains(word)), "{windows}");
    }

    #[test]
    fn help_keeps_its_columns() {
        let text = "Examples:\n  sudo peervpn exit       opens\n  peervpn nattest         looks\n  \
                    sudo peervpn invite     then there: sudo peervpn connect -\n  sudo peervpn down";
        let windows = "Examples:\n  peervpn exit            opens\n  peervpn nattest         looks\n  \
                       peervpn invite          then there: peervpn connect -\n  peervpn down";
        assert_eq!(Words(System::Windows).help(text), windows);
        assert_eq!(Words(System::Linux).help(text), text);
    }

    #[test]
    fn here_is_one_of_them() {
        assert_eq!(Words::HERE.0.to_string().to_lowercase(), std::env::consts::OS);
    }
}
