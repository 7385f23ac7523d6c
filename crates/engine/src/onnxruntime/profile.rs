//! Per-operator times from the trace file that ONNX Runtime writes.

use std::{
    collections::HashMap,
    ffi::CStr,
    fs,
    path::{Path, PathBuf},
    ptr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ort_sys::OrtSession;

use super::{Runtime, call, error};
use crate::{EngineError, ErrorKind, NodeTime, Profile};

/// The folder of one session's trace; removed on drop.
pub(super) struct Recorder {
    folder: PathBuf,
    read: Mutex<Option<Profile>>,
}

impl Recorder {
    pub(super) fn new() -> Result<Self, EngineError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("edgeward-profile-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder)
            .map_err(|e| error(ErrorKind::Failed, format!("cannot create `{}`: {e}", folder.display())))?;
        Ok(Self { folder, read: Mutex::new(None) })
    }

    pub(super) fn prefix(&self) -> PathBuf {
        self.folder.join("trace")
    }

    /// Ends the recording, which the library allows once, and keeps what it held.
    pub(super) fn read(&self, runtime: &Runtime, session: *mut OrtSession) -> Profile {
        let mut read = self.read.lock().unwrap_or_else(|e| e.into_inner());
        read.get_or_insert_with(|| end(runtime, session).unwrap_or_default()).clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // A trace left in the temporary folder harms nobody.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn end(runtime: &Runtime, session: *mut OrtSession) -> Result<Profile, EngineError> {
    let (mut allocator, mut name) = (ptr::null_mut(), ptr::null_mut());
    call!(runtime, GetAllocatorWithDefaultOptions(&mut allocator))?;
    call!(runtime, SessionEndProfiling(session, allocator, &mut name))?;
    // SAFETY: the call above returned a zero-terminated path.
    let path = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    call!(runtime, AllocatorFree(allocator, name.cast()))?;
    parse(Path::new(&path))
}

#[derive(serde::Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    dur: u64,
    #[serde(default)]
    args: HashMap<String, serde_json::Value>,
}

fn parse(path: &Path) -> Result<Profile, EngineError> {
    let fail = |e: String| error(ErrorKind::Failed, format!("cannot read the profile: {e}"));
    let text = fs::read(path).map_err(|e| fail(e.to_string()))?;
    let events: Vec<Event> = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
    let mut nodes: HashMap<String, NodeTime> = HashMap::new();
    let mut runs = 0;
    for event in events {
        if event.name == "model_run" {
            runs += 1;
        }
        let Some(node) = event.name.strip_suffix("_kernel_time").filter(|_| event.cat == "Node") else { continue };
        let op_type = event.args.get("op_name").and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let entry = nodes.entry(node.to_owned()).or_insert_with(|| NodeTime {
            name: node.to_owned(),
            op_type,
            total: Duration::ZERO,
            count: 0,
        });
        entry.total += Duration::from_micros(event.dur);
        entry.count += 1;
    }
    let mut nodes: Vec<NodeTime> = nodes.into_values().collect();
    nodes.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.name.cmp(&b.name)));
    Ok(Profile { runs, nodes })
}
