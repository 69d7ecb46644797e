//! Stock WireGuard clients: wg-quick with the generated file, unchanged, and QR codes read by an independent decoder.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::net::Namespace;
use crate::record::patience;
use crate::topology::{Lab, Nat, Site, WEB};
use crate::{assert_leaves_directly, assert_leaves_through_exit, lab_tests, text};

const HOME: Nat = Nat::PortRestricted;

/// Runs `wg-quick COMMAND FILE` with a resolver configuration of its own; what the host's then says.
pub fn wg_quick(host: &Namespace, command: &str, file: &Path) -> String {
    let resolv = file.with_extension("resolv");
    let script = "
        test -e \"$3\" || echo 'nameserver 192.0.2.53' > \"$3\"
        mount --bind \"$3\" \"$(readlink -f /etc/resolv.conf)\"
        mkdir -p /run/resolvconf && mount -t tmpfs none /run/resolvconf
        if [ \"$1\" = down ]; then sed -i '/^DNS/d' \"$2\"; fi
        # the device outlives this shell and must not hold our pipes
        setsid wg-quick \"$1\" \"$2\" > \"$3.log\" 2>&1 || { cat \"$3.log\" >&2; exit 1; }
        cat /etc/resolv.conf";
    let mut command_line = host.command("sh");
    command_line
        .args(["-ec", script, "sh", command])
        .arg(file)
        .arg(&resolv)
        .env("WG_SUDO", "1")
        .env("LOG_LEVEL", "error")
        .env("WG_QUICK_USERSPACE_IMPLEMENTATION", "wireguard-go")
        .stdin(std::process::Stdio::null());
    let output = command_line.output().expect("start wg-quick");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "wg-quick {command}: {}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A generated file at a site.
fn file_for(lab: &Lab, site: &Site, name: &str) -> PathBuf {
    let file = site.dir.join("pv0.conf");
    lab.exit.run_ok(&["invite", "--name", name, "--wg-quick", &file.to_string_lossy()]);
    file
}

fn by_name(lab: &Lab, name: &str) -> Value {
    let list = lab.exit.run_ok(&["peers", "list", "--json"]).stdout;
    let peers = list.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    peers.into_iter().find(|p| p["name"] == name).unwrap_or_else(|| panic!("no {name} in {list}"))
}

/// Decodes a picture; nothing but the code's text comes out.
fn decoded(picture: &Path) -> String {
    let output = std::process::Command::new("zbarimg")
        .args(["--quiet", "--raw", "-Sdisable", "-Sqrcode.enable"])
        .arg(picture)
        .output();
    let output = output.expect("start zbarimg");
    assert!(output.status.success(), "zbarimg cannot read {}", picture.display());
    String::from_utf8(output.stdout).expect("text")
}

/// An SVG as our program writes it, as a picture (portable graymap): each `MX YhWvHh-Wz` of its last path is a dark
/// rectangle, four dots a unit.
fn rastered(svg: &str) -> Vec<u8> {
    const DOT: usize = 4;
    let attribute = |name: &str| {
        let start = svg.rfind(&format!(" {name}=\"")).expect("it has one") + name.len() + 3;
        &svg[start..start + svg[start..].find('"').expect("it ends")]
    };
    let side: usize = attribute("viewBox").split(' ').nth(2).and_then(|n| n.parse().ok()).expect("a square");
    let side = side * DOT;
    let mut pixels = vec![255u8; side * side];
    for dark in attribute("d").split('z').filter(|part| !part.is_empty()) {
        let numbers: Vec<usize> =
            dark.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
        let [x, y, width, height, back] = numbers[..] else { panic!("another shape: {dark}") };
        assert_eq!(width, back, "{dark}");
        for row in y * DOT..(y + height) * DOT {
            pixels[row * side + x * DOT..][..width * DOT].fill(0);
        }
    }
    let mut picture = format!("P5\n{side} {side}\n255\n").into_bytes();
    picture.extend(pixels);
    picture
}

/// A terminal's screen as a picture (portable graymap): each character two dots high.
fn photographed(screen: &str, light_blocks: bool) -> Vec<u8> {
    const DOT: usize = 4;
    let plain: Vec<Vec<char>> = screen
        .lines()
        .map(|line| line.replace("\x1b[38;5;16;48;5;231m", "").replace("\x1b[0m", "").chars().collect())
        .collect();
    let width = plain.iter().map(Vec::len).max().expect("lines");
    let mut pixels = Vec::new();
    for line in &plain {
        for lower in [false, true] {
            for _ in 0..DOT {
                for x in 0..width {
                    let set = match line.get(x).copied().unwrap_or(' ') {
                        '█' => true,
                        '▀' => !lower,
                        '▄' => lower,
                        _ => false,
                    };
                    pixels.extend([if set == light_blocks { 255u8 } else { 0 }; DOT]);
                }
            }
        }
    }
    let mut picture = format!("P5\n{} {}\n255\n", width * DOT, plain.len() * 2 * DOT).into_bytes();
    picture.extend(pixels);
    picture
}

lab_tests! {
    /// Two stock clients and a peer of our own at once, all through the exit; DNS set by wg-quick.
    fn wg_quick_takes_the_file_unchanged("wg-quick", "wireguard-go", "resolvconf") {
        let lab = Lab::new(Nat::Open, &[HOME.into(), HOME.into(), HOME.into()]);
        let mut exit = lab.exit.exit(&["--accept", "any"]);
        let ready = exit.event("ready");
        let [first, second, third] = &lab.peers[..] else { panic!("three peers") };
        let files = [(first, "phone"), (second, "tv")].map(|(site, name)| (site, name, file_for(&lab, site, name)));
        for (_, name, _) in &files {
            assert_eq!(text(&by_name(&lab, name), "note"), "stock app, unused");
        }
        let exit_v4 = crate::texts(&ready, "tunnel_addresses").into_iter().find(|a| !a.contains(':')).expect("a v4");
        for (site, _, file) in &files {
            let resolv = wg_quick(&site.host, "up", file);
            assert!(resolv.contains(&format!("nameserver {exit_v4}")), "{resolv}");
        }
        let mut peer = third.connect(text(&ready, "connect"), &[]);
        peer.event("connected");
        for _ in 0..3 {
            lab.peers.iter().for_each(|site| assert_leaves_through_exit(&lab, site));
        }
        let start = std::time::Instant::now();
        while by_name(&lab, "tv")["note"] != "stock app" {
            assert!(start.elapsed() < patience(20), "its use is not noted: {}", by_name(&lab, "tv"));
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        // its key stays: through a restart of the exit, too
        exit.stop(libc::SIGINT);
        let mut exit = lab.exit.exit(&["--accept", "none"]);
        exit.event("ready");
        let start = std::time::Instant::now();
        while first.whoami(WEB[0]).is_err() {
            assert!(start.elapsed() < patience(40), "the stock client does not come back");
        }
        assert_leaves_through_exit(&lab, first);
        lab.exit.run_ok(&["peers", "revoke", "phone"]);
        assert!(first.whoami(WEB[0]).is_err());
        assert_leaves_through_exit(&lab, second);
        wg_quick(&second.host, "down", &files[1].2);
        assert_leaves_directly(second);
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    /// PNG, SVG and terminal, coloured and plain, decoded to the very file.
    fn qr_codes_are_read_by_another_program("zbarimg") {
        let lab = Lab::without_stun(Nat::Open, &[]);
        let mut exit = lab.exit.exit(&["--accept", "none", "--no-stun"]);
        exit.event("ready");
        let dir = &lab.exit.dir;
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let png = format!("--qr={}", path("code.png"));
        lab.exit.run_ok(&["invite", "--wg-quick", &path("pv0.conf"), &png]);
        let file = std::fs::read_to_string(path("pv0.conf")).expect("the file");
        assert_eq!(decoded(&dir.join("code.png")).trim_end(), file.trim_end());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path("code.png")).expect("a file").permissions());
        assert_eq!(mode & 0o777, 0o600);

        let svg = format!("--qr={}", path("code.svg"));
        lab.exit.run_ok(&["invite", "--wg-quick", &path("pv1.conf"), &svg]);
        let file = std::fs::read_to_string(path("pv1.conf")).expect("the file");
        let drawing = std::fs::read_to_string(path("code.svg")).expect("the drawing");
        std::fs::write(dir.join("svg.pgm"), rastered(&drawing)).expect("write a picture");
        assert_eq!(decoded(&dir.join("svg.pgm")).trim_end(), file.trim_end());
        // the same by a program for SVG, where there is one
        let render = std::process::Command::new("rsvg-convert").args(["-o", &path("svg.png"), &path("code.svg")]).status();
        match render {
            Ok(status) => {
                assert!(status.success());
                assert_eq!(decoded(&dir.join("svg.png")).trim_end(), file.trim_end());
            }
            Err(_) => println!("SKIP: rsvg-convert (librsvg2-bin), for the drawing; rastered by this test alone"),
        }

        for (colour, light_blocks) in [("always", false), ("never", true)] {
            let file = path(&format!("{colour}.conf"));
            let drawn = lab.exit.run_ok(&["--color", colour, "invite", "--wg-quick", &file, "--qr"]).stdout;
            let columns = drawn.lines().map(|line| line.replace("\x1b[38;5;16;48;5;231m", "").replace("\x1b[0m", "").chars().count()).max();
            assert!(columns.is_some_and(|columns| columns <= 85), "{columns:?} columns");
            let picture = dir.join(format!("{colour}.pgm"));
            std::fs::write(&picture, photographed(&drawn, light_blocks)).expect("write a picture");
            let file = std::fs::read_to_string(file).expect("the file");
            assert_eq!(decoded(&picture).trim_end(), file.trim_end());
        }
        let refused = lab.exit.run(&["invite", "--qr=code.gif"]);
        assert_eq!(refused.code, Some(2), "{}", refused.all());

        // export shows no key unless told to
        let shown = lab.exit.run_ok(&["export"]).stdout;
        assert!(shown.contains("# PrivateKey is left out") && shown.contains("# PresharedKey is left out"), "{shown}");
        let complete = lab.exit.run_ok(&["export", "--show-keys"]).stdout;
        assert!(complete.contains("\nPrivateKey = ") && complete.contains("\nPresharedKey = "));
        exit.stop(libc::SIGINT);
    }
}
