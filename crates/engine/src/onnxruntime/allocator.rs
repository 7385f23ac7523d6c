//! Memory of ONNX Runtime's tensors from the process's own allocator.
//!
//! The runtime's arena keeps its largest moment until the session ends. The C library's `malloc`, which it uses without
//! an arena, maps and unmaps large blocks at every run, and a run of a larger batch then spends its time in page faults.
//! The global allocator keeps what was just freed for the next run and gives it back when nobody asks.
//!
//! The runtime takes what an allocator returns for memory, whatever it is: where there is none, only an exception of C++ ends a run
//! in an error. Its own allocator throws one, and is asked for the impossible to that end.

use std::{
    alloc::{Layout, alloc, dealloc},
    ffi::c_void,
    mem, ptr,
};

use ort_sys::{OrtAllocator, OrtAllocatorType, OrtMemType, OrtMemoryInfo};

use super::{Runtime, call};
use crate::{EngineError, machine};

/// What the runtime's kernels expect, and the room before each block for its size.
const ALIGNMENT: usize = 64;

/// The table of functions that the runtime calls, with what they need.
#[repr(C)]
struct Allocator {
    /// First, so that a pointer to it is a pointer to the whole.
    functions: OrtAllocator,
    memory: *const OrtMemoryInfo,
    /// The runtime's own, which throws.
    throws: *mut OrtAllocator,
    /// A larger block is refused. The process's allocator maps without asking the system to keep the memory: it would be granted, and
    /// end the process once it is filled.
    block_bytes_max: usize,
}

/// As the interface declares them.
type Declared<A> = unsafe extern "system" fn(A, usize) -> *mut c_void;
/// As they are: an exception may pass through.
type Throwing<A> = unsafe extern "system-unwind" fn(A, usize) -> *mut c_void;

/// More than any machine has.
const IMPOSSIBLE_BYTES: usize = isize::MAX as usize;

/// Makes the process's allocator known to `runtime`; sessions use it that ask for the environment's allocators.
pub(super) fn register(runtime: &Runtime) -> Result<(), EngineError> {
    let mut memory = ptr::null_mut();
    call!(
        runtime,
        CreateCpuMemoryInfo(OrtAllocatorType::OrtDeviceAllocator, OrtMemType::OrtMemTypeDefault, &mut memory)
    )?;
    let mut throws = ptr::null_mut();
    call!(runtime, GetAllocatorWithDefaultOptions(&mut throws))?;
    // SAFETY: all functions without which the runtime cannot do are set below.
    let mut functions = unsafe { OrtAllocator::default() };
    // SAFETY: the same functions; the runtime, which calls them, is C++ and unwinds.
    unsafe {
        functions.Alloc = Some(mem::transmute::<Throwing<*mut OrtAllocator>, Declared<*mut OrtAllocator>>(allocate));
        functions.Reserve =
            Some(mem::transmute::<Throwing<*const OrtAllocator>, Declared<*const OrtAllocator>>(reserve));
    }
    functions.Free = Some(free);
    functions.Info = Some(info);
    // Sessions may live as long as the process, as the library does.
    let allocator: &'static mut Allocator =
        Box::leak(Box::new(Allocator { functions, memory, throws, block_bytes_max: machine::bytes_max() }));
    call!(runtime, RegisterAllocator(runtime.env, ptr::from_mut(allocator).cast()))
}

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_add(ALIGNMENT)?, ALIGNMENT).ok()
}

unsafe extern "system-unwind" fn allocate(this: *mut OrtAllocator, size: usize) -> *mut c_void {
    if size == 0 {
        return ptr::null_mut();
    }
    // SAFETY: the layout is not empty; the size stands in the room before the block. The runtime passes what was registered.
    // Nothing here has a destructor that an exception would skip.
    unsafe {
        let own = this.cast::<Allocator>();
        let layout = layout(size).filter(|_| size <= (*own).block_bytes_max);
        let start = layout.map_or(ptr::null_mut(), |layout| alloc(layout));
        if start.is_null() {
            return out_of_memory((*own).throws);
        }
        start.cast::<usize>().write(size);
        start.add(ALIGNMENT).cast()
    }
}

/// For what stays as long as a session, its weights.
unsafe extern "system-unwind" fn reserve(this: *const OrtAllocator, size: usize) -> *mut c_void {
    // SAFETY: the same contract; nothing is written to the allocator.
    unsafe { allocate(this.cast_mut(), size) }
}

/// Does not return.
unsafe fn out_of_memory(throws: *mut OrtAllocator) -> *mut c_void {
    // SAFETY: the runtime's own allocator lives as long as the runtime; its function may unwind, which its type does not say.
    unsafe {
        let Some(function) = (*throws).Alloc else { return ptr::null_mut() };
        mem::transmute::<Declared<*mut OrtAllocator>, Throwing<*mut OrtAllocator>>(function)(throws, IMPOSSIBLE_BYTES)
    }
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
