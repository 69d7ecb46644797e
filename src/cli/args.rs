//! Options that more than one command takes.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use super::Context;
use super::style::Style;
use crate::config::{BackendChoice, Places, Settings, value};
use crate::node::places;

#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub(super) struct GlobalArgs {
    #[arg(long, global = true, value_name = "FILE")]
    #[arg(help = place("Read settings from this file", "PEERVPN_CONFIG", places::CONFIG))]
    config: Option<PathBuf>,
    #[arg(long, global = true, value_name = "DIR")]
    #[arg(help = place("Keep key, peers and journal here", "PEERVPN_STATE_DIR", places::STATE_DIR))]
    state_dir: Option<PathBuf>,
    #[arg(long, global = true, value_name = "DIR")]
    #[arg(help = place("Keep control sockets here", "PEERVPN_RUN_DIR", places::RUN_DIR))]
    run_dir: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long, global = true)]
    json: bool,
    /// When to use colour; NO_COLOR is honoured
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value = "auto", hide_possible_values = false)]
    color: Colour,
    /// Say more about what is done; -vv and -vvv still more
    #[arg(short, long, global = true, action = ArgAction::Count, alias = "debug")]
    pub(super) verbose: u8,
}

/// Help for a place whose default differs from system to system.
fn place(what: &str, variable: &str, default: &str) -> String {
    format!("{what} [env: {variable}] [default: {default}]")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Colour {
    Auto,
    Always,
    Never,
}

impl GlobalArgs {
    /// What these say, and the `rest` where they say nothing.
    pub(super) fn or(self, rest: &GlobalArgs) -> GlobalArgs {
        GlobalArgs {
            config: self.config.or_else(|| rest.config.clone()),
            state_dir: self.state_dir.or_else(|| rest.state_dir.clone()),
            run_dir: self.run_dir.or_else(|| rest.run_dir.clone()),
            json: self.json || rest.json,
            color: if self.color == Colour::Auto { rest.color } else { self.color },
            verbose: self.verbose.max(rest.verbose),
        }
    }

    /// Flags first, then the environment, then defaults. An empty variable says nothing.
    pub(super) fn context(&self) -> Context {
        let variable = |name| std::env::var_os(name).filter(|text| !text.is_empty());
        let place = |flag: &Option<PathBuf>, name| flag.clone().or_else(|| variable(name).map(PathBuf::from));
        // https://no-color.org: present and not empty
        let plain = variable("NO_COLOR").is_some() || variable("TERM").is_some_and(|term| term == "dumb");
        let style = |terminal: bool| Style {
            colour: match self.color {
                Colour::Auto => terminal && !plain,
                Colour::Always => true,
                Colour::Never => false,
            },
        };
        Context {
            places: Places {
                state_dir: place(&self.state_dir, "PEERVPN_STATE_DIR")
                    .unwrap_or_else(|| places::path(places::STATE_DIR)),
                run_dir: place(&self.run_dir, "PEERVPN_RUN_DIR").unwrap_or_else(|| places::path(places::RUN_DIR)),
            },
            config: place(&self.config, "PEERVPN_CONFIG"),
            json: self.json,
            stdout: style(std::io::stdout().is_terminal()),
            stderr: style(std::io::stderr().is_terminal()),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// Name of the interface [default: peervpn0]
    #[arg(long, value_name = "NAME", value_parser = value::interface)]
    interface: Option<String>,
    /// UDP port to listen on
    #[arg(long, value_name = "N", value_parser = value::port)]
    port: Option<u16>,
    /// Who runs WireGuard: auto, kernel, userspace, userspace=PROGRAM [default: auto]
    #[arg(long, value_name = "BACKEND", value_parser = value::backend)]
    backend: Option<BackendChoice>,
    /// Ask this STUN server for our reflexive address; may be repeated [default: public ones]
    #[arg(long, value_name = "HOST:PORT", value_parser = value::host_port)]
    stun_server: Vec<String>,
    /// Ask no STUN server
    #[arg(long, conflicts_with = "stun_server", value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    no_stun: Option<bool>,
    /// MTU of the tunnel in bytes [default: what the route to the endpoint leaves]
    #[arg(long, value_name = "N", value_parser = value::mtu)]
    mtu: Option<u32>,
    /// Print a line about our NAT mapping every 10 s
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    monitor_nat: Option<bool>,
    /// Refresh our NAT mapping this often [default: 20s]
    #[arg(long, value_name = "TIME", value_parser = value::duration)]
    keeper_interval: Option<std::time::Duration>,
}

impl NodeArgs {
    /// What the flags say.
    pub(super) fn settings(self) -> Settings {
        Settings {
            interface: self.interface,
            port: self.port,
            backend: self.backend,
            stun_server: said(self.stun_server),
            no_stun: self.no_stun,
            mtu: self.mtu,
            monitor_nat: self.monitor_nat,
            keeper_interval: self.keeper_interval,
            ..Settings::default()
        }
    }
}

/// A repeatable option that was not given says nothing.
pub(super) fn said<T>(values: Vec<T>) -> Option<Vec<T>> {
    (!values.is_empty()).then_some(values)
}
