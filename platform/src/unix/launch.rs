//! The other side of [`super::process::spawn_held`]: what the started program does before it becomes a device.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Waits for the starter's go, one byte on standard input; `false` if it died before.
pub fn wait_release() -> bool {
    std::io::stdin().read(&mut [0]).is_ok_and(|n| n == 1)
}

/// Becomes another program, with these variables added to the environment. Returns only if that fails.
pub fn exec(program: &Path, args: &[&str], envs: &[(&str, &str)]) -> std::io::Error {
    Command::new(program).args(args).envs(envs.iter().map(|(k, v)| (OsStr::new(k), OsStr::new(v)))).exec()
}
