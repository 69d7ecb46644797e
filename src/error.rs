//! Errors that a person can meet: what failed, what is left on the host, which command or setting mends it.

mod words;

use std::fmt;

pub use words::Words;

/// Exit status of the program (cli.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Done = 0,
    /// Expected failure.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// The host could not be fully put back.
    NotRestored = 3,
}

/// An error whose cause has a known remedy. Every module's error enum that can reach a person implements it.
pub trait Hint: std::error::Error {
    /// The command or setting that mends it, chosen from the real cause.
    fn hint(&self) -> Option<String>;
    /// Exit status.
    fn status(&self) -> Status {
        Status::Failed
    }
}

/// A failure on its way to the person: printed as `error: …`, `host: …`, `hint: …`.
#[derive(Debug)]
pub struct Failure {
    /// What failed, operands inside, the causes appended.
    pub message: String,
    /// What is left on the host (`unchanged`, `restored`, …); `None` for commands that do not touch it.
    pub host: Option<String>,
    /// What mends it.
    pub hint: Option<String>,
    /// Exit status.
    pub status: Status,
}

impl Failure {
    /// A failure with a message and a hint.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure { message: message.into(), host: None, hint: Some(hint.into()), status: Status::Failed }
    }

    /// A usage error.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure { status: Status::Usage, ..Failure::new(message, hint) }
    }

    /// States what is left on the host.
    pub fn host(mut self, left: impl Into<String>) -> Self {
        self.host = Some(left.into());
        self
    }
}

impl<E: Hint> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure { message: chain(&error), host: None, hint: error.hint(), status: error.status() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(host) = &self.host {
            write!(f, "\nhost: {host}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// An error with its causes, `: `-separated, leaving out a cause that the message before it already ends with.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl Hint for peervpn_platform::Error {
    fn hint(&self) -> Option<String> {
        use peervpn_platform::Error;
        match self {
            Error::Unsupported { instead, .. } => Some((*instead).to_owned()),
            Error::System { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Some(Words::HERE.elevate().to_owned())
            }
            _ => Some("peervpn doctor tells what this system lacks".to_owned()),
        }
    }
}
