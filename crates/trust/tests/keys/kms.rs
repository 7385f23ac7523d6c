//! AWS KMS against moto, whose front checks signatures by botocore.
//!
//! `EDGEWARD_TEST_MOTO` names a Python with `moto[server]` and `boto3`.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use edgeward_trust::{
    ErrorKind,
    keys::{CredentialSettings, KeyKind, KeyProvider as _, Kms, KmsSettings, SecretSource},
};

use super::{answering::answering, contract::contract, part::part};

const SECRET: &str = "a-secret-of-tests";

struct Moto {
    python: PathBuf,
    address: String,
    folder: tempfile::TempDir,
    process: Child,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Moto {
    fn start() -> Option<Self> {
        let python = part("EDGEWARD_TEST_MOTO", "a Python with moto[server] and boto3")?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parts/aws.py");
        let mut command = Command::new(&python);
        command.arg(script).arg(SECRET).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        assert!(!address.is_empty(), "moto ended before it listened");
        Some(Self { python, address: address.trim().to_owned(), folder: tempfile::tempdir().unwrap(), process })
    }

    fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn keys(&self, secret: &str) -> CredentialSettings {
        CredentialSettings::Keys {
            access_key_id: "AKIATEST".into(),
            secret_access_key: SecretSource::File(self.secret("secret", secret)),
            session_token: None,
        }
    }

    fn settings(&self, credentials: CredentialSettings) -> KmsSettings {
        KmsSettings {
            region: "eu-central-1".into(),
            endpoint: Some(self.address.clone()),
            prefix: "edgeward/".into(),
            credentials,
        }
    }

    fn open(&self) -> Kms {
        Kms::connect(&self.settings(self.keys(SECRET))).unwrap()
    }

    /// What AWS's own client library says to a line of Python about `kms`.
    fn boto(&self, code: &str) -> String {
        let set_up = format!(
            "import base64, boto3\nkms = boto3.client('kms', endpoint_url='{}', region_name='eu-central-1', \
             aws_access_key_id='AKIATEST', aws_secret_access_key='{SECRET}')\n",
            self.address
        );
        let output = Command::new(&self.python).arg("-c").arg(set_up + code).output().unwrap();
        assert!(output.status.success(), "{code}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

#[test]
fn kms_keeps_the_contract_but_for_ed25519() {
    let Some(moto) = Moto::start() else { return };
    let provider = moto.open();
    assert_eq!(provider.list().unwrap(), []);
    contract(&provider, &[KeyKind::P256]);
    let wrapped = provider.wrap("contract-wrap", b"data key", b"c").unwrap();
    let again = moto.open();
    assert_eq!(again.list().unwrap(), provider.list().unwrap());
    assert_eq!(**again.unwrap("contract-wrap", &wrapped, b"c").unwrap(), *b"data key");
}

#[test]
fn versions_are_keys_that_aws_lists_by_their_aliases() {
    let Some(moto) = Moto::start() else { return };
    let provider = moto.open();
    provider.create("line.3", KeyKind::Wrapping).unwrap();
    provider.rotate("line.3").unwrap();
    let names =
        moto.boto("print(*[a['AliasName'] for a in kms.list_aliases()['Aliases'] if 'edgeward' in a['AliasName']])");
    assert_eq!(names, "alias/edgeward/line/3/v1 alias/edgeward/line/3/v2");
    // A key that others made and named so is one of the provider's; those named otherwise, or of other kinds, are not.
    moto.boto(
        "def key(alias, **kind):\n kms.create_alias(AliasName=alias, TargetKeyId=kms.create_key(**kind)['KeyMetadata']['KeyId'])\n\
         key('alias/edgeward/theirs/v7')\nkey('alias/edgeward/theirs/v08')\nkey('alias/edgeward/theirs/v0')\n\
         key('alias/edgeward/theirs')\nkey('alias/other/v1')\nkey('alias/edgeward/rsa/v1', KeySpec='RSA_2048', KeyUsage='SIGN_VERIFY')",
    );
    let keys = provider.list().unwrap();
    let found: Vec<_> =
        keys.iter().map(|key| (key.id.as_str(), key.versions.iter().map(|v| v.number).collect::<Vec<_>>())).collect();
    assert_eq!(found, [("line.3", vec![1, 2]), ("theirs", vec![7])]);
    let wrapped = provider.wrap("theirs", b"data key", b"release 7").unwrap();
    // AWS's own client opens it, with the context that its log shows.
    let hex: String = wrapped[4..].iter().map(|byte| format!("{byte:02x}")).collect();
    let opened = moto.boto(&format!(
        "import hashlib\ncontext = {{'edgeward:key': 'theirs', 'edgeward:context-sha256': \
         base64.b64encode(hashlib.sha256(b'release 7').digest()).decode()}}\n\
         print(kms.decrypt(CiphertextBlob=bytes.fromhex('{hex}'), EncryptionContext=context)['Plaintext'].decode())"
    ));
    assert_eq!(opened, "data key");
    // Two that turn a key over at once: one of them is told, and leaves no key behind that nobody can find.
    let before = moto.boto("print(len([k for k in kms.list_keys()['Keys'] if kms.describe_key(KeyId=k['KeyId'])['KeyMetadata']['Enabled']]))");
    std::thread::scope(|scope| {
        let turns: Vec<_> = (0..4).map(|_| scope.spawn(|| moto.open().rotate("line.3").is_ok())).collect();
        let done = turns.into_iter().map(|turn| turn.join().unwrap()).filter(|done| *done).count();
        let after = moto.boto("print(len([k for k in kms.list_keys()['Keys'] if kms.describe_key(KeyId=k['KeyId'])['KeyMetadata']['Enabled']]))");
        assert!(done >= 1);
        assert_eq!(after.parse::<usize>().unwrap(), before.parse::<usize>().unwrap() + done);
    });
}

#[test]
fn more_keys_than_a_page_holds_are_listed() {
    let Some(moto) = Moto::start() else { return };
    moto.boto(
        "key = kms.create_key()['KeyMetadata']['KeyId']\n\
         for n in range(105): kms.create_alias(AliasName=f'alias/edgeward/k{n:03}/v1', TargetKeyId=key)",
    );
    let keys = moto.open().list().unwrap();
    assert_eq!((keys.len(), keys[104].id.as_str()), (105, "k104"));
}

#[test]
fn a_wrong_secret_is_refused_and_never_told() {
    let Some(moto) = Moto::start() else { return };
    let provider = Kms::connect(&moto.settings(moto.keys("another secret?"))).err();
    // A secret is one word.
    assert_eq!(provider.unwrap().kind(), ErrorKind::Invalid);
    let provider = Kms::connect(&moto.settings(moto.keys("anothersecret"))).unwrap();
    let error = provider.list().unwrap_err();
    assert!(error.kind() == ErrorKind::Unverified && !error.to_string().contains("anothersecret"), "{error}");
}

#[test]
fn a_disabled_key_is_denied_and_a_deleted_one_too() {
    let Some(moto) = Moto::start() else { return };
    let provider = moto.open();
    provider.create("k", KeyKind::Wrapping).unwrap();
    let wrapped = provider.wrap("k", b"k", b"").unwrap();
    moto.boto("kms.disable_key(KeyId=kms.describe_key(KeyId='alias/edgeward/k/v1')['KeyMetadata']['KeyId'])");
    let shown = moto.boto("print(kms.describe_key(KeyId='alias/edgeward/k/v1')['KeyMetadata']['Enabled'])");
    assert_eq!(shown, "False");
    // moto goes on using it; the name, however, is gone with the alias.
    moto.boto("kms.delete_alias(AliasName='alias/edgeward/k/v1')");
    assert_eq!(provider.unwrap("k", &wrapped, b"").unwrap_err().kind(), ErrorKind::Tampered);
    assert_eq!(provider.describe("k").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(provider.wrap("k", b"k", b"").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_platforms_token_is_exchanged_for_a_role() {
    let Some(moto) = Moto::start() else { return };
    let role = |token: &str| CredentialSettings::WebIdentity {
        role_arn: "arn:aws:iam::123456789012:role/edge".into(),
        token_file: moto.secret("token", token),
        endpoint: Some(moto.address.clone()),
    };
    let provider = Kms::connect(&moto.settings(role("platform.token"))).unwrap();
    provider.create("k", KeyKind::P256).unwrap();
    provider.sign("k", b"message").unwrap();
    let error = Kms::connect(&moto.settings(role("forged.token"))).err().unwrap();
    assert!(error.kind() == ErrorKind::Unverified && error.to_string().contains("InvalidIdentityToken"), "{error}");
}

/// The services of ECS and of EC2 do not run here: their answers are a test's. What they lead to is checked as all else is.
#[test]
fn the_role_of_a_container_or_of_the_machine() {
    let Some(moto) = Moto::start() else { return };
    let ok = |body: &str| {
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let no = b"HTTP/1.1 401 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_vec();
    let secret = SECRET.to_owned();
    let platform = answering(move |request| {
        let head = request.to_lowercase();
        let keys = format!(
            "{{\"AccessKeyId\":\"AKIATEST\",\"SecretAccessKey\":\"{secret}\",\"Token\":\"t\",\"Expiration\":\"2099-01-01T00:00:00Z\"}}"
        );
        if head.starts_with("get /container ") {
            return if head.contains("authorization: pod-token\r\n") { ok(&keys) } else { no.clone() };
        }
        if head.starts_with("put /latest/api/token ") {
            return if head.contains("x-aws-ec2-metadata-token-ttl-seconds: ") { ok("imds") } else { no.clone() };
        }
        match () {
            () if !head.contains("x-aws-ec2-metadata-token: imds\r\n") => no.clone(),
            () if head.starts_with("get /latest/meta-data/iam/security-credentials/ ") => ok("edge-role\n"),
            () if head.starts_with("get /latest/meta-data/iam/security-credentials/edge-role ") => ok(&keys),
            () => no.clone(),
        }
    });
    let container = |token: &str| CredentialSettings::Container {
        uri: format!("{platform}/container"),
        token_file: Some(moto.secret("pod", token)),
    };
    let machine = CredentialSettings::Instance { endpoint: platform.clone() };
    for (name, credentials) in [("a", container("pod-token")), ("b", machine)] {
        Kms::connect(&moto.settings(credentials)).unwrap().create(name, KeyKind::Wrapping).unwrap();
    }
    assert_eq!(Kms::connect(&moto.settings(container("other"))).err().unwrap().kind(), ErrorKind::Unavailable);
}

#[test]
fn it_waits_where_it_is_asked_to_and_strange_answers_are_errors() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    fs::write(&file, SECRET).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let credentials = CredentialSettings::Keys {
        access_key_id: "AKIATEST".into(),
        secret_access_key: SecretSource::File(file),
        session_token: None,
    };
    let open = |endpoint: String| {
        Kms::connect(&KmsSettings {
            region: "eu-central-1".into(),
            endpoint: Some(endpoint),
            prefix: "edgeward/".into(),
            credentials: credentials.clone(),
        })
    };
    let http = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let address = answering(move |_| match counted.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => http("400 Bad Request", "{\"__type\":\"ThrottlingException\",\"message\":\"Rate exceeded\"}"),
        _ => http("200 OK", "{\"Aliases\":[]}"),
    });
    assert_eq!(open(address).unwrap().list().unwrap(), []);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    let endless = "{\"Aliases\":[],\"Truncated\":true,\"NextMarker\":\"again\"}";
    let deep = "[".repeat(100_000);
    for (status, body) in
        [("200 OK", "<x/>"), ("200 OK", endless), ("200 OK", &deep), ("418 No", ""), ("503 No", "busy")]
    {
        let (status, body) = (status.to_owned(), body.to_owned());
        let shown = format!("{status}: {body:.40}");
        let address = answering(move |_| http(&status, &body));
        assert_eq!(open(address).unwrap().list().unwrap_err().kind(), ErrorKind::Unavailable, "{shown}");
    }
    for bad in ["http://kms.example", "kms", ""] {
        assert_eq!(open(bad.to_owned()).err().unwrap().kind(), ErrorKind::Invalid, "{bad}");
    }
}

#[test]
fn settings_are_read_and_wrong_ones_refused() {
    let read =
        "region = \"eu-central-1\"\n[credentials]\nsource = \"web_identity\"\nrole_arn = \"r\"\ntoken_file = \"/t\"\n";
    let settings: KmsSettings = toml::from_str(read).unwrap();
    assert_eq!(settings.prefix, "edgeward/");
    assert!(toml::from_str::<KmsSettings>(&read.replace("region", "regoin")).is_err());
    let keys =
        "region = \"a\"\n[credentials]\nsource = \"keys\"\naccess_key_id = \"A\"\nsecret_access_key = \"plain\"\n";
    assert!(toml::from_str::<KmsSettings>(keys).is_err(), "a secret has no place among the settings");
    for (region, prefix) in
        [("", "e/"), ("eu central", "e/"), ("evil.example/", "e/"), ("eu-central-1", "aws/"), ("eu-central-1", "a b")]
    {
        let settings = KmsSettings { region: region.into(), prefix: prefix.into(), ..settings.clone() };
        assert_eq!(Kms::connect(&settings).err().unwrap().kind(), ErrorKind::Invalid, "{region} {prefix}");
    }
}
