//! Sessions with a token: opened as they are needed, at most so many, logged in anew after the token was away.

use std::{fmt, time::Duration};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    session::{Session, UserType},
    slot::Slot,
    types::RawAuthPin,
};
use parking_lot::{Condvar, Mutex};

use super::Pkcs11Settings;
use crate::{ErrorKind, TrustError};

/// Longest wait for a session while others use them all.
const BUSY_MAX: Duration = Duration::from_secs(10);

/// Why work with a token did not succeed.
pub enum Failure {
    /// The token says no.
    Token(Error),
    /// The token was asked and answered; this is the result.
    Done(TrustError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Token(error)
    }
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        Self::Done(error)
    }
}

/// Sessions with one token.
pub struct Sessions {
    settings: Pkcs11Settings,
    module: Pkcs11,
    pool: Mutex<Pool>,
    returned: Condvar,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Session>,
    open: usize,
    /// The token refused the PIN. A few more times would lock it for good, so that it is not asked again.
    pin_refused: bool,
}

impl Sessions {
    /// Loads the library.
    pub fn new(settings: Pkcs11Settings) -> Result<Self, TrustError> {
        let path = &settings.module;
        let unusable = |why: String| {
            let text = format!("`{}` is no PKCS#11 library that can be loaded: {why}", path.display());
            TrustError::new(ErrorKind::Invalid, text)
        };
        if settings.sessions_max == 0 {
            return Err(TrustError::new(ErrorKind::Invalid, "`sessions_max` is 0; expected at least 1"));
        }
        let module = Pkcs11::new(path).map_err(|error| unusable(plain(&error)))?;
        initialize(&module).map_err(|error| unusable(plain(&error)))?;
        Ok(Self { settings, module, pool: Mutex::default(), returned: Condvar::new() })
    }

    /// Does some work in a session; a second time where the token was away since the last one.
    pub fn with<T>(&self, work: impl Fn(&Session) -> Result<T, Failure>) -> Result<T, TrustError> {
        let mut anew = false;
        loop {
            let session = self.take(anew)?;
            let result = work(&session);
            let lost = matches!(&result, Err(Failure::Token(error)) if is_lost(error));
            self.give_back(session, lost);
            match result {
                Ok(value) => return Ok(value),
                Err(Failure::Done(error)) => return Err(error),
                Err(Failure::Token(_)) if lost && !anew => anew = true,
                Err(Failure::Token(error)) => return Err(self.unavailable(&error)),
            }
        }
    }

    fn take(&self, anew: bool) -> Result<Session, TrustError> {
        let mut pool = self.pool.lock();
        if anew {
            pool.open -= pool.idle.len();
            pool.idle.clear();
        }
        loop {
            if let Some(session) = pool.idle.pop() {
                return Ok(session);
            }
            if pool.open < self.settings.sessions_max {
                let session = self.open(&mut pool)?;
                pool.open += 1;
                return Ok(session);
            }
            if self.returned.wait_for(&mut pool, BUSY_MAX).timed_out() {
                let text = format!("{self}: all {} sessions are in use", self.settings.sessions_max);
                return Err(TrustError::new(ErrorKind::Unavailable, text));
            }
        }
    }

    fn give_back(&self, session: Session, lost: bool) {
        let mut pool = self.pool.lock();
        if lost {
            pool.open -= 1;
            drop(session);
        } else {
            pool.idle.push(session);
        }
        self.returned.notify_one();
    }

    fn open(&self, pool: &mut Pool) -> Result<Session, TrustError> {
        if pool.pin_refused {
            return Err(self.pin_refused());
        }
        // Another user of the library in this process may have ended it.
        initialize(&self.module).map_err(|error| self.unavailable(&error))?;
        let session = self.module.open_rw_session(self.slot()?).map_err(|error| self.unavailable(&error))?;
        let pin = RawAuthPin::new(Box::new(self.settings.pin.read()?.to_vec()));
        match session.login_with_raw(UserType::User, &pin) {
            // A login is the process's, not the session's.
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(Error::Pkcs11(RvError::PinIncorrect | RvError::PinLenRange | RvError::PinInvalid, _)) => {
                pool.pin_refused = true;
                Err(self.pin_refused())
            }
            Err(Error::Pkcs11(RvError::PinLocked, _)) => {
                let text =
                    format!("{self}: its PIN is locked after too many wrong ones; the token's officer unlocks it");
                Err(TrustError::new(ErrorKind::Unverified, text))
            }
            Err(error) => Err(self.unavailable(&error)),
        }
    }

    /// The slot that holds the token.
    fn slot(&self) -> Result<Slot, TrustError> {
        let (mut labels, mut found) = (Vec::new(), Vec::new());
        let slots = self.module.get_slots_with_token().map_err(|error| self.unavailable(&error))?;
        for slot in slots {
            let Ok(token) = self.module.get_token_info(slot) else { continue };
            let label = token.label().trim_end().to_owned();
            if label == self.settings.token {
                found.push(slot);
            }
            labels.push(format!("`{}`", label.escape_debug()));
        }
        match found.as_slice() {
            [slot] => Ok(*slot),
            [] => {
                let text = format!("{self}: no such token; the library has {}", labels.join(", "));
                Err(TrustError::new(ErrorKind::NotFound, text))
            }
            several => {
                let text = format!("{self}: {} tokens have this label; expected one", several.len());
                Err(TrustError::new(ErrorKind::Invalid, text))
            }
        }
    }

    fn pin_refused(&self) -> TrustError {
        let text = format!(
            "{self} refused the PIN of {}; it is not asked again, lest it locks: mend the PIN and start anew",
            self.settings.pin
        );
        TrustError::new(ErrorKind::Unverified, text)
    }

    fn unavailable(&self, error: &Error) -> TrustError {
        TrustError::new(ErrorKind::Unavailable, format!("{self}: {}", plain(error)))
    }
}

impl fmt::Display for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token `{}` of `{}`", self.settings.token.escape_debug(), self.settings.module.display())
    }
}

fn initialize(module: &Pkcs11) -> Result<(), Error> {
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The session is of no more use; a new one may be.
fn is_lost(error: &Error) -> bool {
    use RvError::{
        CryptokiNotInitialized, DeviceRemoved, SessionClosed, SessionHandleInvalid, TokenNotPresent, UserNotLoggedIn,
    };
    matches!(
        error,
        Error::Pkcs11(
            CryptokiNotInitialized
                | DeviceRemoved
                | SessionClosed
                | SessionHandleInvalid
                | TokenNotPresent
                | UserNotLoggedIn,
            _
        )
    )
}

/// What tokens answer where a ciphertext does not fit; the standard says the first, the others are seen.
pub fn is_refusal(error: &Error) -> bool {
    use RvError::{DataInvalid, DataLenRange, EncryptedDataInvalid, EncryptedDataLenRange, GeneralError};
    matches!(
        error,
        Error::Pkcs11(EncryptedDataInvalid | EncryptedDataLenRange | DataInvalid | DataLenRange | GeneralError, _)
    )
}

/// An error in few words: the library gives whole paragraphs of the standard.
pub fn plain(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("{code:?} of {function:?}"),
        other => other.to_string(),
    }
}
