//! Keys and certificates of others, through the binary: an authority in a token, a server that is certified by SPIRE or by OpenBao.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use bao::Bao;
use part::part;
use spire_part::Spire;
use support::{Server, repository, trust::Trust};

#[allow(dead_code, reason = "each test file uses a part of it")]
#[path = "../../trust/tests/parts/bao.rs"]
mod bao;
#[path = "../../trust/tests/parts/part.rs"]
mod part;
#[allow(dead_code, reason = "each test file uses a part of it")]
#[path = "../../trust/tests/parts/spire.rs"]
mod spire_part;
mod support;

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn secret(path: PathBuf, text: &str) {
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// `trust` with a token that the environment of the process names.
fn trust(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
    command.arg("trust").args(arguments).env("SOFTHSM2_CONF", config).output().unwrap()
}

#[test]
fn an_authority_signs_with_a_token() {
    let Some(library) = part("EDGEWARD_TEST_PKCS11", "the library libsofthsm2.so") else { return };
    let files = tempfile::tempdir().unwrap();
    let (tokens, config, folder) =
        (files.path().join("tokens"), files.path().join("softhsm2.conf"), files.path().join("trust"));
    fs::create_dir(&tokens).unwrap();
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
    fs::write(&config, text).unwrap();
    let init = ["--init-token", "--free", "--label", "edge", "--so-pin", "1234", "--pin", "5678"];
    run(Command::new("softhsm2-util").args(init).env("SOFTHSM2_CONF", &config));
    let pin = files.path().join("pin");
    secret(pin.clone(), "5678\n");
    let settings = files.path().join("keys.toml");
    let text = format!("provider = \"pkcs11\"\nmodule = {library:?}\ntoken = \"edge\"\npin = {{ file = {pin:?} }}\n");
    fs::write(&settings, text).unwrap();

    let (at, keys) = (folder.to_str().unwrap(), settings.to_str().unwrap());
    let made = trust(&config, &["init", at, "--keys", keys, "--model", "ident"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // The intermediate's key is in the token, and only there.
    let mut list = Command::new("pkcs11-tool");
    list.arg("--module").arg(&library).args(["--token-label", "edge", "--login", "--pin", "5678", "--list-objects"]);
    let objects = run(list.env("SOFTHSM2_CONF", &config));
    assert!(objects.contains("label:      intermediate-1") && !objects.contains("root-1"), "{objects}");
    let out = folder.join("guest");
    let issued = trust(&config, &["issue", at, "guest", "--out", out.to_str().unwrap()]);
    assert!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-CAfile"]).arg(folder.join("roots.pem")).arg("-untrusted").arg(folder.join("guest.pem"));
    run(openssl.arg(folder.join("guest.pem")));

    // A server of that authority is certified by the token as well.
    let (models, log) = (repository(), files.path().join("log"));
    let server = Server::start_trusted_with(&[models.path()], &folder, &["--engine", "rten"], &log, |command| {
        command.env("SOFTHSM2_CONF", &config);
    });
    let caller = Trust { files };
    assert_eq!(caller.curl("admin", &format!("https://{}/v2/health/ready", server.http), &[]).status, 200);

    // With a wrong PIN nothing is issued, and the token's count of wrong ones is spared.
    secret(pin, "0000");
    let refused = trust(&config, &["issue", at, "other", "--out", out.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && text.contains("refused the PIN") && !text.contains("0000"), "{text}");
    assert_eq!(trust(&config, &["init", at, "--keys", "/nowhere/keys.toml"]).status.code(), Some(2));
}

/// A server whose certificate is another authority's.
fn serve(trust: &Trust, settings: &str) -> (tempfile::TempDir, Server) {
    let (models, config) = (repository(), trust.files.path().join("edgeward.toml"));
    fs::write(&config, settings).unwrap();
    let arguments = ["--engine", "rten", "--config", config.to_str().unwrap()];
    let server = Server::start_trusted(&[models.path()], &trust.folder(), &arguments, &trust.log());
    (models, server)
}

#[test]
fn a_server_and_its_callers_are_known_by_spire() {
    let Some(spire) = Spire::start() else { return };
    let trust = Trust::init(&["ident"]);
    let id = "spiffe://test.example/edge";
    spire.register(id, 3600);
    // A caller with an identity of SPIRE: this user's own, as its agent gives it.
    let (agent, given) = (spire.programs.join("spire-agent"), trust.folder());
    spire_part::until("the agent gives an identity", || {
        let mut fetch = Command::new(&agent);
        fetch.args(["api", "fetch", "x509", "-socketPath"]).arg(spire.file("agent.sock")).arg("-write").arg(&given);
        fetch.output().unwrap().status.success()
    });
    fs::rename(given.join("svid.0.pem"), given.join("workload.pem")).unwrap();
    fs::rename(given.join("svid.0.key"), given.join("workload.key")).unwrap();
    let (_models, server) = serve(&trust, &format!("[trust.workload_api]\nendpoint = {:?}\n", spire.endpoint()));
    let url = format!("https://{}/v2/health/ready", server.http);
    // Its certificate is of SPIRE's root, and names it; a host it does not name.
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-connect", &server.http, "-showcerts", "-verify_return_error", "-CAfile"]);
    let shown = run(openssl.arg(given.join("bundle.0.pem")).stdin(std::process::Stdio::null()));
    let mut text = Command::new("openssl");
    fs::write(trust.files.path().join("shown.pem"), &shown).unwrap();
    text.args(["x509", "-noout", "-ext", "subjectAltName", "-in"]).arg(trust.files.path().join("shown.pem"));
    assert!(run(&mut text).contains(&format!("URI:{id}")), "{shown}");
    // Callers are verified by SPIRE's roots, and by the own authority's, and by no other.
    assert_eq!(trust.curl("workload", &url, &["-k"]).status, 200);
    assert_eq!(trust.curl("admin", &url, &["-k"]).status, 200);
    assert_eq!(trust.curl("", &url, &["-k"]).status, 401);
}

#[test]
fn a_server_is_certified_by_openbao() {
    let Some(bao) = Bao::start() else { return };
    bao.run(&["secrets", "enable", "pki"]);
    let root = bao.run(&["write", "-field=certificate", "pki/root/generate/internal", "common_name=root", "ttl=24h"]);
    bao.run(&["write", "pki/roles/server", "allow_any_name=true", "key_type=ec", "key_bits=256", "max_ttl=1h"]);
    bao.policy("certified", "path \"pki/sign/server\" { capabilities = [\"update\"] }");
    let role = bao.approle("server", &["token_policies=certified"]);
    let edgeward_trust::keys::LoginSettings::Approle { role_id, .. } = role else { panic!("{role:?}") };
    let trust = Trust::init(&["ident"]);
    let settings = format!(
        "[trust.pki.server]\naddress = {:?}\nlogin = {{ method = \"approle\", role_id = {role_id:?}, secret_id = {{ file = {:?} }} }}\n\
         [trust.pki.certificate]\nrole = \"server\"\ndns = [\"localhost\"]\naddresses = [\"127.0.0.1\"]\n",
        bao.address,
        bao.file("server.secret")
    );
    let (_models, server) = serve(&trust, &settings);
    // `curl` verifies by this file. The server's own roots, which it reads again when they change, are what callers are verified by.
    let roots = trust.files.path().join("bao.pem");
    fs::write(&roots, root + "\n").unwrap();
    let url = format!("https://{}/v2/health/ready", server.http);
    assert_eq!(trust.curl("admin", &url, &["--cacert", roots.to_str().unwrap()]).status, 200);
}
