//! The command line as it is parsed. Wrong usage: the parser's message, its tips as `hint:` lines like every other error's.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Args as _, CommandFactory as _, FromArgMatches as _, Subcommand as _};
use peervpn_platform::types::System;

use super::{Cli, Command, args::GlobalArgs, terminal};
use crate::error::{Status, Words};

/// What `args` say, the program's name first.
pub(super) fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    // most of a short command's time is its start, and most of that was to build what it does not ask for
    match asked(args).try_get_matches_from(args).and_then(|found| Cli::from_arg_matches(&found)) {
        // whatever this can't make sense of, or help is wanted with, the whole command line answers
        Err(error) if error.kind() != ErrorKind::DisplayVersion => {
            command(Words::HERE).try_get_matches_from(args).and_then(|found| Cli::from_arg_matches(&found))
        }
        parsed => parsed,
    }
}

/// The command line with no other command than the first one that these words name.
fn asked(args: &[OsString]) -> clap::Command {
    let all = Command::augment_subcommands(plain());
    let named = args.iter().skip(1).find_map(|word| all.find_subcommand(word)).cloned();
    let root = GlobalArgs::augment_args(plain());
    match named {
        Some(command) => root.subcommand_required(true).subcommand(command),
        None => root.version(env!("CARGO_PKG_VERSION")),
    }
}

fn plain() -> clap::Command {
    clap::Command::new(env!("CARGO_PKG_NAME"))
}

/// The command line, its help in a system's words.
pub(super) fn command(words: Words) -> clap::Command {
    fn translate(command: clap::Command, words: Words) -> clap::Command {
        let said = command.get_after_help().map(|text| words.help(&text.to_string()));
        let command = match said {
            Some(text) => command.after_help(text),
            None => command,
        };
        command.mut_subcommands(|sub| translate(sub, words))
    }
    // that is how it was written
    if words == Words(System::Linux) { Cli::command() } else { translate(whole(), words) }
}

/// The command line with the options of every command, not only of the one that is asked for.
fn whole() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// Prints what the parser says of `args`: help and version on stdout, wrong usage on stderr with exit status 2.
pub(super) fn report(error: &clap::Error, args: &[OsString]) -> u8 {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            terminal::to_stdout(|out| write!(out, "{text}"));
            Status::Done as u8
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            terminal::to_stderr(|err| write!(err, "{text}"));
            Status::Usage as u8
        }
        _ => {
            terminal::to_stderr(|err| write!(err, "{}", with_hints(&text, args)));
            Status::Usage as u8
        }
    }
}

/// The parser's message with its tips, or failing those the way to the help, as `hint:` lines at its end.
fn with_hints(text: &str, args: &[OsString]) -> String {
    let mut message = String::new();
    let mut usage = String::new();
    let mut hints = String::new();
    for line in text.lines() {
        if let Some(tip) = line.trim_start().strip_prefix("tip: ") {
            hints.push_str(&format!("hint: {tip}\n"));
        } else if let Some(synopsis) = line.strip_prefix("Usage: ") {
            usage = format!("usage: {synopsis}\n");
        } else if !line.starts_with("For more information") && !line.trim().is_empty() {
            message.push_str(&format!("{line}\n"));
        }
    }
    if hints.is_empty() {
        hints = format!("hint: {} --help\n", command_words(args));
    }
    message + &usage + &hints
}

/// The command that `args` name, without options before and between: `peervpn peers accept`.
fn command_words(args: &[OsString]) -> String {
    let mut words = vec!["peervpn".to_owned()];
    let mut command = whole();
    let mut args = args.iter().skip(1);
    while let Some(word) = args.next() {
        let text = word.to_string_lossy();
        if text.starts_with('-') {
            // its value may follow as a word of its own
            let long = text.strip_prefix("--");
            let option = command.get_arguments().find(|option| long.is_some() && option.get_long() == long);
            if option.is_some_and(|option| option.get_action().takes_values() && !option.is_require_equals_set()) {
                args.next();
            }
            continue;
        }
        match command.find_subcommand(word).filter(|sub| !sub.is_hide_set()).cloned() {
            Some(sub) => command = sub,
            None => break,
        }
        words.push(text.into_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn refusal(line: &str) -> String {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        with_hints(&Cli::try_parse_from(&args).unwrap_err().to_string(), &args)
    }

    #[test]
    fn the_parser_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_tip_becomes_the_hint() {
        let text = refusal("peervpn exit --acept any");
        assert!(text.starts_with("error: unexpected argument '--acept' found\n"), "{text}");
        assert!(text.ends_with("hint: a similar argument exists: '--accept'\n"), "{text}");
    }

    #[test]
    fn without_a_tip_the_hint_is_the_help() {
        let text = refusal("peervpn exit --port 0");
        assert!(text.contains("a port is a number from 1 to 65535"), "{text}");
        assert!(text.ends_with("hint: peervpn exit --help\n"), "{text}");
        let text = refusal("peervpn connect");
        assert!(text.contains("<PUBKEY@ENDPOINT>"), "{text}");
        assert!(text.ends_with("hint: peervpn connect --help\n"), "{text}");
    }

    #[test]
    fn the_hint_knows_the_command_behind_options() {
        for line in
            ["--state-dir exit peers revoke", "-v --json peers --color=never revoke", "peers --interface list revoke"]
        {
            let text = refusal(&format!("peervpn {line}"));
            assert!(text.ends_with("hint: peervpn peers revoke --help\n"), "{line}: {text}");
        }
    }

    /// What stands below the options, of every command.
    fn examples(words: Words) -> String {
        let mut root = command(words);
        root.build();
        let (mut waiting, mut all) = (vec![root], String::new());
        while let Some(mut command) = waiting.pop() {
            waiting.extend(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned());
            let help = command.render_long_help().to_string();
            let (_, tail) =
                help.split_once("Examples:\n").unwrap_or_else(|| panic!("{}: no examples", command.get_name()));
            assert!(tail.contains("peervpn") && !tail.contains("Options:"), "{help}");
            let written = command.get_after_help().expect("it was rendered").to_string();
            let examples = written.lines().filter(|line| line.starts_with("  "));
            let longest = examples.max_by_key(|line| line.chars().count()).expect("examples");
            assert!(longest.chars().count() <= 100, "{}: wraps: {longest}", command.get_name());
            all += &format!("{}\n{tail}\n", command.get_bin_name().unwrap_or_default());
        }
        all
    }

    #[test]
    fn the_words_of_a_system_change_nothing_in_the_parser() {
        for line in
            ["peervpn peers accept 1-2 --json", "peervpn -v exit --accept ask", "peervpn status --jsn", "peervpn peers"]
        {
            let [here, there] = [System::Linux, System::Windows].map(|system| {
                let found = command(Words(system)).try_get_matches_from(line.split(' '));
                found.map(|found| format!("{found:?}")).map_err(|error| (error.kind(), error.to_string()))
            });
            match (here, there) {
                (Err((kind, text)), Err(other)) if kind != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                    assert_eq!((kind, text), other, "{line}");
                }
                (here, there) => assert_eq!(here.map_err(|e| e.0), there.map_err(|e| e.0), "{line}"),
            }
        }
    }

    #[test]
    fn every_help_ends_with_examples_in_the_words_of_its_system() {
        let linux = examples(Words(System::Linux));
        assert!(linux.contains("sudo peervpn exit "), "{linux}");
        assert_eq!(linux, examples(Words(System::Macos)));
        let windows = examples(Words(System::Windows));
        for word in ["sudo", "root", "systemd", "/etc", "'"] {
            let line = windows.lines().find(|line| line.contains(word) && !line.contains("'s "));
            assert_eq!(line, None, "{word}");
        }
        assert_eq!(
            linux.replace("sudo ", "").split_whitespace().collect::<Vec<_>>(),
            windows.split_whitespace().collect::<Vec<_>>()
        );
    }
}
