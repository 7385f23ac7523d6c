//! Ctrl-C during long work: it ends between two pieces of it, with what was done kept; a second one ends it at once.

use std::sync::{
    Once,
    atomic::{AtomicBool, Ordering},
};

/// What a shell expects of a program that SIGINT ended.
const EXIT_CODE: i32 = 130;

static CAME: AtomicBool = AtomicBool::new(false);
static LISTENING: Once = Once::new();

/// From now on Ctrl-C is noticed rather than fatal. Where that cannot be had, it stays fatal.
pub fn listen() {
    LISTENING.call_once(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        std::thread::spawn(move || {
            runtime.block_on(async {
                if tokio::signal::ctrl_c().await.is_err() {
                    return;
                }
                CAME.store(true, Ordering::Relaxed);
                if tokio::signal::ctrl_c().await.is_ok() {
                    std::process::exit(EXIT_CODE);
                }
            });
        });
    });
}

/// True once Ctrl-C came.
pub fn came() -> bool {
    CAME.load(Ordering::Relaxed)
}
