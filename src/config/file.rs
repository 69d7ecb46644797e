//! The TOML file: which keys there are, what each takes, and errors that name file, key and remedy.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Dns, Settings, value};
use crate::error::{Hint, Status, Words};

/// Largest file that is read, in bytes: a settings file is a page of text.
const MAX_SIZE: usize = 1 << 20;

/// What is wrong with the configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read configuration file {file}: {source}")]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// It is no TOML.
    #[error("configuration file {file}, line {line}: {message}")]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// It has a key that no option has.
    #[error("configuration file {file}: unknown key `{key}`")]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// The key, with its table.
        key: String,
        /// The nearest known key, if one is near.
        nearest: Option<&'static str>,
    },
    /// A key of the other command stands in a command's table.
    #[error("configuration file {file}: key `{key}` in [{table}] is an option of `peervpn {owner}`")]
    WrongTable {
        /// The file.
        file: PathBuf,
        /// The key.
        key: &'static str,
        /// The table it stands in.
        table: &'static str,
        /// The command that has it.
        owner: &'static str,
    },
    /// A key has a wrong value.
    #[error("configuration file {file}: wrong value for `{key}`: {expected}, not {found}")]
    Value {
        /// The file.
        file: PathBuf,
        /// The key, with its table.
        key: String,
        /// What is expected.
        expected: String,
        /// What stands there.
        found: String,
    },
}

impl Hint for ConfigError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            ConfigError::Read { source, file } => match source.kind() {
                std::io::ErrorKind::NotFound => "name an existing file with --config".to_owned(),
                std::io::ErrorKind::PermissionDenied => Words::HERE.elevate().to_owned(),
                _ => format!("make {} a readable file, or name another one with --config", file.display()),
            },
            ConfigError::Syntax { .. } => "mend that line; strings stand in quotes: accept = \"any\"".to_owned(),
            ConfigError::UnknownKey { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            ConfigError::UnknownKey { .. } => {
                "keys have the names of the options that `peervpn exit --help` and `peervpn connect --help` list"
                    .to_owned()
            }
            ConfigError::WrongTable { key, owner, .. } => format!("move `{key}` to [{owner}] or above every table"),
            ConfigError::Value { key, file, .. } => format!("mend `{key}` in {}", file.display()),
        })
    }

    /// Wrong usage, unless the system may answer otherwise another time: a service manager that starts us again and again
    /// is to stop where trying again does not help.
    fn status(&self) -> Status {
        use std::io::ErrorKind::{FileTooLarge, InvalidData, IsADirectory, NotFound};
        match self {
            ConfigError::Read { source, .. } => match source.kind() {
                NotFound | IsADirectory | InvalidData | FileTooLarge => Status::Usage,
                _ => Status::Failed,
            },
            _ => Status::Usage,
        }
    }
}

/// Which command reads a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Both,
    Exit,
    Connect,
}

/// What the value of a key was expected to be.
type Outcome = Result<(), String>;

/// A key: its name, who reads it, how it is read.
struct Key(&'static str, Owner, fn(&mut Settings, &Value) -> Outcome);

/// Every key; one line each, in the order of cli.md.
const KEYS: &[Key] = &[
    Key("accept", Owner::Exit, |s, v| one(&mut s.accept, v, value::accept)),
    Key("allow-lan", Owner::Exit, |s, v| switch(&mut s.allow_lan, v)),
    Key("allow-peers", Owner::Exit, |s, v| switch(&mut s.allow_peers, v)),
    Key("endpoint", Owner::Exit, |s, v| many(&mut s.endpoint, v, value::host_port)),
    Key("no-portmap", Owner::Exit, |s, v| switch(&mut s.no_portmap, v)),
    Key("timeout", Owner::Connect, |s, v| one(&mut s.timeout, v, value::duration)),
    Key("retry", Owner::Connect, |s, v| one(&mut s.retry, v, value::count)),
    Key("allowed-ips", Owner::Connect, |s, v| many(&mut s.allowed_ips, v, value::cidr)),
    Key("exclude", Owner::Connect, |s, v| many(&mut s.exclude, v, value::cidr)),
    Key("no-lan", Owner::Connect, |s, v| switch(&mut s.no_lan, v)),
    Key("dns", Owner::Both, |s, v| dns(&mut s.dns, v)),
    Key("no-kill-switch", Owner::Connect, |s, v| switch(&mut s.no_kill_switch, v)),
    Key("lockdown", Owner::Connect, |s, v| switch(&mut s.lockdown, v)),
    Key("interface", Owner::Both, |s, v| one(&mut s.interface, v, value::interface)),
    Key("port", Owner::Both, |s, v| one(&mut s.port, v, value::port)),
    Key("backend", Owner::Both, |s, v| one(&mut s.backend, v, value::backend)),
    Key("stun-server", Owner::Both, |s, v| many(&mut s.stun_server, v, value::host_port)),
    Key("no-stun", Owner::Both, |s, v| switch(&mut s.no_stun, v)),
    Key("mtu", Owner::Both, |s, v| one(&mut s.mtu, v, value::mtu)),
    Key("monitor-nat", Owner::Both, |s, v| switch(&mut s.monitor_nat, v)),
    Key("keeper-interval", Owner::Both, |s, v| one(&mut s.keeper_interval, v, value::duration)),
];

/// A string or a whole number.
fn one<T>(slot: &mut Option<T>, value: &Value, parse: fn(&str) -> Result<T, String>) -> Outcome {
    *slot = Some(match value {
        Value::String(text) => parse(text)?,
        Value::Integer(number) => parse(&number.to_string())?,
        // no parser takes the empty text, and its answer says what is expected
        _ => parse("")?,
    });
    Ok(())
}

/// An array of strings, or one string.
fn many<T>(slot: &mut Option<Vec<T>>, value: &Value, parse: fn(&str) -> Result<T, String>) -> Outcome {
    let array_expected = || "expected a string or an array of strings".to_owned();
    let parse_item = |item: &Value| parse(item.as_str().ok_or_else(array_expected)?);
    *slot = Some(match value {
        Value::Array(items) => items.iter().map(parse_item).collect::<Result<_, _>>()?,
        item => vec![parse_item(item)?],
    });
    Ok(())
}

/// `"exit"`, `"system"`, `"none"`, or servers as one string or an array of strings.
fn dns(slot: &mut Option<Dns>, value: &Value) -> Outcome {
    let text = match value {
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        item => item.as_str().unwrap_or_default().to_owned(),
    };
    *slot = Some(value::dns(&text)?);
    Ok(())
}

/// `true` or `false`.
fn switch(slot: &mut Option<bool>, value: &Value) -> Outcome {
    *slot = Some(value.as_bool().ok_or_else(|| "expected true or false".to_owned())?);
    Ok(())
}

/// The configuration file's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigFile {
    flat: Settings,
    exit: Settings,
    connect: Settings,
}

impl ConfigFile {
    /// Reads the file that was named, which must exist, or the default one, which may not.
    pub fn read(named: Option<&Path>, default: &Path) -> Result<Self, ConfigError> {
        let file = named.unwrap_or(default);
        match read_bounded(file) {
            Ok(text) => Self::parse(file, &text),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { file: file.to_owned(), source }),
        }
    }

    /// Reads the text of `file`.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            file: file.to_owned(),
            line: text[..error.span().map_or(0, |span| span.start.min(text.len()))].matches('\n').count() + 1,
            message: error.message().replace('\n', ", "),
        })?;
        let mut config = ConfigFile::default();
        for (key, value) in &table {
            match (key.as_str(), value) {
                ("exit", Value::Table(table)) => config.exit = section(file, "exit", Owner::Exit, table)?,
                ("connect", Value::Table(table)) => config.connect = section(file, "connect", Owner::Connect, table)?,
                ("exit" | "connect", _) => {
                    return Err(ConfigError::Value {
                        file: file.to_owned(),
                        key: key.clone(),
                        expected: format!("expected a table [{key}]"),
                        found: shown(value),
                    });
                }
                _ => set(file, None, &mut config.flat, key, value)?,
            }
        }
        Ok(config)
    }

    /// What it says to `exit`.
    pub fn for_exit(self) -> Settings {
        self.exit.over(self.flat)
    }

    /// What it says to `connect`.
    pub fn for_connect(self) -> Settings {
        self.connect.over(self.flat)
    }
}

/// A whole file as text; one that is too large is none of ours.
fn read_bounded(file: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file)?.take(MAX_SIZE as u64 + 1).read_to_string(&mut text)?;
    if text.len() > MAX_SIZE {
        let error = format!("it has more than {MAX_SIZE} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, error));
    }
    Ok(text)
}

/// A command's table.
fn section(file: &Path, name: &'static str, owner: Owner, table: &Table) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    for (key, value) in table {
        set(file, Some((name, owner)), &mut settings, key, value)?;
    }
    Ok(settings)
}

/// One key.
fn set(
    file: &Path,
    section: Option<(&'static str, Owner)>,
    settings: &mut Settings,
    key: &str,
    value: &Value,
) -> Result<(), ConfigError> {
    let full = section.map_or_else(|| key.to_owned(), |(table, _)| format!("{table}.{key}"));
    let Some(Key(name, owner, read)) = KEYS.iter().find(|known| known.0 == key) else {
        return Err(ConfigError::UnknownKey { file: file.to_owned(), key: full, nearest: nearest(key) });
    };
    if let Some((table, expected)) = section
        && *owner != Owner::Both
        && *owner != expected
    {
        let owner = if *owner == Owner::Exit { "exit" } else { "connect" };
        return Err(ConfigError::WrongTable { file: file.to_owned(), key: name, table, owner });
    }
    read(settings, value).map_err(|expected| ConfigError::Value {
        file: file.to_owned(),
        key: full,
        expected,
        found: shown(value),
    })
}

/// A wrong value, for a message.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(yes) => yes.to_string(),
        Value::Datetime(time) => time.to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Table(_) => "a table".to_owned(),
    }
}

/// The known key that is most like this one, if any is like it: 0.7 lets through what a slip of the finger makes.
fn nearest(key: &str) -> Option<&'static str> {
    let wanted = key.to_lowercase().replace('_', "-");
    KEYS.iter()
        .map(|known| (strsim::jaro(known.0, &wanted), known.0))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Accept, BackendChoice};
    use crate::error::Failure;
    use std::time::Duration;

    fn parse(text: &str) -> Result<ConfigFile, ConfigError> {
        ConfigFile::parse(Path::new("c.toml"), text)
    }

    /// `error` and `hint` as printed.
    fn refusal(text: &str) -> String {
        Failure::from(parse(text).unwrap_err()).to_string()
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            accept = "any"
            allow-lan = true
            allow-peers = true
            endpoint = ["vpn.example.org:51820", "[2001:db8::1]:51820"]
            no-portmap = true
            timeout = 30
            retry = 3
            allowed-ips = ["0.0.0.0/0"]
            exclude = "192.0.2.0/24"
            no-lan = true
            dns = ["192.0.2.53", "2001:db8::53"]
            no-kill-switch = true
            lockdown = false
            interface = "vpn1"
            port = 51820
            backend = "userspace=wireguard-go"
            stun-server = ["stun.example.org:3478"]
            no-stun = true
            mtu = 1400
            monitor-nat = true
            keeper-interval = "30s"
        "#;
        let settings = parse(text).unwrap().flat;
        let expected = Settings {
            accept: Some(Accept::Any),
            allow_lan: Some(true),
            allow_peers: Some(true),
            endpoint: Some(vec!["vpn.example.org:51820".into(), "[2001:db8::1]:51820".into()]),
            no_portmap: Some(true),
            timeout: Some(Duration::from_secs(30)),
            retry: Some(3),
            allowed_ips: Some(vec!["0.0.0.0/0".parse().unwrap()]),
            exclude: Some(vec!["192.0.2.0/24".parse().unwrap()]),
            no_lan: Some(true),
            dns: Some(Dns::Servers(vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()])),
            no_kill_switch: Some(true),
            lockdown: Some(false),
            interface: Some("vpn1".into()),
            port: Some(51820),
            backend: Some(BackendChoice::Userspace(Some("wireguard-go".into()))),
            stun_server: Some(vec!["stun.example.org:3478".into()]),
            no_stun: Some(true),
            mtu: Some(1400),
            monitor_nat: Some(true),
            keeper_interval: Some(Duration::from_secs(30)),
        };
        assert_eq!(settings, expected);
        assert_eq!(text.matches(" = ").count(), KEYS.len(), "a key is missing from this test");
    }

    #[test]
    fn a_commands_table_wins_for_that_command() {
        let config = parse("port = 1\nmtu = 1300\n[exit]\nport = 2\n[connect]\ntimeout = '5s'").unwrap();
        assert_eq!((config.clone().for_exit().port, config.clone().for_exit().mtu), (Some(2), Some(1300)));
        assert_eq!(config.clone().for_connect().port, Some(1));
        assert_eq!(config.for_connect().timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn unknown_keys_are_named_with_the_nearest_known_one() {
        assert_eq!(
            refusal("allow_lan = true"),
            "error: configuration file c.toml: unknown key `allow_lan`\nhint: did you mean `allow-lan`?"
        );
        assert!(refusal("stun-servers = []").ends_with("did you mean `stun-server`?"));
        assert!(refusal("[exit]\nacept = 'any'").contains("unknown key `exit.acept`\nhint: did you mean `accept`?"));
        assert!(refusal("colour = 'red'").contains("--help"));
        assert!(refusal("[server]\nport = 1").contains("unknown key `server`"));
    }

    #[test]
    fn wrong_values_say_what_is_expected() {
        assert!(refusal("port = 0").contains("`port`: a port is a number from 1 to 65535, not 0"));
        assert!(refusal("port = true").contains("a port is a number from 1 to 65535, not true"));
        assert!(refusal("mtu = 576").contains("1280 to 65535, not 576"));
        assert!(refusal("allow-lan = 'yes'").contains("expected true or false, not \"yes\""));
        assert!(refusal("exclude = ['10.0.0.0/40']").contains("at most 32"));
        assert!(refusal("exclude = [10]").contains("array of strings"));
        assert!(refusal("exit = true").contains("expected a table [exit]"));
        assert!(refusal("[exit]\ntimeout = 3").contains("hint: move `timeout` to [connect] or above every table"));
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_line() {
        assert!(refusal("port = 1\nport 2\n").starts_with("error: configuration file c.toml, line 2: "));
        assert!(refusal("port = 1\nport = 2\n").contains("line 2"));
    }

    #[test]
    fn only_a_named_file_must_exist() {
        let missing = std::env::temp_dir().join("peervpn-no-such-file.toml");
        let error = ConfigFile::read(Some(&missing), &missing).unwrap_err();
        assert!(matches!(error, ConfigError::Read { .. }));
        assert_eq!(Failure::from(error).status, Status::Usage);
        let denied = ConfigError::Read { file: missing, source: std::io::ErrorKind::PermissionDenied.into() };
        assert_eq!(Failure::from(denied).status, Status::Failed);
    }
}
