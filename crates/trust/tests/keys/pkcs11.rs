//! PKCS#11 against SoftHSM, with keys that other tools of PKCS#11 make and see.
//!
//! `EDGEWARD_TEST_PKCS11` names `libsofthsm2.so`; `softhsm2-util` and `pkcs11-tool` are on the path.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use cryptoki::context::Pkcs11 as Library;
use edgeward_trust::{
    ErrorKind,
    keys::{KeyKind, KeyProvider as _, Pkcs11, Pkcs11Settings, SecretSource},
};

use super::{
    contract::{SIGNS, contract},
    part::part,
};

const PIN: &str = "5678";
/// The folder with the tokens, for the process that a test runs in.
const FOLDER: &str = "EDGEWARD_TEST_TOKENS";

/// Tokens in a folder, and the library that reads them.
struct SoftHsm {
    library: PathBuf,
    folder: PathBuf,
}

/// Runs the test `name` again in a process of its own, whose library has the tokens `edge` and twice `twin`: where they are is told
/// it by the environment, and it reads that once. Gives the tokens in that process, none in the first.
fn softhsm(name: &str) -> Option<SoftHsm> {
    let library = part("EDGEWARD_TEST_PKCS11", "the library libsofthsm2.so")?;
    if let Some(folder) = std::env::var_os(FOLDER) {
        return Some(SoftHsm { library, folder: folder.into() });
    }
    let folder = tempfile::tempdir().unwrap();
    let (tokens, config) = (folder.path().join("tokens"), folder.path().join("softhsm2.conf"));
    fs::create_dir(&tokens).unwrap();
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
    fs::write(&config, text).unwrap();
    for label in ["edge", "twin", "twin"] {
        let arguments = ["--init-token", "--free", "--label", label, "--so-pin", "1234", "--pin", PIN];
        run(Command::new("softhsm2-util").args(arguments).env("SOFTHSM2_CONF", &config));
    }
    let again = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("pkcs11::{name}"), "--nocapture"])
        .envs([("SOFTHSM2_CONF", config.as_path()), (FOLDER, folder.path())])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success(), "{}\n{text}\n{}", again.status, String::from_utf8_lossy(&again.stderr));
    assert!(text.contains("1 passed"), "no test `{name}`: {text}");
    None
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

impl SoftHsm {
    fn settings(&self) -> Pkcs11Settings {
        let pin = self.folder.join("pin");
        write_private(&pin, PIN);
        Pkcs11Settings {
            module: self.library.clone(),
            token: "edge".to_owned(),
            pin: SecretSource::File(pin),
            sessions_max: 4,
        }
    }

    fn open(&self) -> Pkcs11 {
        Pkcs11::open(self.settings()).unwrap()
    }

    /// Another program's view of the token.
    fn tool(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(&self.library).args(["--token-label", "edge", "--login", "--pin", PIN]);
        run(command.args(arguments))
    }
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_token_keeps_the_contract() {
    let Some(hsm) = softhsm("a_token_keeps_the_contract") else { return };
    let provider = hsm.open();
    contract(&provider, SIGNS);
    // What was made is there for the next process, and unwraps what was wrapped before.
    let wrapped = provider.wrap("contract-wrap", b"data key", b"c").unwrap();
    let again = hsm.open();
    assert_eq!(again.list().unwrap(), provider.list().unwrap());
    assert_eq!(**again.unwrap("contract-wrap", &wrapped, b"c").unwrap(), *b"data key");
}

#[test]
fn keys_never_leave_the_token_and_others_tools_share_them() {
    let Some(hsm) = softhsm("keys_never_leave_the_token_and_others_tools_share_them") else { return };
    let provider = hsm.open();
    provider.create("made-here", KeyKind::Wrapping).unwrap();
    provider.create("signs-here", KeyKind::P256).unwrap();
    let objects = hsm.tool(&["--list-objects"]);
    for object in objects.split("Secret Key Object").skip(1).chain(objects.split("Private Key Object").skip(1)) {
        assert!(object.contains("sensitive, always sensitive, never extractable"), "{objects}");
    }
    // Keys that others made by the provider's naming are its keys.
    hsm.tool(&["--keygen", "--key-type", "AES:32", "--label", "made-there", "--id", "01"]);
    hsm.tool(&["--keygen", "--key-type", "AES:32", "--label", "made-there", "--id", "0100"]);
    hsm.tool(&["--keypairgen", "--key-type", "EC:prime256v1", "--label", "signs-there", "--id", "02"]);
    // Those of other kinds, or named otherwise, are not.
    hsm.tool(&["--keygen", "--key-type", "AES:16", "--label", "short", "--id", "01"]);
    hsm.tool(&["--keygen", "--key-type", "AES:32", "--label", "Not Ours", "--id", "01"]);
    hsm.tool(&["--keygen", "--key-type", "AES:32", "--label", "no-number", "--id", "00"]);
    hsm.tool(&["--keypairgen", "--key-type", "rsa:2048", "--label", "rsa", "--id", "01"]);
    hsm.tool(&["--keypairgen", "--key-type", "EC:secp384r1", "--label", "p384", "--id", "01"]);
    let keys = provider.list().unwrap();
    let numbers = |id: &str| {
        let key = keys.iter().find(|key| key.id == id).unwrap();
        key.versions.iter().map(|version| version.number).collect::<Vec<_>>()
    };
    assert_eq!(
        keys.iter().map(|key| key.id.as_str()).collect::<Vec<_>>(),
        ["made-here", "made-there", "signs-here", "signs-there"]
    );
    assert_eq!((numbers("made-there"), numbers("signs-there")), (vec![1, 256], vec![2]));
    assert_eq!(provider.rotate("made-there").unwrap().versions.last().unwrap().number, 257);
    let wrapped = provider.wrap("made-there", b"data key", b"c").unwrap();
    assert_eq!(**provider.unwrap("made-there", &wrapped, b"c").unwrap(), *b"data key");

    // A signature of the provider is good for openssl, by the public key that the other tool reads.
    let file = |name: &str| hsm.folder.join(name);
    fs::write(file("message"), b"release 7").unwrap();
    fs::write(file("signature"), provider.sign("signs-there", b"release 7").unwrap()).unwrap();
    let public = file("public.der");
    hsm.tool(&["--read-object", "--type", "pubkey", "--id", "02", "--output-file", public.to_str().unwrap()]);
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-keyform", "DER", "-verify"]).arg(public);
    assert!(run(openssl.arg("-signature").arg(file("signature")).arg(file("message"))).contains("Verified OK"));
}

#[test]
fn many_callers_share_few_sessions() {
    let Some(hsm) = softhsm("many_callers_share_few_sessions") else { return };
    let provider = Pkcs11::open(Pkcs11Settings { sessions_max: 2, ..hsm.settings() }).unwrap();
    provider.create("wraps", KeyKind::Wrapping).unwrap();
    thread::scope(|scope| {
        for caller in 0..12_u8 {
            let provider = &provider;
            scope.spawn(move || {
                for turn in 0..10_u8 {
                    let wrapped = provider.wrap("wraps", &[caller; 32], &[turn]).unwrap();
                    assert_eq!(**provider.unwrap("wraps", &wrapped, &[turn]).unwrap(), [caller; 32]);
                }
            });
        }
    });
    // SoftHSM fails to make a key beside other sessions now and then (`GeneralError of GenerateKey`), so these come one by one.
    (0..3).for_each(|_| drop(provider.rotate("wraps").unwrap()));
    let numbers: Vec<u32> = provider.describe("wraps").unwrap().versions.iter().map(|v| v.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
}

#[test]
fn a_library_that_was_ended_is_started_again() {
    let Some(hsm) = softhsm("a_library_that_was_ended_is_started_again") else { return };
    let provider = hsm.open();
    provider.create("wraps", KeyKind::Wrapping).unwrap();
    let wrapped = provider.wrap("wraps", b"data key", b"").unwrap();
    // As another user of the library in this process may do: all sessions end, and the login.
    Library::new(&hsm.library).unwrap().finalize().unwrap();
    assert_eq!(**provider.unwrap("wraps", &wrapped, b"").unwrap(), *b"data key");
    Library::new(&hsm.library).unwrap().finalize().unwrap();
    assert_eq!(provider.rotate("wraps").unwrap().versions.len(), 2);
}

/// Three wrong PINs lock a real token: one is all that a provider tries.
#[test]
fn a_wrong_pin_is_tried_once() {
    let Some(hsm) = softhsm("a_wrong_pin_is_tried_once") else { return };
    let provider = hsm.open();
    let settings = hsm.settings();
    provider.create("a", KeyKind::Wrapping).unwrap();
    write_private(&hsm.folder.join("pin"), "0000");
    Library::new(&hsm.library).unwrap().finalize().unwrap();
    for _ in 0..5 {
        let error = provider.wrap("a", b"k", b"").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unverified, "{error}");
        assert!(error.to_string().contains("refused the PIN") && !error.to_string().contains("0000"), "{error}");
    }
    write_private(&hsm.folder.join("pin"), PIN);
    assert_eq!(Pkcs11::open(settings).unwrap().list().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_opened_says_why() {
    let Some(hsm) = softhsm("what_cannot_be_opened_says_why") else { return };
    let refused = |change: &dyn Fn(&mut Pkcs11Settings)| {
        let mut settings = hsm.settings();
        change(&mut settings);
        let error = Pkcs11::open(settings).err().unwrap();
        (error.kind(), error.to_string())
    };
    let no_library = hsm.folder.join("pin");
    let rows = [
        (refused(&|s| s.module = "/nowhere/lib.so".into()), ErrorKind::Invalid, "/nowhere/lib.so"),
        (refused(&|s| s.module = no_library.clone()), ErrorKind::Invalid, "no PKCS#11 library"),
        (refused(&|s| s.token = "other".into()), ErrorKind::NotFound, "the library has `edge`, `twin`, `twin`"),
        (refused(&|s| s.token = "twin".into()), ErrorKind::Invalid, "2 tokens have this label"),
        (refused(&|s| s.sessions_max = 0), ErrorKind::Invalid, "at least 1"),
        (refused(&|s| s.pin = SecretSource::File("/nowhere/pin".into())), ErrorKind::Unavailable, "/nowhere/pin"),
        (refused(&|s| s.pin = SecretSource::Env("EDGEWARD_NO_PIN".into())), ErrorKind::Unavailable, "EDGEWARD_NO_PIN"),
    ];
    for ((kind, text), expected, part) in rows {
        let sorted = text
            .replace("`twin`, `twin`, `edge`", "`edge`, `twin`, `twin`")
            .replace("`twin`, `edge`, `twin`", "`edge`, `twin`, `twin`");
        assert!(kind == expected && sorted.contains(part), "{kind:?}: {text}");
    }
    let pin = hsm.folder.join("open-pin");
    fs::write(&pin, PIN).unwrap();
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o644)).unwrap();
    let (kind, text) = refused(&|s| s.pin = SecretSource::File(pin.clone()));
    assert!(kind == ErrorKind::Invalid && text.contains("others may read it (mode 644)"), "{text}");
    let settings = "module = \"lib.so\"\ntoken = \"edge\"\npin = { env = \"HSM_PIN\" }\n";
    let read: Pkcs11Settings = toml::from_str(settings).unwrap();
    assert_eq!((read.pin, read.sessions_max), (SecretSource::Env("HSM_PIN".into()), 8));
    assert!(toml::from_str::<Pkcs11Settings>(&settings.replace("pin = ", "pni = ")).is_err());
    // The PIN itself has no place among the settings.
    assert!(toml::from_str::<Pkcs11Settings>(&settings.replace("{ env = \"HSM_PIN\" }", "\"5678\"")).is_err());
}
