//! Checkpoints (C2SP tlog-checkpoint): a log's origin, size and hash, signed.

use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::{
    audit::{
        merkle::Head,
        note::{Note, NoteKey},
    },
    error::{ErrorKind, TrustError},
};

/// What a log says of itself at one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log.
    pub origin: String,
    /// Size and hash.
    pub head: Head,
}

impl Checkpoint {
    /// The text that is signed.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.head.size, BASE64_STANDARD.encode(self.head.root))
    }

    /// Reads the text of a note; lines after the third are ignored as the specification says.
    pub fn parse(text: &str) -> Result<Self, TrustError> {
        let invalid = || {
            let text = "not a checkpoint; expected lines of origin, size and base64 of a SHA-256 hash";
            TrustError::new(ErrorKind::Invalid, text)
        };
        let mut lines = text.lines();
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(invalid());
        };
        let number: u64 = size.parse().map_err(|_| invalid())?;
        let root = BASE64_STANDARD.decode(root).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(invalid)?;
        if origin.is_empty() || number.to_string() != size || lines.any(str::is_empty) {
            return Err(invalid());
        }
        Ok(Self { origin: origin.to_owned(), head: Head { size: number, root } })
    }

    /// Reads a note that the log with `key` signed.
    pub fn verify(note: &str, key: &NoteKey) -> Result<Self, TrustError> {
        let note = Note::parse(note)?;
        note.verify(key)?;
        let checkpoint = Self::parse(note.text())?;
        if checkpoint.origin != key.name() {
            let text = format!("a checkpoint of `{}`; expected of `{}`", checkpoint.origin, key.name());
            return Err(TrustError::new(ErrorKind::Unverified, text));
        }
        Ok(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_back_and_malformed_ones_refused() {
        let checkpoint = Checkpoint { origin: "a.example/log".to_owned(), head: Head { size: 12, root: [9; 32] } };
        assert_eq!(Checkpoint::parse(&checkpoint.text()).unwrap(), checkpoint);
        let text = checkpoint.text();
        for bad in [
            "",
            "a\n1\n",
            "a\n01\nCQkJ\n",
            &text.replace("12", "+12"),
            &text.replace("12", "-1"),
            &text.replace("CQ", "C"),
        ] {
            assert!(Checkpoint::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Checkpoint::parse(&format!("{text}an extension\n")).is_ok());
    }
}
