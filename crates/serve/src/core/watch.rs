//! Follows the files of the repositories: what changed is loaded, what is gone is unloaded.
//!
//! The system's notifications only say when to look. What is looked at are sizes and times, twice, so that a file
//! that is still being written is left alone; and the clock looks too, where notifications do not come.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::stream::{self, StreamExt as _};
use notify::{EventKind, RecursiveMode, Watcher as _, event::AccessKind};
use tokio::sync::mpsc;

use crate::core::{
    ModelControl, Server,
    catalogue::{Catalogue, Reach},
    repository,
    server::WeakServer,
    snapshot::Snapshot,
};

/// A file that is the same after this long is taken for whole.
const SETTLE: Duration = Duration::from_millis(200);

/// All models as they lie there.
pub(super) type Look = BTreeMap<String, Snapshot>;

/// Looks at every model. What was found `before` spares reading files that have not changed.
pub(super) fn look(catalogue: &Catalogue, before: &Look) -> Look {
    let Ok(names) = catalogue.look(Reach::Everywhere) else {
        // A folder that cannot be read just now says nothing of what was in it.
        return before.clone();
    };
    let found = |name: String| {
        let Ok(found) = catalogue.find(&name) else {
            // It is there twice by now, or no release where only those are taken: what serves goes on.
            return before.get(&name).cloned().map(|snapshot| (name, snapshot));
        };
        let snapshot = catalogue.snapshot(&found?, before.get(&name));
        Some((name, snapshot))
    };
    names.into_iter().filter_map(found).collect()
}

/// What is to be done about a model.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Load,
    Unload,
}

/// Models that differ from what was last `acted` upon, and did not change since the look `before`.
fn changes(acted: &Look, before: &Look, now: &Look) -> BTreeMap<String, Change> {
    let names: BTreeSet<&String> = acted.keys().chain(now.keys()).collect();
    let settled = names.into_iter().filter(|name| before.get(*name) == now.get(*name));
    let changed = settled.filter(|name| acted.get(*name) != now.get(*name));
    changed.map(|name| (name.clone(), if now.contains_key(name) { Change::Load } else { Change::Unload })).collect()
}

/// Follows the files until the server is gone. `acted` is what the models were loaded from.
pub(super) async fn follow(server: WeakServer, repositories: Vec<PathBuf>, interval: Duration, mut acted: Look) {
    let (wake, mut woken) = mpsc::channel(1);
    let _watcher = notifications(&repositories, wake);
    let (mut before, mut missing) = (acted.clone(), BTreeSet::new());
    loop {
        // Asked before the look: what is loaded meanwhile may lie there since.
        let Some((serving, catalogue)) =
            server.upgrade().map(|server| (server.loaded_from_files(), server.catalogue().clone()))
        else {
            return;
        };
        let Ok((now, seen)) = tokio::task::spawn_blocking(move || (look(&catalogue, &before), before)).await else {
            return;
        };
        before = seen;
        let Some(server) = server.upgrade() else { return };
        let mut changes = changes(&acted, &before, &now);
        // An ensemble or a call may have loaded what was never acted upon here.
        let absent: BTreeSet<String> = serving.into_iter().filter(|name| !now.contains_key(name)).collect();
        changes.extend(absent.intersection(&missing).map(|name| (name.clone(), Change::Unload)));
        for name in changes.keys() {
            match now.get(name) {
                Some(snapshot) => drop(acted.insert(name.clone(), snapshot.clone())),
                None => drop(acted.remove(name)),
            }
        }
        try_again(&server, &changes).await;
        act(&server, changes, &now).await;
        drop(server);
        let moving = before != now || absent != missing;
        (before, missing) = (now, absent);
        if moving {
            tokio::time::sleep(SETTLE).await;
            continue;
        }
        tokio::select! {
            Some(()) = woken.recv() => {}
            () = tokio::time::sleep(interval) => {}
        }
    }
}

async fn act(server: &Server, changes: BTreeMap<String, Change>, now: &Look) {
    if changes.is_empty() {
        return;
    }
    let one = |(name, change): (String, Change)| async move {
        let filled = now.get(&name).is_some_and(Snapshot::has_versions) || server.is_ensemble(&name);
        let (loaded, failed) = (server.is_loaded(&name), server.past(&name).failure.is_some());
        let asked = loaded || failed || *server.control() == ModelControl::Fixed;
        match change {
            Change::Load if filled && asked => load(server, &name).await,
            Change::Load | Change::Unload if loaded || failed => {
                tracing::info!(model = name, "its files are gone");
                // Failed is the same as unloaded to who removed it.
                let _ = server.unload(&name, false).await;
            }
            _ => {}
        }
    };
    stream::iter(changes).for_each_concurrent(server.loads_at_once(), one).await;
    // What an ensemble waited for may have come.
    for name in server.failed().into_iter().filter(|name| server.is_ensemble(name)) {
        load(server, &name).await;
    }
}

/// Loads what failed for a key service or a place that did not answer, unless its files have changed and are looked at for that.
async fn try_again(server: &Server, changes: &BTreeMap<String, Change>) {
    for name in server.history().to_be_tried().into_iter().filter(|name| !changes.contains_key(name)) {
        load(server, &name).await;
    }
}

async fn load(server: &Server, name: &str) {
    if let Err(error) = server.reload_changed(name).await {
        let serves = server.is_loaded(name);
        tracing::error!(model = name, %error, serves, "changed files do not load");
    }
}

/// Wakes at each change that the system tells of. The answer ends it when dropped.
fn notifications(repositories: &[PathBuf], wake: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let told = move |event: Result<notify::Event, notify::Error>| {
        let write = AccessKind::Close(notify::event::AccessMode::Write);
        let reads = event.is_ok_and(|e| matches!(e.kind, EventKind::Access(kind) if kind != write));
        if !reads {
            // A full channel already holds the news.
            let _ = wake.try_send(());
        }
    };
    let watched = notify::recommended_watcher(told).and_then(|mut watcher| {
        for path in repositories {
            match path.parent().filter(|_| path.is_file()) {
                Some(folder) => watcher.watch(folder, RecursiveMode::NonRecursive)?,
                None => watcher.watch(path, RecursiveMode::Recursive)?,
            }
            // A release is replaced whole, by another folder of its name.
            if let Some(folder) = path.parent().filter(|_| repository::is_release(path)) {
                let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                watcher.watch(folder, RecursiveMode::NonRecursive)?;
            }
        }
        Ok(watcher)
    });
    watched.inspect_err(|error| tracing::warn!(%error, "no notifications of changed files; only the clock looks")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ServerConfig;

    #[test]
    fn what_settled_and_differs_is_acted_upon() {
        let folder = tempfile::tempdir().unwrap();
        let look_at = |files: &[(&str, &str)]| {
            let at = tempfile::tempdir_in(folder.path()).unwrap();
            for (name, text) in files {
                let path = folder.path().join("r").join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            drop(at);
            let config = ServerConfig { repositories: vec![folder.path().join("r")], ..ServerConfig::default() };
            look(&Catalogue::new(&config), &Look::new())
        };
        let first = look_at(&[("a/1/model.onnx", "1"), ("b/1/model.onnx", "1")]);
        assert!(changes(&first, &first, &first).is_empty());
        let second = look_at(&[("a/2/model.onnx", "12"), ("c.onnx", "1")]);
        assert!(changes(&first, &first, &second).is_empty(), "nothing has settled");
        let loads = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), Change::Load)).collect::<BTreeMap<_, _>>();
        assert_eq!(changes(&first, &second, &second), loads(&["a", "c"]));
        let third = look_at(&[("c.onnx", "123")]);
        assert_eq!(changes(&first, &second, &third), loads(&["a"]), "`c` is still being written");
        std::fs::remove_dir_all(folder.path().join("r/b")).unwrap();
        let gone = look_at(&[]);
        assert_eq!(changes(&third, &gone, &gone), BTreeMap::from([("b".to_owned(), Change::Unload)]));
    }
}
