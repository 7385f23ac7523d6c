//! Object storage: what travels, what goes on after an interruption, and what a hostile store gets in.

use std::{
    fmt, fs,
    ops::Range,
    path::Path as LocalPath,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use edgeward_graph::Model;
use edgeward_store::{
    ErrorKind, Floor, OpenOptions, Release, rekey,
    remote::{Check, PullOptions, Remote, Selection},
    seal, signing,
};
use futures_util::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

use crate::support::{Home, files, model, model_of, refused};

/// A store whose link breaks after so many bytes in or out.
#[derive(Debug)]
struct Breaking {
    inner: InMemory,
    left: Arc<AtomicI64>,
}

impl fmt::Display for Breaking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store with a bad link")
    }
}

impl Breaking {
    fn new() -> (Arc<Self>, Arc<AtomicI64>) {
        let left = Arc::new(AtomicI64::new(i64::MAX));
        (Arc::new(Self { inner: InMemory::new(), left: left.clone() }), left)
    }

    fn travels(&self, bytes: u64) -> Result<()> {
        if self.left.fetch_sub(bytes as i64, Ordering::SeqCst) < bytes as i64 {
            return Err(Error::Generic { store: "test", source: "the link broke".into() });
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl ObjectStore for Breaking {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.travels(payload.content_length() as u64)?;
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.travels(8 << 20)?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let result = self.inner.get_opts(location, options).await?;
        let Range { start, end } = result.range;
        self.travels(if head { 0 } else { end - start })?;
        Ok(result)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn remote() -> (Remote, Arc<Breaking>, Arc<AtomicI64>) {
    let (store, left) = Breaking::new();
    (Remote::new(store.clone(), Path::from("a/prefix")), store, left)
}

fn pulled(home: &Home, out: &str, release: &LocalPath) {
    assert_eq!(files(&home.path(out)), files(release), "{out}");
}

/// A model of random weights, with a part of them changed.
fn fine_tuned(weights: usize, changed: Range<usize>) -> Model {
    let base = model(weights, 1);
    let tensor = base.tensor(&base.graph().initializer[0]).unwrap();
    let mut values: Vec<f32> =
        tensor.raw().unwrap().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    values[changed].iter_mut().for_each(|value| *value += 1.0);
    model_of(values)
}

#[tokio::test]
async fn only_what_changed_travels() {
    let home = Home::new();
    let (remote, ..) = remote();
    let weights = 3 << 20;
    home.pack("r1", 1, &model(weights, 1));
    home.pack("r2", 2, &fine_tuned(weights, 5000..6000));
    for name in ["r1", "r2"] {
        home.sign(name);
    }
    let first = remote.push(&home.path("r1"), Check::Sizes).await.unwrap();
    // The same weights lie in both variants.
    assert!(first.sent_bytes < first.total_bytes * 6 / 10, "{first:?}");
    let second = remote.push(&home.path("r2"), Check::Sizes).await.unwrap();
    assert!(second.sent_bytes < second.total_bytes / 10, "{second:?}");
    assert_eq!(second.sent_bytes + second.shared_bytes, second.total_bytes);
    let again = remote.push(&home.path("r2"), Check::Sizes).await.unwrap();
    assert_eq!(again.sent_bytes, 0, "{again:?}");
    assert_eq!(remote.list(None).await.unwrap().iter().map(|r| r.sequence).collect::<Vec<_>>(), [1, 2]);

    let trust = home.trust();
    let options = PullOptions { trust: Some(&trust), ..PullOptions::default() };
    let selection = Selection { sequence: Some(1), ..Selection::default() };
    let (_, whole) = remote.pull(&home.path("p1"), &PullOptions { selection, ..options.clone() }).await.unwrap();
    pulled(&home, "p1", &home.path("r1"));
    assert!(whole.fetched_bytes >= first.sent_bytes, "{whole:?}");
    let have = [home.path("p1")];
    let (_, delta) = remote.pull(&home.path("p2"), &PullOptions { have: &have, ..options }).await.unwrap();
    pulled(&home, "p2", &home.path("r2"));
    assert!(delta.fetched_bytes < delta.total_bytes / 10, "{delta:?}");
}

#[tokio::test]
async fn an_interrupted_push_and_pull_go_on() {
    let home = Home::new();
    let (remote, _, left) = remote();
    // More than one pack.
    home.pack("r", 1, &model(20 << 20, 1));
    home.sign("r");
    // Each begin of an upload in parts counts as one part: the third breaks.
    left.store(20 << 20, Ordering::SeqCst);
    refused(remote.push(&home.path("r"), Check::Sizes).await, ErrorKind::Unavailable, "the link broke");
    assert!(remote.list(None).await.unwrap().is_empty(), "a release that is not whole is not there");
    left.store(i64::MAX, Ordering::SeqCst);
    let report = remote.push(&home.path("r"), Check::Sizes).await.unwrap();
    assert!(report.resumed_bytes > 30 << 20 && report.sent_bytes > 0, "{report:?}");

    let options = PullOptions::default();
    left.store(50 << 20, Ordering::SeqCst);
    refused(remote.pull(&home.path("p"), &options).await, ErrorKind::Unavailable, "the link broke");
    assert!(!home.path("p").exists());
    left.store(i64::MAX, Ordering::SeqCst);
    let (_, report) = remote.pull(&home.path("p"), &options).await.unwrap();
    assert!(report.resumed_bytes > 20 << 20 && report.fetched_bytes < 70 << 20, "{report:?}");
    pulled(&home, "p", &home.path("r"));
    assert!(!home.path("p.partial").exists());
    // What somebody did to the partial folder meanwhile is fetched again.
    left.store(50 << 20, Ordering::SeqCst);
    assert!(remote.pull(&home.path("q"), &options).await.is_err());
    let path = home.path("q.partial/variants/b/model.onnx");
    let mut bytes = fs::read(&path).unwrap();
    bytes.iter_mut().step_by(100_000).for_each(|byte| *byte ^= 0xff);
    fs::write(&path, bytes).unwrap();
    left.store(i64::MAX, Ordering::SeqCst);
    remote.pull(&home.path("q"), &options).await.unwrap();
    pulled(&home, "q", &home.path("r"));
}

#[tokio::test]
async fn a_hostile_store_gets_nothing_in() {
    let home = Home::new();
    let (remote, store, _) = remote();
    home.pack("r", 1, &model(300_000, 1));
    home.sign("r");
    remote.push(&home.path("r"), Check::Sizes).await.unwrap();
    let trust = home.trust();
    let options = PullOptions { trust: Some(&trust), ..PullOptions::default() };
    let objects: Vec<ObjectMeta> = futures_util::TryStreamExt::try_collect(store.list(None)).await.unwrap();
    assert!(objects.len() >= 5, "{objects:?}");
    for (number, object) in objects.iter().enumerate() {
        let whole = store.get(&object.location).await.unwrap().bytes().await.unwrap();
        let mut changed = whole.to_vec();
        // Past the names, where there are digests, sizes or weights.
        let at = changed.len() / 2;
        changed[at] ^= 1;
        for bytes in [Bytes::from(changed), whole.slice(..whole.len() - 1), Bytes::new()] {
            store.put(&object.location, bytes.into()).await.unwrap();
            let out = home.path(&format!("p{number}"));
            let error = remote.pull(&out, &options).await.err();
            assert!(error.is_some() && !out.exists(), "{}", object.location);
            let _ = fs::remove_dir_all(out.with_added_extension("partial"));
        }
        store.put(&object.location, whole.into()).await.unwrap();
    }
    // A release that another signed, whole and consistent.
    let other = Home::new();
    other.pack("r", 2, &model(1000, 1));
    other.sign("r");
    remote.push(&other.path("r"), Check::Sizes).await.unwrap();
    refused(remote.pull(&home.path("p"), &options).await, ErrorKind::Unverified, "not trusted here");
    let selection = Selection { name: Some("chest".to_owned()), sequence: Some(1) };
    remote.pull(&home.path("p"), &PullOptions { selection, ..options.clone() }).await.unwrap();
    let selection = Selection { name: Some("other".to_owned()), sequence: None };
    refused(remote.pull(&home.path("n"), &PullOptions { selection, ..options }).await, ErrorKind::NotFound, "`other`");
}

#[tokio::test]
async fn one_number_is_one_release() {
    let home = Home::new();
    let (remote, ..) = remote();
    home.pack("r", 1, &model(1000, 1));
    home.pack("other", 1, &model(1000, 2));
    remote.push(&home.path("r"), Check::Sizes).await.unwrap();
    refused(remote.push(&home.path("other"), Check::Sizes).await, ErrorKind::Exists, "another content");
    // It may be signed afterwards.
    home.sign("r");
    remote.push(&home.path("r"), Check::Sizes).await.unwrap();
    let (release, _) = remote.pull(&home.path("p"), &PullOptions::default()).await.unwrap();
    signing::verify(&release, &home.trust()).unwrap();
}

/// What a server does: it opens what is the newest, and keeps what it fetched.
#[tokio::test]
async fn a_release_is_opened_where_it_is() {
    let home = Home::new();
    let (remote, _, left) = remote();
    let (trust, floor) = (home.trust(), Floor::at(home.path("floor.json")));
    let options = OpenOptions { trust: &trust, keys: Some(home.keys.as_ref()), floor: Some(&floor) };
    let (cache, newest) = (home.path("cache"), Selection::default());
    home.pack("r1", 1, &model(1 << 20, 1));
    seal(&home.path("r1"), &home.path("s1"), home.keys.as_ref(), "seal").unwrap();
    home.sign("s1");
    home.pack("r2", 2, &model(1 << 20, 2));
    home.pack("r3", 3, &fine_tuned(1 << 20, 0..10));
    refused(remote.open_release(&newest, &cache, &options).await.map(drop), ErrorKind::NotFound, "no such release");
    remote.push(&home.path("s1"), Check::Sizes).await.unwrap();
    let opened = remote.open_release(&newest, &cache, &options).await.unwrap();
    assert!(!opened.load("a").unwrap().model.is_empty());
    // The key was wrapped anew elsewhere: only that travels.
    rekey(&home.path("s1"), home.keys.as_ref(), home.keys.as_ref(), "other").unwrap();
    remote.push(&home.path("s1"), Check::Sizes).await.unwrap();
    left.store(1 << 20, Ordering::SeqCst);
    assert!(remote.open_release(&newest, &cache, &options).await.is_ok());
    left.store(i64::MAX, Ordering::SeqCst);
    // The newest is one that nobody signed; then one that was.
    remote.push(&home.path("r2"), Check::Sizes).await.unwrap();
    refused(remote.open_release(&newest, &cache, &options).await.map(drop), ErrorKind::Unverified, "is not signed");
    home.sign("r2");
    remote.push(&home.path("r2"), Check::Sizes).await.unwrap();
    assert_eq!(remote.open_release(&newest, &cache, &options).await.unwrap().manifest().sequence, 2);
    let first = Selection { sequence: Some(1), ..Selection::default() };
    refused(remote.open_release(&first, &cache, &options).await.map(drop), ErrorKind::Downgrade, "older than 2");
    home.sign("r3");
    remote.push(&home.path("r3"), Check::Sizes).await.unwrap();
    assert_eq!(remote.open_release(&newest, &cache, &options).await.unwrap().manifest().sequence, 3);
}

#[tokio::test]
async fn sealed_releases_travel_sealed_and_are_rekeyed_in_place() {
    let home = Home::new();
    let (remote, ..) = remote();
    home.pack("r", 1, &model(300_000, 1));
    seal(&home.path("r"), &home.path("s"), home.keys.as_ref(), "seal").unwrap();
    home.sign("s");
    remote.push(&home.path("s"), Check::Sizes).await.unwrap();
    rekey(&home.path("s"), home.keys.as_ref(), home.keys.as_ref(), "other").unwrap();
    let report = remote.push(&home.path("s"), Check::Sizes).await.unwrap();
    assert_eq!(report.sent_bytes, 0, "{report:?}");
    remote.pull(&home.path("p"), &PullOptions::default()).await.unwrap();
    pulled(&home, "p", &home.path("s"));
    assert!(Release::open(&home.path("p")).unwrap().manifest().is_sealed());
}
