//! `peervpn nattest`.

use clap::Args;

use super::args::said;
use super::style::Style;
use super::{Context, Outcome, render, terminal};
use crate::config::{ConfigFile, value};
use crate::nat::servers;
use crate::nat::verdict::CanBeExit;
use crate::node::nattest::{self, FamilyReport, Options, Report};
use crate::node::places;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peervpn nattest                                    needs no privileges and changes nothing
  peervpn nattest --port 51820                       ask about that port; no node may hold it
  peervpn nattest --stun-server stun.example.org:3478 --json
  peervpn nattest --lifetime                         up to ten minutes, with progress

A server that sends OTHER-ADDRESS (RFC 5780) is needed to tell the filtering behaviour.")]
pub(super) struct NattestArgs {
    /// Ask this STUN server; may be repeated [default: public ones]
    #[arg(long, value_name = "HOST:PORT", value_parser = value::host_port)]
    stun_server: Vec<String>,
    /// Local UDP port to ask about [default: any]
    #[arg(long, value_name = "N", value_parser = value::port)]
    port: Option<u16>,
    /// Measure how long an idle mapping lives, too: takes as long as it lives, and somewhat more
    #[arg(long)]
    lifetime: bool,
}

/// Measures, then shows it.
pub(super) fn run(args: NattestArgs, context: &Context) -> Outcome {
    let file = ConfigFile::read(context.config.as_deref(), &places::path(places::CONFIG))?.for_exit();
    let servers = said(args.stun_server).or(file.stun_server).unwrap_or_else(servers::default);
    if !context.json {
        let asked =
            if servers.len() == 1 { "1 STUN server".to_owned() } else { format!("{} STUN servers", servers.len()) };
        terminal::to_stderr(|err| writeln!(err, "… asking {asked} and the gateway"));
    }
    let options = Options { servers, port: args.port, lifetime: args.lifetime };
    let mut progress = |line: String| {
        if !context.json {
            terminal::to_stderr(|err| writeln!(err, "… {line}"));
        }
    };
    let report = nattest::run(&options, &mut progress)?;
    terminal::to_stdout(|out| match context.json {
        true => render::json(out, &report),
        false => text(out, &report, context.stdout),
    });
    Ok(())
}

/// For people.
fn text(out: render::Out, report: &Report, style: Style) -> std::io::Result<()> {
    for (name, family) in [("IPv4", &report.ipv4), ("IPv6", &report.ipv6)] {
        match family {
            Some(family) => {
                writeln!(out, "{}", style.bold(format_args!("{name}: {}", family.nat_type.name())))?;
                render::table(out, &rows(family))?;
            }
            None => writeln!(out, "{}", style.bold(format_args!("{name}: no way to any STUN server")))?,
        }
    }
    let found = [
        ("PCP", report.port_mapping.pcp),
        ("NAT-PMP", report.port_mapping.nat_pmp),
        ("UPnP", report.port_mapping.upnp),
    ];
    let found: Vec<&str> = found.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect();
    let found = if found.is_empty() { "none found".to_owned() } else { found.join(", ") };
    writeln!(out, "{}", style.bold(format_args!("Port mapping: {found}")))?;
    writeln!(out)?;
    for (index, line) in report.explanation.iter().enumerate() {
        match (index, report.can_be_exit) {
            (0, CanBeExit::Yes | CanBeExit::WithPortMapping) => writeln!(out, "{}", style.green(line))?,
            (0, CanBeExit::WithHelp) => writeln!(out, "{}", style.yellow(line))?,
            (0, CanBeExit::No) => writeln!(out, "{}", style.red(line))?,
            _ => writeln!(out, "{line}")?,
        }
    }
    Ok(())
}

fn rows(family: &FamilyReport) -> Vec<(&'static str, String)> {
    let address = |address: Option<std::net::SocketAddr>| address.map_or("unknown".to_owned(), |a| a.to_string());
    let yes = |fact: Option<bool>| match fact {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not measured",
    };
    let mut rows = vec![
        ("UDP", if family.udp { "works" } else { "no answer" }.to_owned()),
        ("local address", address(family.local)),
        ("reflexive address", address(family.reflexive)),
    ];
    if family.udp {
        rows.extend([
            ("mapping", family.mapping.name().to_owned()),
            ("filtering", family.filtering.name().to_owned()),
            ("port preserved", yes(family.port_preserved).to_owned()),
        ]);
        if family.reflexive != family.local {
            rows.extend([
                ("hairpinning", yes(family.hairpin).to_owned()),
                ("carrier-grade NAT", yes(family.cgn).to_owned()),
            ]);
        }
    }
    if let Some(seconds) = family.lifetime_s {
        rows.push(("mapping lifetime", format!("{seconds} s at least")));
    }
    rows
}
