//! How a command ends badly, and with which exit code.

use std::process::ExitCode;

/// Why a command did not do its work.
#[derive(Debug)]
pub enum Failure {
    /// The command line or what it names was wrong: exit code 2.
    Input(anyhow::Error),
    /// The work itself failed: exit code 1.
    Work(anyhow::Error),
}

/// What every command returns.
pub type Outcome = Result<(), Failure>;

impl Failure {
    /// A complaint about the command line or a file that it names.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input(anyhow::Error::msg(message.into()))
    }

    /// 2 for wrong input, 1 for failed work.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Input(_) => ExitCode::from(2),
            Self::Work(_) => ExitCode::from(1),
        }
    }

    /// The whole chain of causes on one line.
    pub fn message(&self) -> String {
        match self {
            Self::Input(error) | Self::Work(error) => format!("{error:#}"),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Work(error.into())
    }
}

/// Marks an error as the caller's fault.
pub trait OrInput<T> {
    /// The error becomes [`Failure::Input`].
    fn or_input(self) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrInput<T> for Result<T, E> {
    fn or_input(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::Input(error.into()))
    }
}
