//! Signals: those that ask a program to end, SIGTERM and SIGINT, and one that must not end it.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// From its making on neither signal ends the process by itself.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Must be called inside a Tokio runtime.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of either.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// From now on a write beyond what a file may have (`ulimit -f`) is an error of that write, EFBIG, and does not end the
/// process by SIGXFSZ. The signal is caught, not ignored: what is ignored stays so in programs that this one starts.
pub fn survive_full_files() {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler = nothing as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing, which is safe at any moment.
    unsafe { libc::signal(libc::SIGXFSZ, handler as libc::sighandler_t) };
}
