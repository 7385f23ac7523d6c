//! `edgeward trust init|issue|revoke|list|renew`: the local authority.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    audit::LogSigner,
    authority::{Authority, AuthorityKeys, IssuedLeaf, LeafKey, LeafKind, LeafRequest, Lifetimes, State, Step, plan},
    keys::{KeyKind, KeyProvider, KeySettings, SealedFile, Unlock, create_private},
};
use serde_json::json;

use super::failure;
use crate::{
    Context,
    failure::{Failure, OrInput as _, Outcome},
    print,
};

/// Where the keys of intermediates are, where that is not the sealed file.
const KEY_SETTINGS: &str = "keys.toml";
/// The key file that `init` makes where no other way to unlock is given.
const KEY_FILE: &str = "unlock.key";
pub const KEYS: &str = "keys";
pub const ROOT_KEYS: &str = "root.keys";
/// The key that signs the audit log's checkpoints.
pub const AUDIT_KEY: &str = "audit";

/// How sealed files are opened.
#[derive(clap::Args, Default)]
pub struct Unlocking {
    /// File with the passphrase of the sealed keys
    #[arg(long, value_name = "FILE", env = "EDGEWARD_TRUST_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
    /// File of at least 32 random bytes that opens the sealed keys [default: `unlock.key` beside them]
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file", env = "EDGEWARD_TRUST_KEY_FILE")]
    key_file: Option<PathBuf>,
}

/// Options of `trust init`.
#[derive(clap::Args)]
pub struct InitArgs {
    /// Folder to make it in
    folder: PathBuf,
    /// Trust domain of the SPIFFE ids
    #[arg(long, default_value = "edgeward.local")]
    domain: String,
    /// Host names of the server beside `localhost`
    #[arg(long)]
    dns: Vec<String>,
    /// Addresses of the server beside the loopback ones
    #[arg(long)]
    ip: Vec<IpAddr>,
    /// A model that policies can be about; may be repeated
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    /// File that says which provider keeps the keys that certificates are signed with (see docs/keys.md); it is copied to the folder
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    #[command(flatten)]
    unlock: Unlocking,
}

/// Options of `trust issue`.
#[derive(clap::Args)]
pub struct IssueArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// Path of the SPIFFE id: `ward/scanner-3`
    name: String,
    /// For a server: it may answer as well as call
    #[arg(long)]
    server: bool,
    /// Host names of the server
    #[arg(long, requires = "server")]
    dns: Vec<String>,
    /// Addresses of the server
    #[arg(long, requires = "server")]
    ip: Vec<IpAddr>,
    /// Shorter than a day
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    lifetime: Option<Duration>,
    /// Certify the key of this request (PKCS#10 in PEM) instead of making one
    #[arg(long, value_name = "FILE")]
    csr: Option<PathBuf>,
    /// Write `OUT.pem` and `OUT.key` [default: the last part of the name, in the working folder]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Options of `trust revoke`.
#[derive(clap::Args)]
pub struct RevokeArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// Serial number or name
    what: String,
    /// Why, for the operator
    #[arg(long, default_value = "")]
    reason: String,
}

/// Options of `trust list`.
#[derive(clap::Args)]
pub struct ListArgs {
    /// Folder of the authority
    folder: PathBuf,
}

/// Options of `trust renew`.
#[derive(clap::Args)]
pub struct RenewArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// Only show what is due
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::Args)]
struct FolderArgs {
    /// Folder of the authority
    folder: PathBuf,
    /// Sealed file of the root's keys, where it is kept elsewhere
    #[arg(long, value_name = "FILE")]
    root_keys: Option<PathBuf>,
    #[command(flatten)]
    unlock: Unlocking,
}

impl Unlocking {
    /// What opens the sealed files of a folder.
    pub fn get(&self, folder: &Path) -> Result<Unlock, Failure> {
        if let Some(path) = &self.passphrase_file {
            return Unlock::from_passphrase_file(path).or_input();
        }
        let path = self.key_file.clone().unwrap_or_else(|| folder.join(KEY_FILE));
        Unlock::from_key_file(&path).or_input()
    }

    /// Makes the key file where nothing else was given.
    fn prepare(&self, folder: &Path) -> Result<bool, Failure> {
        let path = folder.join(KEY_FILE);
        if self.passphrase_file.is_some() || self.key_file.is_some() || path.exists() {
            return Ok(false);
        }
        // Another process may be making it as well: what was sealed with one must not lose it.
        let bytes = edgeward_trust::keys::random_bytes::<32>().map_err(failure)?;
        create_private(&path, &bytes).map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))
    }

    /// By a passphrase, by a key file, or where neither is named by `unlock.key` beside the sealed file.
    pub fn by(passphrase_file: Option<PathBuf>, key_file: Option<PathBuf>) -> Self {
        Self { passphrase_file, key_file }
    }

    /// Opens a sealed file.
    pub fn open(&self, path: &Path) -> Result<Arc<dyn KeyProvider>, Failure> {
        let unlock = self.get(path.parent().unwrap_or(Path::new(".")))?;
        Ok(Arc::new(SealedFile::open(path, &unlock).map_err(failure)?))
    }

    /// Opens a sealed file, or makes it with these keys.
    pub fn open_or_create(&self, path: &Path, keys: &[(&str, KeyKind)]) -> Result<SealedFile, Failure> {
        let folder = path.parent().unwrap_or(Path::new("."));
        if !path.exists() {
            self.prepare(folder)?;
        }
        SealedFile::open_or_create(path, &self.get(folder)?, keys).map_err(failure)
    }
}

impl FolderArgs {
    fn open(&self) -> Result<Authority, Failure> {
        open(&self.folder, self.root_keys.as_deref(), &self.unlock)
    }
}

/// Opens the authority of a folder, with the root's keys where they are there.
pub fn open(folder: &Path, root_keys: Option<&Path>, unlock: &Unlocking) -> Result<Authority, Failure> {
    let unlock = unlock.get(folder)?;
    let open = |path: &Path| -> Result<Arc<dyn KeyProvider>, Failure> {
        Ok(Arc::new(SealedFile::open(path, &unlock).map_err(failure)?))
    };
    let root_path = root_keys.map_or_else(|| folder.join(ROOT_KEYS), Path::to_owned);
    // An authority without its root is the usual case, unless the root was asked for.
    let root = if root_path.exists() || root_keys.is_some() { Some(open(&root_path)?) } else { None };
    let online = issuing_keys(folder, || open(&folder.join(KEYS)))?;
    let keys = AuthorityKeys { online, root };
    Authority::open(folder, keys, Lifetimes::default()).map_err(failure)
}

/// The keys of intermediates: with the provider that the folder's `keys.toml` names, or else in the sealed file.
pub fn issuing_keys(
    folder: &Path,
    sealed: impl FnOnce() -> Result<Arc<dyn KeyProvider>, Failure>,
) -> Result<Arc<dyn KeyProvider>, Failure> {
    let path = folder.join(KEY_SETTINGS);
    if !path.exists() {
        return sealed();
    }
    KeySettings::read(&path).and_then(|settings| settings.within(folder).open()).map_err(failure)
}

/// Runs `trust init`.
pub fn init(args: &InitArgs, context: &Context) -> Outcome {
    let (made_key_file, signer) = make(args)?;
    let folder = &args.folder;
    if context.json {
        return print::json(&json!({ "folder": folder, "domain": args.domain, "audit_key": signer.key().to_string() }));
    }
    tell_made(folder, made_key_file, &signer)
}

/// Makes a folder of trust without a word of it, for a trust domain and models that policies can be about.
pub fn make_quietly(folder: &Path, domain: &str, models: &[String]) -> Outcome {
    let (folder, domain, model) = (folder.to_owned(), domain.to_owned(), models.to_vec());
    let (dns, ip, unlock) = (Vec::new(), Vec::new(), Unlocking::default());
    make(&InitArgs { folder, domain, dns, ip, model, keys: None, unlock }).map(drop)
}

/// True where a key file was made, and who signs the audit log.
fn make(args: &InitArgs) -> Result<(bool, LogSigner), Failure> {
    let folder = &args.folder;
    if folder.join(KEYS).exists() {
        return Err(Failure::input(format!("`{}` has keys already; expected a new folder", folder.display())));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let made_key_file = args.unlock.prepare(folder)?;
    let online: Arc<dyn KeyProvider> =
        Arc::new(args.unlock.open_or_create(&folder.join(KEYS), &[(AUDIT_KEY, KeyKind::Ed25519)])?);
    let root: Arc<dyn KeyProvider> = Arc::new(args.unlock.open_or_create(&folder.join(ROOT_KEYS), &[])?);
    if let Some(path) = &args.keys {
        KeySettings::read(path).map_err(failure)?;
        fs::copy(path, folder.join(KEY_SETTINGS))?;
    }
    let keys = AuthorityKeys { online: issuing_keys(folder, || Ok(online.clone()))?, root: Some(root) };
    let now = SystemTime::now();
    let mut authority = Authority::init(folder, &args.domain, keys, Lifetimes::default(), now).map_err(failure)?;
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let server = LeafRequest {
        name: "server".to_owned(),
        kind: LeafKind::Server,
        dns: ["localhost".to_owned()].into_iter().chain(args.dns.iter().cloned()).collect(),
        addresses: loopback.into_iter().chain(args.ip.iter().copied()).collect(),
        lifetime: None,
        key: LeafKey::Generate,
    };
    let admin = LeafRequest {
        name: "admin".to_owned(),
        kind: LeafKind::Client,
        dns: Vec::new(),
        addresses: Vec::new(),
        ..server.clone()
    };
    for request in [server, admin] {
        let issued = authority.issue(&request, now).map_err(failure)?;
        write_leaf(&folder.join(&request.name), &issued)?;
    }
    crate::gate::first_policies(&folder.join("policies"), &args.domain, &args.model)?;
    let signer = LogSigner::new(&format!("{}/audit", args.domain), online, AUDIT_KEY).map_err(failure)?;
    fs::write(folder.join("audit.vkey"), format!("{}\n", signer.key()))?;
    Ok((made_key_file, signer))
}

fn tell_made(folder: &Path, made_key_file: bool, signer: &LogSigner) -> Outcome {
    let folder = folder.display();
    print::line(&format!("{folder}/roots.pem      what clients and servers verify with"))?;
    print::line(&format!("{folder}/server.pem     the server's certificate, with server.key; for a day"))?;
    print::line(&format!("{folder}/admin.pem      the admin's certificate, with admin.key; for a day"))?;
    print::line(&format!(
        "{folder}/policies/      who may do what: the admin everything, anyone verified ask for health"
    ))?;
    print::line(&format!(
        "{folder}/root.keys      the root's sealed keys: take them offline, they are needed again in two months"
    ))?;
    print::line(&format!(
        "{folder}/audit.vkey     the audit log's public key; give it to who is to verify: {}",
        signer.key()
    ))?;
    if made_key_file {
        print::line(&format!(
            "{folder}/{KEY_FILE}     opens the sealed keys: move it to another disk, or use --passphrase-file"
        ))?;
    }
    Ok(())
}

/// Runs `trust issue`.
pub fn issue(args: &IssueArgs, context: &Context) -> Outcome {
    let key = match &args.csr {
        None => LeafKey::Generate,
        Some(path) => LeafKey::Request(
            fs::read_to_string(path).map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))?,
        ),
    };
    let request = LeafRequest {
        name: args.name.clone(),
        kind: if args.server { LeafKind::Server } else { LeafKind::Client },
        dns: args.dns.clone(),
        addresses: args.ip.clone(),
        lifetime: args.lifetime,
        key,
    };
    let issued = args.folder.open()?.issue(&request, SystemTime::now()).map_err(failure)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(args.name.rsplit('/').next().unwrap_or_default()));
    write_leaf(&out, &issued)?;
    let until = humantime::format_rfc3339_seconds(issued.not_after).to_string();
    if context.json {
        let facts = json!({ "serial": issued.serial, "spiffe_id": issued.spiffe_id, "not_after": until, "certificate": out.with_added_extension("pem") });
        return print::json(&facts);
    }
    print::line(&format!("{}.pem: {} until {until}, serial {}", out.display(), issued.spiffe_id, issued.serial))
}

/// Runs `trust revoke`.
pub fn revoke(args: &RevokeArgs, context: &Context) -> Outcome {
    let version = args.folder.open()?.revoke(&args.what, &args.reason, SystemTime::now()).map_err(failure)?;
    if context.json {
        return print::json(&json!({ "revoked": args.what, "version": version }));
    }
    print::line(&format!("`{}` is revoked; version {version} of the revocations", args.what))
}

/// Runs `trust list`.
pub fn list(args: &ListArgs, context: &Context) -> Outcome {
    let state = State::read(&args.folder).map_err(failure)?;
    if context.json {
        return print::json(&state);
    }
    let now = SystemTime::now();
    let time = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
    let authority = |kind: &str, ca: &edgeward_trust::authority::CaCertificate| {
        let validity = if ca.is_valid(now) { "valid" } else { "ended" };
        vec![kind.to_owned(), ca.key.clone(), validity.to_owned(), time(ca.not_after), ca.serial.clone()]
    };
    let mut rows: Vec<_> = state.roots.iter().map(|root| authority("root", root)).collect();
    rows.extend(state.intermediates.iter().map(|ca| authority("intermediate", ca)));
    for leaf in &state.leaves {
        let validity = match state.revoked.get(&leaf.serial) {
            Some(revocation) => format!("revoked: {}", revocation.reason),
            None if leaf.not_after > now => "valid".to_owned(),
            None => "ended".to_owned(),
        };
        let kind = if leaf.kind == LeafKind::Server { "server" } else { "client" };
        rows.push(vec![kind.to_owned(), leaf.name.clone(), validity, time(leaf.not_after), leaf.serial.clone()]);
    }
    print::table(&["kind", "name", "state", "until", "serial"], rows, 5)
}

/// Runs `trust renew`.
pub fn renew(args: &RenewArgs, context: &Context) -> Outcome {
    let now = SystemTime::now();
    let lifetimes = Lifetimes::default();
    let steps = if args.dry_run {
        plan(&State::read(&args.folder.folder).map_err(failure)?, &lifetimes, now)
    } else {
        let mut authority = args.folder.open()?;
        let mut steps = authority.maintain(now).map_err(failure)?;
        steps.extend(plan(authority.state(), &lifetimes, now));
        steps
    };
    if context.json {
        return print::json(&steps);
    }
    if steps.is_empty() {
        return print::line("nothing is due");
    }
    steps.iter().try_for_each(|step| print::line(&tell(step)))
}

fn tell(step: &Step) -> String {
    match step {
        Step::MakeRoot => "a new root beside the old one".to_owned(),
        Step::MakeIntermediate => "a new intermediate".to_owned(),
        Step::SignRevocations => "the revocation lists signed anew".to_owned(),
        Step::Drop { serial } => format!("`{serial}` has ended and is forgotten"),
        Step::RenewLeaf { name, serial } => {
            format!("`{name}` ends soon ({serial}): `edgeward trust issue` makes the next")
        }
    }
}

fn write_leaf(out: &Path, issued: &IssuedLeaf) -> Outcome {
    if let Some(key) = &issued.key {
        write_private(&out.with_added_extension("key"), key.as_bytes())?;
    }
    let path = out.with_added_extension("pem");
    fs::write(&path, &issued.chain).map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))
}

/// Writes what only its owner may read.
fn write_private(path: &Path, bytes: &[u8]) -> Outcome {
    edgeward_trust::keys::write_private(path, bytes)
        .map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))
}
