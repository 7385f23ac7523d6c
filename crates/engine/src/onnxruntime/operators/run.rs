//! What a kernel sees of a run: its inputs, its outputs, and the session's threads.

use std::{
    cell::Cell,
    ffi::c_void,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
    sync::atomic::{AtomicBool, Ordering},
};

use ort_sys::{OrtApi, OrtKernelContext, OrtStatusPtr, OrtValue};

use super::lanes::Block;

/// Zeros for a kernel's own use. Errors where there is no memory: what a model asks for must not end the process.
pub(super) fn zeros(count: usize) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    blocks.try_reserve_exact(count).map_err(|_| format!("no memory for {count} blocks of 16 numbers"))?;
    blocks.resize(count, [0.0; 16]);
    Ok(blocks)
}

/// One run of one node.
pub(super) struct Run<'r> {
    api: &'r OrtApi,
    context: *mut OrtKernelContext,
    /// Outputs handed out, a bit each: nobody may hold one twice.
    taken: Cell<u32>,
}

/// An input.
#[derive(Clone, Copy)]
pub(super) struct View<'a, T> {
    rank: usize,
    dims: [usize; View::<'static, f32>::RANK_MAX],
    pub data: &'a [T],
}

impl<T> View<'_, T> {
    /// Higher ranks are refused.
    const RANK_MAX: usize = 8;

    pub(super) fn shape(&self) -> &[usize] {
        self.dims.get(..self.rank).unwrap_or_default()
    }
}

impl<'a> View<'a, f32> {
    /// The sizes, where there are as many.
    pub(super) fn dims<const RANK: usize>(&self, what: &str) -> Result<[usize; RANK], String> {
        let fits = <[usize; RANK]>::try_from(self.shape());
        fits.map_err(|_| format!("`{what}` has the shape {:?}, expected {RANK} dimensions", self.shape()))
    }

    /// Images, channel blocks, height, width and the data of a blocked value.
    pub(super) fn blocked(&self, what: &str) -> Result<([usize; 4], &'a [Block]), String> {
        match self.dims::<5>(what)? {
            [n, c, h, w, 16] => Ok(([n, c, h, w], self.data.as_chunks().0)),
            other => Err(format!("`{what}` has the shape {other:?}, expected [N, blocks, H, W, 16]")),
        }
    }

    /// As [`View::blocked`], for a value of `channels`.
    pub(super) fn channels(&self, what: &str, channels: usize) -> Result<([usize; 4], &'a [Block]), String> {
        let (dims, data) = self.blocked(what)?;
        if dims[1] != channels.div_ceil(16) {
            return Err(format!("`{what}` has {} blocks of channels, {channels} channels need others", dims[1]));
        }
        Ok((dims, data))
    }

    /// Errors where the shape is another.
    pub(super) fn expect(&self, what: &str, shape: &[usize]) -> Result<&'a [f32], String> {
        if self.shape() == shape {
            return Ok(self.data);
        }
        Err(format!("`{what}` has the shape {:?}, expected {shape:?}", self.shape()))
    }

    /// A single number.
    pub(super) fn scalar(&self, what: &str) -> Result<f32, String> {
        match self.data {
            [value] => Ok(*value),
            _ => Err(format!("`{what}` has the shape {:?}, expected one number", self.shape())),
        }
    }
}

impl<'r> Run<'r> {
    /// # Safety
    /// The context must be that of the run under way, and inputs and outputs of the types that the operators declare.
    pub(super) unsafe fn new(api: &'r OrtApi, context: *mut OrtKernelContext) -> Self {
        Self { api, context, taken: Cell::new(0) }
    }

    fn done(&self, status: OrtStatusPtr) -> Result<(), String> {
        if status.0.is_null() {
            return Ok(());
        }
        // SAFETY: a status that is not null holds a text until it is released here.
        unsafe {
            let text = std::ffi::CStr::from_ptr((self.api.GetErrorMessage)(status.0)).to_string_lossy().into_owned();
            (self.api.ReleaseStatus)(status.0);
            Err(text)
        }
    }

    /// The input at `index`, called `what` in errors.
    pub(super) fn input(&self, index: usize, what: &str) -> Result<View<'_, f32>, String> {
        self.optional(index)?.ok_or_else(|| format!("the input `{what}` is missing"))
    }

    /// The input at `index`, where it is given.
    pub(super) fn optional(&self, index: usize) -> Result<Option<View<'_, f32>>, String> {
        // SAFETY: declared as float32.
        unsafe { self.view(index) }
    }

    /// The input of whole numbers at `index`.
    pub(super) fn indices(&self, index: usize, what: &str) -> Result<View<'_, i64>, String> {
        // SAFETY: declared as int64.
        unsafe { self.view(index) }?.ok_or_else(|| format!("the input `{what}` is missing"))
    }

    /// # Safety
    /// The input must be declared to be of this type.
    unsafe fn view<T>(&self, index: usize) -> Result<Option<View<'_, T>>, String> {
        let (mut count, mut value, mut data) = (0, ptr::null(), ptr::null_mut());
        // SAFETY: places for the results. The value stays until the run ends, and nobody writes to it.
        unsafe {
            self.done((self.api.KernelContext_GetInputCount)(self.context, &mut count))?;
            if index >= count {
                return Ok(None);
            }
            self.done((self.api.KernelContext_GetInput)(self.context, index, &mut value))?;
            if value.is_null() {
                return Ok(None);
            }
            self.done((self.api.GetTensorMutableData)(value.cast_mut(), &mut data))?;
        }
        let (rank, dims) = self.dims(value)?;
        let length = dims.get(..rank).unwrap_or_default().iter().product();
        // SAFETY: the value holds as many elements as its shape says.
        let data = if length == 0 { &[] } else { unsafe { slice::from_raw_parts(data.cast::<T>(), length) } };
        Ok(Some(View { rank, dims, data }))
    }

    fn dims(&self, value: *const OrtValue) -> Result<(usize, [usize; 8]), String> {
        let (mut info, mut rank, mut dims) = (ptr::null_mut(), 0, [0i64; 8]);
        // SAFETY: places for the results; the description is released and not used after.
        unsafe {
            self.done((self.api.GetTensorTypeAndShape)(value, &mut info))?;
            let read = self.done((self.api.GetDimensionsCount)(info, &mut rank)).and_then(|()| {
                if rank > dims.len() {
                    return Err(format!("an input has {rank} dimensions, at most {} are known", dims.len()));
                }
                self.done((self.api.GetDimensions)(info, dims.as_mut_ptr(), rank))
            });
            (self.api.ReleaseTensorTypeAndShapeInfo)(info);
            read?;
        }
        Ok((rank, dims.map(|d| usize::try_from(d).unwrap_or(0))))
    }

    /// Makes the output at `index`. Errors where it is not wanted or made already.
    pub(super) fn output(&self, index: usize, shape: &[usize]) -> Result<&mut [f32], String> {
        self.output_if_wanted(index, shape)?.ok_or_else(|| format!("output {index} must have a name"))
    }

    /// Makes the output at `index`, where anybody wants it.
    #[expect(clippy::mut_from_ref, reason = "each output is handed out once")]
    pub(super) fn output_if_wanted(&self, index: usize, shape: &[usize]) -> Result<Option<&mut [f32]>, String> {
        let bit = u32::try_from(index).ok().and_then(|i| 1u32.checked_shl(i)).ok_or("too many outputs")?;
        if self.taken.replace(self.taken.get() | bit) & bit != 0 {
            return Err(format!("output {index} is made twice"));
        }
        let sizes: Vec<i64> = shape.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
        let length = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or("an output is too large")?;
        let (mut value, mut data) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: places for the results. The value stays until the run ends, and has as many float32 as its shape says.
        unsafe {
            self.done((self.api.KernelContext_GetOutput)(
                self.context,
                index,
                sizes.as_ptr(),
                sizes.len(),
                &mut value,
            ))?;
            if value.is_null() {
                return Ok(None);
            }
            self.done((self.api.GetTensorMutableData)(value, &mut data))?;
            Ok(Some(if length == 0 { &mut [] } else { slice::from_raw_parts_mut(data.cast::<f32>(), length) }))
        }
    }

    /// Makes the blocked output at `index`.
    pub(super) fn blocked(&self, index: usize, dims: [usize; 4]) -> Result<&mut [Block], String> {
        let [n, c, h, w] = dims;
        Ok(self.output(index, &[n, c, h, w, 16])?.as_chunks_mut().0)
    }

    /// Calls `task` with 0 to `total`, on the session's threads.
    pub(super) fn parallel(&self, total: usize, task: impl Fn(usize) + Sync) -> Result<(), String> {
        if total <= 1 {
            (0..total).for_each(task);
            return Ok(());
        }
        let job = Job { task, panicked: AtomicBool::new(false) };
        let (function, data) = (entry(&job), ptr::from_ref(&job).cast_mut().cast());
        // SAFETY: the call returns after the last task, so the job outlives them.
        self.done(unsafe { (self.api.KernelContext_ParallelFor)(self.context, function, total, 0, data) })?;
        if job.panicked.into_inner() { Err("failed inside a thread; this is a defect".to_owned()) } else { Ok(()) }
    }

    /// Calls `task` with the number of each chunk of `size` and the chunk itself.
    pub(super) fn chunks<T: Send>(
        &self,
        data: &mut [T],
        size: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<(), String> {
        let (size, length) = (size.max(1), data.len());
        let all = Shared::new(data);
        self.parallel(length.div_ceil(size), |index| {
            let start = index * size;
            // SAFETY: each task has a chunk of its own.
            task(index, unsafe { all.part(start, size.min(length - start)) });
        })
    }

    /// As [`Run::chunks`], with the same chunk of several outputs of one length.
    pub(super) fn chunk_sets<T: Send, const COUNT: usize>(
        &self,
        outputs: [&mut [T]; COUNT],
        size: usize,
        task: impl Fn(usize, [&mut [T]; COUNT]) + Sync,
    ) -> Result<(), String> {
        let length = outputs.iter().map(|o| o.len()).min().unwrap_or(0);
        let all = outputs.map(Shared::new);
        self.parallel(length.div_ceil(size), |index| {
            let start = index * size;
            // SAFETY: each task has a chunk of its own.
            task(index, all.each_ref().map(|o| unsafe { o.part(start, size.min(length - start)) }));
        })
    }

    /// As [`Run::chunks`], with the chunk of the same number of other data, which has a size of its own.
    pub(super) fn chunks_of<T: Send>(
        &self,
        (first, size): (&mut [T], usize),
        (second, second_size): (&mut [T], usize),
        task: impl Fn(usize, &mut [T], &mut [T]) + Sync,
    ) -> Result<(), String> {
        let second = Shared::new(second);
        self.chunks(first, size, |index, first| {
            // SAFETY: each task has a chunk of its own.
            task(index, first, unsafe { second.part(index * second_size, second_size) });
        })
    }

    /// As [`Run::chunks`], with the same chunk of a second output where that is wanted.
    pub(super) fn chunk_pairs<T: Send>(
        &self,
        first: &mut [T],
        second: Option<&mut [T]>,
        size: usize,
        task: impl Fn(usize, &mut [T], Option<&mut [T]>) + Sync,
    ) -> Result<(), String> {
        let second = second.map(Shared::new);
        self.chunks(first, size, |index, first| {
            // SAFETY: each task has a chunk of its own.
            let other = second.as_ref().map(|s| unsafe { s.part(index * size, first.len()) });
            task(index, first, other);
        })
    }
}

struct Job<F> {
    task: F,
    panicked: AtomicBool,
}

/// The entry for tasks of this job's type.
fn entry<F: Fn(usize) + Sync>(_: &Job<F>) -> unsafe extern "C" fn(*mut c_void, usize) {
    unsafe extern "C" fn enter<F: Fn(usize) + Sync>(data: *mut c_void, index: usize) {
        // SAFETY: the job of `Run::parallel`, which waits; tasks share it by reference only.
        let job = unsafe { &*data.cast_const().cast::<Job<F>>() };
        // A panic must not cross into C.
        if catch_unwind(AssertUnwindSafe(|| (job.task)(index))).is_err() {
            job.panicked.store(true, Ordering::Relaxed);
        }
    }
    enter::<F>
}

/// Memory that tasks write to, each its own part.
struct Shared<'a, T> {
    start: *mut T,
    length: usize,
    _memory: PhantomData<&'a mut [T]>,
}

// SAFETY: parts handed out do not overlap, as `part` asks.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), length: data.len(), _memory: PhantomData }
    }

    /// # Safety
    /// Nobody else may hold a part that overlaps.
    #[expect(clippy::mut_from_ref, reason = "parts do not overlap")]
    unsafe fn part(&self, start: usize, length: usize) -> &mut [T] {
        assert!(start <= self.length && length <= self.length - start, "a part outside the memory");
        // SAFETY: within the memory, and nobody else's.
        unsafe { slice::from_raw_parts_mut(self.start.add(start), length) }
    }
}
