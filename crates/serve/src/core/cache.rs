//! The response cache: answers of models that ask for it, bounded by bytes, least recently used first out.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use edgeward_graph::Tensor;
use quick_cache::{Weighter, sync::Cache as Store};
use sha2::{Digest as _, Sha256};

use crate::core::InferRequest;

/// What an entry takes beside its tensors' bytes.
const ENTRY_BYTES: u64 = 256;
/// Answers are small as a rule; the cache sizes its tables by this guess.
const TYPICAL_BYTES: u64 = 4096;

type Outputs = Vec<(Arc<str>, Tensor)>;

/// One store for all versions; each sees its own answers only.
#[derive(Clone)]
pub(super) struct Cache {
    store: Arc<Store<(u64, Key), Outputs, Weight>>,
    /// Tells versions, and loads of one version, apart.
    owner: u64,
}

#[derive(Clone)]
struct Weight;

impl Weighter<(u64, Key), Outputs> for Weight {
    fn weight(&self, _: &(u64, Key), outputs: &Outputs) -> u64 {
        ENTRY_BYTES + outputs.iter().map(|(_, tensor)| tensor.byte_len() as u64).sum::<u64>()
    }
}

impl Cache {
    /// A store of at most `bytes`.
    pub fn new(bytes: u64) -> Self {
        let entries = (bytes / TYPICAL_BYTES).clamp(16, 1 << 20) as usize;
        Self { store: Arc::new(Store::with_weighter(entries, bytes, Weight)), owner: 0 }
    }

    /// The same store for a version that has just been loaded.
    pub fn of_one_version(&self) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { store: self.store.clone(), owner: NEXT.fetch_add(1, Relaxed) }
    }

    pub fn get(&self, key: &Key) -> Option<Outputs> {
        self.store.get(&(self.owner, *key))
    }

    pub fn put(&self, key: Key, outputs: &Outputs) {
        self.store.insert((self.owner, key), outputs.clone());
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// SHA-256 of what determines an answer: inputs with their names, types and shapes, and the outputs wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// The key of a request; the order of its inputs does not count.
    pub fn of(request: &InferRequest) -> Self {
        let mut inputs: Vec<_> = request.inputs.iter().collect();
        inputs.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut hash = Sha256::new();
        let number = |hash: &mut Sha256, n: usize| hash.update((n as u64).to_le_bytes());
        // Every part of unknown length is preceded by it, so that no two requests read the same.
        let bytes = |hash: &mut Sha256, part: &[u8]| {
            number(hash, part.len());
            hash.update(part);
        };
        number(&mut hash, inputs.len());
        for (name, tensor) in inputs {
            bytes(&mut hash, name.as_bytes());
            number(&mut hash, tensor.dtype().to_onnx() as usize);
            number(&mut hash, tensor.shape().len());
            tensor.shape().iter().for_each(|&size| number(&mut hash, size));
            tensor.raw().into_iter().for_each(|raw| bytes(&mut hash, raw));
            tensor.strings().into_iter().flatten().for_each(|text| bytes(&mut hash, text));
        }
        for output in &request.outputs {
            bytes(&mut hash, output.name.as_bytes());
            number(&mut hash, output.classification);
        }
        Self(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{ModelRef, RequestedOutput};

    fn request(inputs: Vec<(&str, Tensor)>) -> InferRequest {
        InferRequest {
            model: ModelRef { name: "m".into(), version: None },
            id: String::new(),
            inputs: inputs.into_iter().map(|(n, t)| (n.to_owned(), t)).collect(),
            outputs: Vec::new(),
            priority: 0,
            timeout: None,
            parameters: Vec::new(),
            beside: false,
        }
    }

    fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_vec(shape, values.to_vec()).unwrap()
    }

    #[test]
    fn keys_tell_requests_apart_and_ignore_the_order_of_inputs() {
        let (a, b) = (tensor(&[1, 2], &[1., 2.]), tensor(&[2, 1], &[1., 2.]));
        let base = request(vec![("x", a.clone()), ("y", b.clone())]);
        let same = InferRequest { id: "other".into(), ..request(vec![("y", b.clone()), ("x", a.clone())]) };
        assert_eq!(Key::of(&base), Key::of(&same));
        let text = |parts: &[&'static str]| {
            let parts: Vec<_> = parts.iter().map(|p| bytes::Bytes::from_static(p.as_bytes())).collect();
            Tensor::from_strings([parts.len()], parts).unwrap()
        };
        let outputs = vec![RequestedOutput { name: "o".into(), classification: 0 }];
        let others = [
            base,
            request(vec![("x", b.clone()), ("y", a.clone())]),
            request(vec![("x", a.clone())]),
            request(vec![("xy", a.clone())]),
            InferRequest { outputs, ..request(vec![("x", a)]) },
            request(vec![("x", text(&["ab", "c"]))]),
            request(vec![("x", text(&["a", "bc"]))]),
        ];
        for (i, one) in others.iter().enumerate() {
            for other in &others[i + 1..] {
                assert_ne!(Key::of(one), Key::of(other), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn bytes_bound_it_and_versions_do_not_see_each_other() {
        let store = Cache::new(64 << 10);
        let (one, other) = (store.of_one_version(), store.of_one_version());
        let keys: Vec<Key> =
            (0..100u8).map(|i| Key::of(&request(vec![("x", tensor(&[1], &[f32::from(i)]))]))).collect();
        for key in &keys {
            one.put(*key, &vec![("y".into(), tensor(&[512], &[0.; 512]))]);
        }
        let kept = keys.iter().filter(|key| one.get(key).is_some()).count();
        assert!((1..=28).contains(&kept), "{kept} entries of 2304 bytes in 64 KiB");
        assert!(keys.iter().all(|key| other.get(key).is_none()));
    }
}
