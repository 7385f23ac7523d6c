//! Programs by others read what this crate writes: Tessera's `fsck`, which checks logs of C2SP tlog-tiles.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Place, record};

/// A program that `cargo xtask test` builds.
pub fn tool(name: &str) -> Option<Command> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("target/test-env/bin").join(name);
    if !path.exists() {
        println!("skipped: no `{name}` (`cargo xtask test` builds it where Go is)");
        return None;
    }
    Some(Command::new(path))
}

/// Serves a folder over HTTP as a log's monitor expects it; the thread ends with the process.
fn serve(folder: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let folder = folder.clone();
            std::thread::spawn(move || answer(stream, &folder));
        }
    });
    format!("http://{address}/")
}

fn answer(mut stream: TcpStream, folder: &Path) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or("/").trim_start_matches('/');
    let (status, body) = fs::read(folder.join(path)).map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    let header = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // The other side may have enough.
    let _ = stream.write_all(&[header.as_bytes(), &body].concat());
}

/// What `fsck` finds wrong; its exit code says nothing.
fn fsck(place: &Place) -> Option<Vec<String>> {
    let key = place.root().join("log.vkey");
    fs::write(&key, place.signer().key().to_string()).unwrap();
    let url = format!("--storage_url={}", serve(place.log()));
    let public_key = format!("--public_key={}", key.display());
    let output = tool("fsck")?.args([url.as_str(), &public_key, "--ui=false", "--N=4"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("checkpoint:") || text.contains("Fsck"), "it did not read the log: {text}");
    let wrong = |line: &&str| line.starts_with(['E', 'F', 'W']) || line.contains("failed");
    Some(text.lines().filter(wrong).map(str::to_owned).collect())
}

#[test]
fn another_implementation_checks_the_whole_log() {
    let place = Place::new();
    for more in [1, 254, 1, 1, 700, 65_600] {
        place.add(more);
        let Some(wrong) = fsck(&place) else { return };
        assert!(wrong.is_empty(), "after {more} more: {wrong:?}");
    }
    // It does find what this crate finds.
    let path = place.log().join("tile/entries/001");
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_ne!(fsck(&place).unwrap(), [""; 0]);
    assert_eq!(place.verify().findings.len(), 1);
}

#[test]
fn another_implementation_checks_a_log_that_is_written_to() {
    let place = Place::with_records(500);
    let log = place.open();
    log.append(&record(500)).unwrap().wait().unwrap();
    let Some(wrong) = fsck(&place) else { return };
    assert!(wrong.is_empty(), "{wrong:?}");
}
