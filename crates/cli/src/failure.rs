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

/// The work was done, and what was printed of it says what is wrong.
#[derive(Debug)]
struct Told(String);

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What every command returns.
pub type Outcome = Result<(), Failure>;

impl Failure {
    /// A complaint about the command line or a file that it names.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input(anyhow::Error::msg(message.into()))
    }

    /// A complaint about what was printed already: exit code 1, and with `--json` no second document.
    pub fn told(message: impl Into<String>) -> Self {
        Self::Work(anyhow::Error::msg(Told(message.into())))
    }

    /// True where `--json` has said it.
    pub fn is_told(&self) -> bool {
        matches!(self, Self::Work(error) if error.is::<Told>())
    }

    /// 2 for wrong input, 1 for failed work.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Input(_) => ExitCode::from(2),
            Self::Work(_) => ExitCode::from(1),
        }
    }

    /// The whole chain of causes on one line. An error that says its cause itself is not followed by it again.
    pub fn message(&self) -> String {
        let (Self::Input(error) | Self::Work(error)) = self;
        let mut text = String::new();
        for cause in error.chain().map(ToString::to_string) {
            if text.is_empty() {
                text = cause;
            } else if !text.ends_with(&cause) {
                text = text + ": " + &cause;
            }
        }
        text
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

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[derive(Debug)]
    struct SaysItsCause {
        source: std::io::Error,
    }

    impl std::fmt::Display for SaysItsCause {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "cannot listen: {}", self.source)
        }
    }

    impl std::error::Error for SaysItsCause {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.source)
        }
    }

    #[test]
    fn each_cause_is_said_once() {
        let source = || std::io::Error::other("address in use");
        let table: [(anyhow::Error, &str); 3] = [
            (SaysItsCause { source: source() }.into(), "cannot listen: address in use"),
            (
                anyhow::Error::from(SaysItsCause { source: source() }).context("no server"),
                "no server: cannot listen: address in use",
            ),
            (anyhow!("in").context("b").context("a"), "a: b: in"),
        ];
        for (error, expected) in table {
            assert_eq!(Failure::Work(error).message(), expected);
        }
    }
}
