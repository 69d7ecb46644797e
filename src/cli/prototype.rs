//! The prototype's spellings: `--exit`, `--connect=TARGET`, `--info`, … with options in any order.

use std::ffi::OsString;

/// The prototype's option, and the command it became.
const COMMANDS: &[(&str, &str)] = &[
    ("--exit", "exit"),
    ("--connect", "connect"),
    ("--info", "info"),
    ("--nattest", "nattest"),
    ("--diagnostics", "doctor"),
];

/// Rewrites the prototype's spelling of a command line, program name first; anything else stays as it is. The first
/// option that names a command does; a second one is left for the parser to refuse. (`--debug` is an alias of `-v`.)
pub(super) fn translate(mut args: Vec<OsString>) -> Vec<OsString> {
    // a first word that is no option is a command of today's spelling
    if args.get(1).is_none_or(|first| !first.to_string_lossy().starts_with('-')) {
        return args;
    }
    let options = args.iter().skip(1).take_while(|arg| *arg != "--");
    let found = options.enumerate().find_map(|(index, arg)| {
        let text = arg.to_str()?;
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let (_, command) = COMMANDS.iter().find(|(option, _)| *option == name)?;
        Some((index + 1, *command, value.map(OsString::from)))
    });
    if let Some((index, command, value)) = found {
        args.remove(index);
        args.insert(1, command.into());
        args.splice(index + 1..index + 1, value);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> String {
        let args = translate(line.split(' ').map(OsString::from).collect());
        args.join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn every_spelling_of_the_prototype() {
        for (old, new) in [
            ("peervpn --exit", "peervpn exit"),
            ("peervpn --connect=KEY@h:1", "peervpn connect KEY@h:1"),
            ("peervpn --connect KEY@h:1", "peervpn connect KEY@h:1"),
            ("peervpn --timeout=5 --retry=2 --connect=KEY@h:1", "peervpn connect --timeout=5 --retry=2 KEY@h:1"),
            ("peervpn --connect KEY@h:1 --timeout=5", "peervpn connect KEY@h:1 --timeout=5"),
            ("peervpn --debug --exit --json", "peervpn exit --debug --json"),
            ("peervpn --info --json", "peervpn info --json"),
            ("peervpn --nattest", "peervpn nattest"),
            ("peervpn --diagnostics --json", "peervpn doctor --json"),
        ] {
            assert_eq!(translated(old), new);
        }
    }

    #[test]
    fn the_rest_stays() {
        for line in [
            "peervpn",
            "peervpn exit --accept any",
            "peervpn --json status",
            "peervpn connect --info",
            "peervpn -- --exit",
        ] {
            assert_eq!(translated(line), line);
        }
    }

    #[test]
    fn a_key_with_equals_signs_stays_whole() {
        assert_eq!(translated("peervpn --connect=abc=@h:1"), "peervpn connect abc=@h:1");
    }
}
