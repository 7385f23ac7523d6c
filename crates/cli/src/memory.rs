//! The process's memory: which allocator, and when what was freed goes back to the system.

use std::{ffi::c_long, thread, time::Duration};

// glibc's allocator keeps what one thread freed from the others; a server that loads and unloads models would grow.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Memory that was freed goes back when nobody has asked for it for this long. The allocator's own 10 ms are shorter than a
/// run: each would fault its tensors in anew.
const PURGE_DELAY: Duration = Duration::from_secs(1);
/// `mi_option_purge_delay` of mimalloc.h, for which the binding has no name.
const PURGE_DELAY_OPTION: libmimalloc_sys::mi_option_t = 15;
/// Blocks from this size on, of libraries that use the C library's allocator, are mapped one by one. By itself it learns to keep
/// them up to 32 MiB for each thread, which holds the weights of models long after they are unloaded.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: libc::c_int = 1 << 20;

/// Sets the allocators up; first of all.
pub fn set_up() {
    let delay_ms = c_long::try_from(PURGE_DELAY.as_millis()).unwrap_or(c_long::MAX);
    // SAFETY: the option exists and takes any number.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY_OPTION, delay_ms) };
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the C library's allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)
    };
}

/// Gives back what is free, all of it and now.
pub fn give_back() {
    collect(true);
}

/// Gives back what has been free for long enough, from now on also while nobody allocates: the allocator by itself looks only
/// when it is used.
pub fn give_back_in_idle_times() {
    let look = || {
        loop {
            thread::sleep(PURGE_DELAY);
            collect(false);
        }
    };
    // Without the thread memory goes back later.
    let _ = thread::Builder::new().name("memory".to_owned()).spawn(look);
}

fn collect(all: bool) {
    // SAFETY: the call has no preconditions; it is about this allocator's free pages only.
    unsafe { libmimalloc_sys::mi_collect(all) };
}
