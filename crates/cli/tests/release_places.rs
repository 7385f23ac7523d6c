//! Releases in the places that they are pushed to: one suite over a folder, S3, Azure Blob Storage and Google Cloud Storage, through the
//! binary. A place whose stand-in is not installed is skipped, and says so. Google's is only read: fake-gcs-server 1.56.1 refuses the uploads
//! of the XML interface (`invalid uploadType`), which is the one that object_store speaks, and takes them by the JSON interface.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use edgeward_graph::Model;
use serde_json::Value;

#[allow(dead_code, reason = "each test file uses a part of it")]
#[path = "../../store/tests/release/support.rs"]
mod releases;
mod support;

/// A place and what the binary must know to reach it.
struct Place {
    address: String,
    environment: Vec<(&'static str, String)>,
    /// Ended when dropped.
    _server: Option<Server>,
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Adds weights that do not compress.
fn model(weights: usize, changed: usize) -> Model {
    let mut values = releases::numbers(weights, 1);
    values.iter_mut().take(changed).for_each(|value| *value += 1.0);
    releases::model_of(values)
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap()
}

struct Home<'p> {
    folder: tempfile::TempDir,
    place: &'p Place,
}

impl Home<'_> {
    fn run(&self, words: &str) -> Output {
        let words = words.replace("PLACE", &self.place.address);
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
        command.args(words.split(' ')).envs(self.place.environment.clone()).current_dir(self.folder.path());
        command.output().unwrap()
    }

    fn json(&self, words: &str) -> Value {
        let output = self.run(&format!("{words} --json"));
        assert!(output.status.success(), "{words}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn fails(&self, words: &str) -> String {
        let output = self.run(words);
        assert!(!output.status.success(), "{words}: {}", said(&output));
        said(&output)
    }

    /// What a server makes of the place.
    fn served(&self) -> Value {
        let at = |name: &str| self.folder.path().join(name).to_str().unwrap().to_owned();
        let (key, floor, cache) = (at("release.pub"), at("floor.json"), at("cache"));
        let arguments =
            ["--engine", "rten", "--public-key", &key, "--floor", &floor, "--release-cache", &cache, "--releases-only"];
        let server = support::Server::start_with(&[Path::new(&self.place.address)], &arguments, |command| {
            command.envs(self.place.environment.clone());
        });
        serde_json::from_str(&server.ask("POST", "/v2/repository/index", "", b"{}").1).unwrap()
    }

    fn files(&self, folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let root = self.folder.path().join(folder);
        let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
        while let Some(inner) = folders.pop() {
            for entry in fs::read_dir(inner).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push((path.strip_prefix(&root).unwrap().to_owned(), fs::read(path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What every place keeps.
fn contract(place: &Place) -> Home<'_> {
    let home = Home { folder: tempfile::tempdir().unwrap(), place };
    written(&home);
    read(&home);
    home
}

/// Two releases are pushed; the second sends little.
fn written(home: &Home<'_>) {
    // Two uploads in parts, and something that is only a little different.
    for (sequence, changed) in [(1, 0), (2, 1000)] {
        model(10 << 20, changed).write(home.folder.path().join("m.onnx")).unwrap();
        home.json(&format!(
            "release pack m.onnx --out r{sequence} --name chest --version 1.{sequence} --sequence {sequence}"
        ));
        home.json(&format!("release sign r{sequence} --keys keys --write-public-key release.pub"));
    }
    let first = home.json("release push r1 PLACE");
    assert_eq!(number(&first, "sent_bytes"), number(&first, "total_bytes"));
    let second = home.json("release push r2 PLACE");
    assert!(number(&second, "sent_bytes") < number(&second, "total_bytes") / 10, "{second}");
    assert_eq!(number(&home.json("release push r2 PLACE"), "sent_bytes"), 0);
    // Another release with a number that is taken.
    model(100, 0).write(home.folder.path().join("m.onnx")).unwrap();
    home.json("release pack m.onnx --out other --name chest --version 1.2 --sequence 2");
    assert!(home.fails("release push other PLACE").contains("another content"));
}

/// They are listed, pulled, checked and served.
fn read(home: &Home<'_>) {
    let listed = home.json("release list PLACE");
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");

    let trusted = "--public-key release.pub --floor floor.json";
    home.json(&format!("release pull PLACE p1 --sequence 1 {trusted}"));
    assert_eq!(home.files("p1"), home.files("r1"));
    let delta = &home.json(&format!("release pull PLACE p2 --have p1 {trusted}"))["transfer"];
    assert_eq!(home.files("p2"), home.files("r2"));
    assert!(number(delta, "fetched_bytes") < number(delta, "total_bytes") / 10, "{delta}");
    home.json("release verify p2 --public-key release.pub");
    // Back to the first is a downgrade now, and nothing of it stays.
    let refused = home.fails(&format!("release pull PLACE p3 --sequence 1 {trusted}"));
    assert!(refused.contains("is older than 2") && !home.folder.path().join("p3").exists(), "{refused}");
    home.json("release sign r1 --keys others --write-public-key others.pub");
    let refused = home.fails("release pull PLACE p3 --public-key others.pub");
    assert!(refused.contains("not trusted here") && !home.folder.path().join("p3").exists(), "{refused}");
    assert!(home.fails("release pull PLACE p3").contains("whose signature is to be taken?"));
    assert!(home.fails("release pull PLACE p3 --name lungs --unverified").contains("no such release of `lungs`"));
    // A server takes the newest from there.
    assert_eq!(home.served(), serde_json::json!([{ "name": "chest", "version": "2", "state": "READY", "reason": "" }]));
}

/// The value of a variable that `cargo xtask test` sets; none where the part is not installed.
fn part(variable: &str) -> Option<PathBuf> {
    let found = env::var_os(variable).filter(|value| !value.is_empty());
    if found.is_none() {
        println!("skipped: {variable} is not set (`cargo xtask test` sets it)");
        assert!(env::var_os("EDGEWARD_ALL_PARTS").is_none_or(|all| all != "1"), "{variable}: a part is missing");
    }
    found.map(PathBuf::from)
}

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn start(command: &mut Command, port: u16) -> Server {
    let mut server = Server(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(server.0.try_wait().unwrap().is_none(), "{command:?} ended");
        std::thread::yield_now();
    }
    server
}

/// One request; the status of its answer.
fn ask(port: u16, method: &str, path: &str, headers: &str, body: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_folder_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let address = folder.path().join("releases here").join("deep");
    // The words of a command are cut at spaces here.
    let address = address.to_str().unwrap().replace(' ', "-");
    contract(&Place { address, environment: Vec::new(), _server: None });
}

#[test]
fn s3_keeps_the_contract() {
    let Some(python) = part("EDGEWARD_TEST_MOTO") else { return };
    let port = free_port();
    let mut command = Command::new(python);
    command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
    let server = start(&mut command, port);
    assert_eq!(
        ask(
            port,
            "PUT",
            "/models",
            "authorization: AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n",
            b""
        ),
        200
    );
    let environment = vec![
        ("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_ACCESS_KEY_ID", "a".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "b".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ];
    let place = Place { address: "s3://models/some/prefix".to_owned(), environment, _server: None };
    let home = contract(&place);
    // The link is gone: what was kept serves, and a machine that has nothing says why.
    drop(server);
    assert_eq!(home.served()[0]["state"], "READY");
    let said = home.fails("serve PLACE --insecure --public-key release.pub --release-cache nothing");
    assert!(said.contains("the releases of `s3://models/some/prefix` cannot be listed"), "{said}");
}

#[test]
fn azure_blob_storage_keeps_the_contract() {
    let Some(modules) = part("EDGEWARD_TEST_NODE_MODULES") else { return };
    let main = modules.join("azurite/dist/src/blob/main.js");
    if !main.exists() {
        println!("skipped: `azurite` is not installed");
        assert!(env::var_os("EDGEWARD_ALL_PARTS").is_none_or(|all| all != "1"), "a part is missing");
        return;
    }
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("node");
    command.arg(main).args(["--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]);
    command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]).current_dir(folder.path());
    let server = start(&mut command, port);
    let environment = vec![
        ("AZURE_STORAGE_USE_EMULATOR", "true".to_owned()),
        ("AZURITE_BLOB_STORAGE_URL", format!("http://127.0.0.1:{port}")),
    ];
    make_container(port);
    contract(&Place { address: "az://models/some/prefix".to_owned(), environment, _server: Some(server) });
}

#[test]
fn google_cloud_storage_is_read() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-env/bin/fake-gcs-server");
    if !program.exists() {
        println!("skipped: no `fake-gcs-server` (`cargo xtask test` builds it where Go is)");
        assert!(env::var_os("EDGEWARD_ALL_PARTS").is_none_or(|all| all != "1"), "a part is missing");
        return;
    }
    let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
    let mut command = Command::new(program);
    command.args(["-scheme", "http", "-host", "127.0.0.1", "-port", &port.to_string(), "-backend", "memory"]);
    command.args(["-external-url", &format!("http://127.0.0.1:{port}"), "-public-host", &format!("127.0.0.1:{port}")]);
    let server = start(&mut command, port);
    assert_eq!(ask(port, "POST", "/storage/v1/b", "", b"{\"name\":\"models\"}"), 200);

    let pushed = folder.path().join("pushed");
    let pushed = Place { address: pushed.to_str().unwrap().to_owned(), environment: Vec::new(), _server: None };
    let home = Home { folder: tempfile::tempdir().unwrap(), place: &pushed };
    written(&home);
    for (name, bytes) in home.files(&pushed.address) {
        let name = format!("some/prefix/{}", name.to_str().unwrap()).replace('/', "%2F");
        let path = format!("/upload/storage/v1/b/models/o?uploadType=media&name={name}");
        assert_eq!(ask(port, "POST", &path, "", &bytes), 200);
    }
    let account = folder.path().join("account.json");
    let said = serde_json::json!({
        "gcs_base_url": format!("http://127.0.0.1:{port}"), "disable_oauth": true,
        "client_email": "", "private_key": "", "private_key_id": "",
    });
    fs::write(&account, said.to_string()).unwrap();
    let environment = vec![("GOOGLE_SERVICE_ACCOUNT_PATH", account.to_str().unwrap().to_owned())];
    let place = Place { address: "gs://models/some/prefix".to_owned(), environment, _server: Some(server) };
    read(&Home { folder: home.folder, place: &place });
}

/// The account and key that Azurite documents for everybody; the request is signed by Python, whose standard library can.
fn make_container(port: u16) {
    let script = r#"
import base64, email.utils, hashlib, hmac, http.client, sys
key = base64.b64decode("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==")
date = email.utils.formatdate(usegmt=True)
text = "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:%s\nx-ms-version:2021-08-06\n/devstoreaccount1/devstoreaccount1/models\nrestype:container" % date
sign = base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
c = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
c.request("PUT", "/devstoreaccount1/models?restype=container", headers={"x-ms-date": date, "x-ms-version": "2021-08-06", "authorization": "SharedKey devstoreaccount1:" + sign})
r = c.getresponse()
assert r.status == 201, (r.status, r.read())
"#;
    let output = Command::new("python3").args(["-c", script, &port.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}
