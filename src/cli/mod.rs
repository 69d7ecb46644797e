//! The command line.

/// Runs the program.
pub fn main(args: impl Iterator<Item = std::ffi::OsString>) -> std::process::ExitCode {
    let _ = args;
    std::process::ExitCode::SUCCESS
}
