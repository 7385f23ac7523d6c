//! Signed notes (C2SP signed-note) with Ed25519 signatures and witnesses' cosignatures (C2SP tlog-cosignature, version 1).

use std::fmt;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha2::{Digest as _, Sha256};

use crate::error::{ErrorKind, TrustError};

const NOTE_BYTES_MAX: usize = 64 << 10;
const SIGNATURES_MAX: usize = 64;

/// What a signature of a note says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureType {
    /// The log signed the text (type 0x01).
    Log,
    /// A witness saw the text at a time, consistent with all that it saw before (type 0x04).
    Witness,
}

impl SignatureType {
    fn byte(self) -> u8 {
        match self {
            Self::Log => 1,
            Self::Witness => 4,
        }
    }
}

/// A public key with its name, written `NAME+ID+KEY`.
#[derive(Clone, PartialEq, Eq)]
pub struct NoteKey {
    name: String,
    id: u32,
    kind: SignatureType,
    public: [u8; 32],
}

impl NoteKey {
    /// A key by its parts.
    pub fn new(name: &str, kind: SignatureType, public: [u8; 32]) -> Result<Self, TrustError> {
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+') {
            let text = format!("`{name}` does not name a key; expected a word without spaces and `+`");
            return Err(TrustError::new(ErrorKind::Invalid, text));
        }
        let hash = Sha256::new().chain_update(name).chain_update([b'\n', kind.byte()]).chain_update(public).finalize();
        let id = hash.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        Ok(Self { name: name.to_owned(), id, kind, public })
    }

    /// Reads `NAME+ID+KEY`.
    pub fn parse(text: &str) -> Result<Self, TrustError> {
        let invalid = |why: &str| {
            let text = format!("`{text}` is no verifier key: {why}; expected NAME+ID+KEY as signed notes have it");
            TrustError::new(ErrorKind::Invalid, text)
        };
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(invalid("it has fewer than three parts"));
        };
        let bytes = BASE64_STANDARD.decode(key).map_err(|_| invalid("its key is not base64"))?;
        let (kind, public) = match bytes.split_first() {
            Some((1, public)) => (SignatureType::Log, public),
            Some((4, public)) => (SignatureType::Witness, public),
            _ => return Err(invalid("its algorithm is not Ed25519")),
        };
        let public = public.try_into().map_err(|_| invalid("its key has not 32 bytes"))?;
        let found = Self::new(name, kind, public)?;
        match u32::from_str_radix(id, 16) {
            Ok(id) if id == found.id => Ok(found),
            _ => Err(invalid(&format!("the id of its key is {:08x}", found.id))),
        }
    }

    /// Name of the signer.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its signatures say.
    pub fn kind(&self) -> SignatureType {
        self.kind
    }

    /// The signature line of what `signer` made of `text`; `time_s` since 1970 is signed by witnesses only.
    pub fn sign(
        &self,
        text: &str,
        time_s: u64,
        signer: impl FnOnce(&[u8]) -> Result<Vec<u8>, TrustError>,
    ) -> Result<String, TrustError> {
        let mut bytes = self.id.to_be_bytes().to_vec();
        if self.kind == SignatureType::Witness {
            bytes.extend(time_s.to_be_bytes());
        }
        bytes.extend(signer(self.message(text, time_s).as_bytes())?);
        Ok(format!("— {} {}\n", self.name, BASE64_STANDARD.encode(bytes)))
    }

    fn message(&self, text: &str, time_s: u64) -> String {
        match self.kind {
            SignatureType::Log => text.to_owned(),
            SignatureType::Witness => format!("cosignature/v1\ntime {time_s}\n{text}"),
        }
    }

    /// The time of the signature (0 for a log's), where it holds.
    fn check(&self, text: &str, signature: &[u8]) -> Option<u64> {
        let (time_s, signature) = match self.kind {
            SignatureType::Log => (0, signature),
            SignatureType::Witness => {
                let (time, rest) = signature.split_first_chunk()?;
                (u64::from_be_bytes(*time), rest)
            }
        };
        let key = UnparsedPublicKey::new(&ED25519, self.public);
        key.verify(self.message(text, time_s).as_bytes(), signature).ok().map(|()| time_s)
    }
}

impl fmt::Display for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [[self.kind.byte()].as_slice(), &self.public].concat();
        write!(f, "{}+{:08x}+{}", self.name, self.id, BASE64_STANDARD.encode(key))
    }
}

impl fmt::Debug for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text and its signatures, none of them verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    name: String,
    id: u32,
    bytes: Vec<u8>,
}

impl Note {
    /// Reads a note of at most 64 KiB and 64 signatures.
    pub fn parse(note: &str) -> Result<Self, TrustError> {
        let invalid = |why: &str| TrustError::new(ErrorKind::Invalid, format!("not a signed note: {why}"));
        if note.len() > NOTE_BYTES_MAX {
            return Err(invalid(&format!("{} bytes; expected at most {NOTE_BYTES_MAX}", note.len())));
        }
        if note.contains(|c: char| c < ' ' && c != '\n') {
            return Err(invalid("it has control characters"));
        }
        let (text, lines) = note.rsplit_once("\n\n").ok_or_else(|| invalid("no empty line before signatures"))?;
        let signatures: Vec<_> = lines
            .split_terminator('\n')
            .map(|line| Signature::parse(line).ok_or_else(|| invalid(&format!("`{line}` is no signature"))))
            .collect::<Result<_, _>>()?;
        if signatures.is_empty() || signatures.len() > SIGNATURES_MAX || !lines.ends_with('\n') {
            return Err(invalid(&format!("expected 1 to {SIGNATURES_MAX} whole lines of signatures")));
        }
        Ok(Self { text: format!("{text}\n"), signatures })
    }

    /// The text, with its last line's end.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The time of `key`'s signature (0 for a log's); an error where it did not sign, or something else.
    pub fn verify(&self, key: &NoteKey) -> Result<u64, TrustError> {
        let unverified = |text: String| Err(TrustError::new(ErrorKind::Unverified, text));
        let theirs = self.signatures.iter().filter(|s| s.name == key.name && s.id == key.id);
        let times: Vec<_> = theirs.map(|signature| key.check(&self.text, &signature.bytes)).collect();
        match times.into_iter().reduce(|a, b| a.zip(b).map(|(a, b)| a.max(b))) {
            None => unverified(format!("not signed by `{}` (key {:08x})", key.name, key.id)),
            Some(None) => unverified(format!("the signature of `{}` does not fit the text", key.name)),
            Some(Some(time_s)) => Ok(time_s),
        }
    }
}

impl Signature {
    fn parse(line: &str) -> Option<Self> {
        let (name, signature) = line.strip_prefix("— ")?.split_once(' ')?;
        let decoded = BASE64_STANDARD.decode(signature).ok()?;
        let (id, bytes) = decoded.split_first_chunk()?;
        Some(Self { name: name.to_owned(), id: u32::from_be_bytes(*id), bytes: bytes.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    use super::*;

    // The example of the Go package `golang.org/x/mod/sumdb/note`, which the specification comes from.
    const VKEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const NOTE: &str = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n\
        — PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    // The example of C2SP tlog-cosignature.
    const WITNESSED: &str = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
        — example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\
        — witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";

    #[test]
    fn a_note_of_another_implementation_is_verified() {
        let key = NoteKey::parse(VKEY).unwrap();
        assert_eq!(key.to_string(), VKEY);
        let note = Note::parse(NOTE).unwrap();
        assert_eq!(note.verify(&key).unwrap(), 0);
        let changed = Note::parse(&NOTE.replace("your problem,", "my problem,")).unwrap();
        assert!(changed.verify(&key).unwrap_err().to_string().contains("does not fit"));
        let other = NoteKey::new("PeterNeumann", SignatureType::Log, [1; 32]).unwrap();
        assert!(note.verify(&other).unwrap_err().to_string().contains("not signed by"));
    }

    #[test]
    fn the_example_of_the_specification_is_read() {
        let note = Note::parse(WITNESSED).unwrap();
        assert_eq!(note.signatures.len(), 2);
        assert_eq!(note.signatures[1].bytes.len(), 8 + 64);
        assert!(note.text().ends_with("q2I=\n"));
    }

    #[test]
    fn what_is_signed_is_verified_with_its_time() {
        let pair = Ed25519KeyPair::generate().unwrap();
        let public = pair.public_key().as_ref().try_into().unwrap();
        for (kind, time_s) in [(SignatureType::Log, 0), (SignatureType::Witness, 1_679_315_147)] {
            let key = NoteKey::new("example.com/w", kind, public).unwrap();
            let text = "example.com/log\n1\nAAAA\n";
            let line = key.sign(text, time_s, |message| Ok(pair.sign(message).as_ref().to_vec())).unwrap();
            let note = Note::parse(&format!("{text}\n{line}")).unwrap();
            assert_eq!(note.verify(&NoteKey::parse(&key.to_string()).unwrap()).unwrap(), time_s);
        }
    }

    #[test]
    fn malformed_notes_and_keys_are_refused() {
        for note in
            ["", "a", "a\n\n", "a\n\n— b c\n", "a\n\n— b AAAAAA==", "a\n\nb AAAAAA==\n", "a\t\n\n— b AAAAAA==\n"]
        {
            assert!(Note::parse(note).is_err(), "{note:?}");
        }
        assert!(Note::parse(&format!("a\n\n{}", "— b AAAAAA==\n".repeat(65))).is_err());
        for key in ["", "a+b", "a+00000000+AAAA", "a b+c74f20a3+ARpc", &VKEY.replace("c74f", "c74e"), &VKEY[..40]] {
            assert!(NoteKey::parse(key).is_err(), "{key}");
        }
    }
}
