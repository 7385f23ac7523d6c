//! Memory of ONNX Runtime's tensors from the process's own allocator.
//!
//! The runtime's arena keeps its largest moment until the session ends. The C library's `malloc`, which it uses without
//! an arena, maps and unmaps large blocks at every run, and a run of a larger batch then spends its time in page faults.
//! The global allocator keeps what was just freed for the next run and gives it back when nobody asks.

use std::{
    alloc::{Layout, alloc, dealloc},
    ffi::c_void,
    ptr,
};

use ort_sys::{OrtAllocator, OrtAllocatorType, OrtMemType, OrtMemoryInfo};

use super::{Runtime, call};
use crate::EngineError;

/// What the runtime's kernels expect, and the room before each block for its size.
const ALIGNMENT: usize = 64;

/// The table of functions that the runtime calls, with what they need.
#[repr(C)]
struct Allocator {
    /// First, so that a pointer to it is a pointer to the whole.
    functions: OrtAllocator,
    memory: *const OrtMemoryInfo,
}

/// Makes the process's allocator known to `runtime`; sessions use it that ask for the environment's allocators.
pub(super) fn register(runtime: &Runtime) -> Result<(), EngineError> {
    let mut memory = ptr::null_mut();
    call!(
        runtime,
        CreateCpuMemoryInfo(OrtAllocatorType::OrtDeviceAllocator, OrtMemType::OrtMemTypeDefault, &mut memory)
    )?;
    // SAFETY: all functions without which the runtime cannot do are set below.
    let mut functions = unsafe { OrtAllocator::default() };
    functions.Alloc = Some(allocate);
    functions.Free = Some(free);
    functions.Info = Some(info);
    functions.Reserve = Some(reserve);
    // Sessions may live as long as the process, as the library does.
    let allocator: &'static mut Allocator = Box::leak(Box::new(Allocator { functions, memory }));
    call!(runtime, RegisterAllocator(runtime.env, ptr::from_mut(allocator).cast()))
}

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_add(ALIGNMENT)?, ALIGNMENT).ok()
}

unsafe extern "system" fn allocate(_: *mut OrtAllocator, size: usize) -> *mut c_void {
    let Some(layout) = layout(size).filter(|_| size > 0) else { return ptr::null_mut() };
    // SAFETY: the layout is not empty; the size stands in the room before the block.
    unsafe {
        let start = alloc(layout);
        if start.is_null() {
            return ptr::null_mut();
        }
        start.cast::<usize>().write(size);
        start.add(ALIGNMENT).cast()
    }
}

/// For what stays as long as a session, its weights.
unsafe extern "system" fn reserve(this: *const OrtAllocator, size: usize) -> *mut c_void {
    // SAFETY: the same contract; the allocator itself has no state.
    unsafe { allocate(this.cast_mut(), size) }
}

unsafe extern "system" fn free(_: *mut OrtAllocator, block: *mut c_void) {
    if block.is_null() {
        return;
    }
    // SAFETY: blocks come from `allocate`, which wrote the size before them.
    unsafe {
        let start = block.cast::<u8>().sub(ALIGNMENT);
        if let Some(layout) = layout(start.cast::<usize>().read()) {
            dealloc(start, layout);
        }
    }
}

unsafe extern "system" fn info(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    // SAFETY: the runtime passes what was registered.
    unsafe { (*this.cast::<Allocator>()).memory }
}
