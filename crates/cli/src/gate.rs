//! `[trust]` and `serve --trust`: from a folder and a table to whom a server believes.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use edgeward_serve::{Followed, TrustConfig};
use edgeward_trust::{
    Strength,
    admission::{Admission, AdmissionSettings, KeptUsage, USED},
    audit::{AuditLog, Durability, LogOptions, LogSigner},
    authority::{AuthorityKeys, BUNDLE, Lifetimes, REVOCATIONS, State},
    detect::DetectorSettings,
    identity::{
        Http, HttpSettings, Identities, IdentityProvider,
        aws::{Aws, AwsSettings},
        dpop::{Dpop, DpopSettings},
        jose::Algorithm,
        oidc::{Oidc, OidcSettings, TenantFrom},
        spiffe::{DomainSettings, Spiffe, TrustBundles, WorkloadApi, WorkloadApiSettings},
    },
    keys::{KeyProvider, PkiSettings, SealedFile, Vault, VaultPki, VaultSettings},
    policy::{KeptPolicies, Origin, POLICIES_KEPT, Policies},
    revocation::{KEPT, Kept, Revocations},
    score::{ScoreSettings, Scorer},
    session::{LocalSigner, SessionSettings, Sessions},
    tls::{AuthoritySource, KeyFiles, ServerKeySource, ServerKeys},
};
use serde::Deserialize;

use crate::{
    failure::{Failure, OrInput as _},
    trust::authority::{AUDIT_KEY, KEYS, ROOT_KEYS, Unlocking, issuing_keys},
};

/// Revocations that are kept.
const REVOCATIONS_MAX: usize = 1_000_000;
const REVIEW_SECONDS: u64 = 30;
/// Bodies of more bytes than this stand in the log by their size alone.
const DIGEST_BYTES_MAX: u64 = 64 * 1024;

/// `[trust]`: whom the server believes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TrustSettings {
    /// Folder that `trust init` made.
    pub folder: Option<PathBuf>,
    /// Folder of policies; `policies` in the folder where absent.
    pub policies: Option<PathBuf>,
    /// Certificate and key of the server, in PEM, which others renew; its own authority's where absent.
    pub certificate: Option<PathBuf>,
    /// See `certificate`.
    pub key: Option<PathBuf>,
    /// Further host names by which clients know the server.
    pub hosts: Vec<String>,
    /// Where it runs, for policies.
    pub site: String,
    /// Open calls are decided again this often.
    pub review_seconds: Option<u64>,
    /// `[trust.audit]`
    pub audit: AuditSettings,
    /// `[trust.session]`
    pub session: SessionTable,
    /// `[trust.score]`
    pub score: ScoreSettings,
    /// `[trust.detectors]`
    pub detectors: DetectorSettings,
    /// `[trust.admission]`
    pub admission: AdmissionSettings,
    /// `[[trust.oidc]]`
    pub oidc: Vec<OidcTable>,
    /// `[trust.aws]`
    pub aws: Option<AwsTable>,
    /// `[[trust.spiffe]]`
    pub spiffe: Vec<SpiffeTable>,
    /// `[trust.workload_api]`: the server's certificate, and the roots of further trust domains, from the SPIFFE agent.
    pub workload_api: Option<WorkloadApiSettings>,
    /// `[trust.pki]`: the server's certificate from Vault or OpenBao.
    pub pki: Option<PkiTable>,
}

/// `[trust.audit]`: the log.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct AuditSettings {
    /// Its folder; `audit` in the trust folder where absent.
    pub folder: Option<PathBuf>,
    /// `strict`: an answer waits until its record is on the disk; `none`; or the longest time between two flushes, as `200ms`.
    pub durability: Option<String>,
    /// Bodies of requests up to so many bytes stand in it by their digest.
    pub digest_bytes_max: Option<u64>,
}

/// `[trust.session]`: tokens of this server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct SessionTable {
    /// `iss` and `aud`; `edgeward:DOMAIN` where absent.
    pub issuer: Option<String>,
    /// See `issuer`.
    pub audience: Option<String>,
    /// Longest life.
    pub seconds: Option<u64>,
}

/// `[[trust.oidc]]`: an issuer of tokens.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct OidcTable {
    /// Which of the known ones it is.
    #[serde(default)]
    pub kind: OidcKind,
    /// Its address; for Entra ID the tenant's ID; not needed for Google.
    #[serde(default)]
    pub issuer: String,
    /// Whom its tokens must be for.
    pub audience: String,
    /// The organisation of all its callers.
    pub tenant: Option<String>,
    /// Certificates in PEM that its TLS leads to, beside the system's.
    pub roots: Option<PathBuf>,
}

/// Issuers whose claims are known.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum OidcKind {
    /// Claims of OpenID Connect.
    #[default]
    Generic,
    /// Microsoft Entra ID.
    EntraId,
    /// Google.
    Google,
    /// Keycloak.
    Keycloak,
    /// Service accounts of Kubernetes.
    Kubernetes,
    /// The same, of the cluster that this server runs in.
    InCluster,
}

/// `[trust.aws]`: AWS IAM.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct AwsTable {
    /// The name that callers sign.
    pub server_id: String,
    /// Accounts with the organisation of each.
    pub accounts: BTreeMap<String, String>,
    /// Regions whose STS is asked.
    #[serde(default)]
    pub regions: Vec<String>,
}

/// `[[trust.spiffe]]`: a trust domain beside the own one.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct SpiffeTable {
    /// Its name.
    pub domain: String,
    /// Its roots: PEM or SPIFFE's JSON, followed while the server runs.
    pub bundle: PathBuf,
    /// The organisation behind it.
    pub tenant: Option<String>,
    /// Its authority attests workloads before it signs, as SPIRE does.
    #[serde(default)]
    pub attested: bool,
}

/// `[trust.pki]`: a PKI engine of Vault or OpenBao.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct PkiTable {
    /// `[trust.pki.server]`
    pub server: VaultSettings,
    /// `[trust.pki.certificate]`
    pub certificate: PkiSettings,
}

/// What a server is told of trust.
pub fn config(folder: &Path, settings: &TrustSettings, unlock: &Unlocking) -> Result<TrustConfig, Failure> {
    let state = State::read(folder).or_input()?;
    let domain = state.trust_domain;
    let online: Arc<dyn KeyProvider> = Arc::new(SealedFile::open(&folder.join(KEYS), &unlock.get(folder)?).or_input()?);
    let dpop = Arc::new(Dpop::new(DpopSettings::default()));
    let sessions = Arc::new(sessions(&domain, &settings.session, dpop.clone())?);
    let (spiffe, bundles) = spiffe(folder, &domain, &settings.spiffe)?;
    let policies_folder = settings.policies.clone().unwrap_or_else(|| folder.join("policies"));
    let kept_policies = KeptPolicies::at(folder.join(POLICIES_KEPT));
    let policies = policies(&policies_folder, &kept_policies)?;
    let mut providers: Vec<Arc<dyn IdentityProvider>> = vec![sessions.clone(), spiffe.clone()];
    for table in &settings.oidc {
        providers.push(Arc::new(oidc(table, dpop.clone())?));
    }
    if let Some(table) = &settings.aws {
        let regions: Vec<&str> = table.regions.iter().map(String::as_str).collect();
        let http = Http::new(&HttpSettings::default()).or_input()?;
        let aws = AwsSettings::new(&table.server_id, table.accounts.clone(), &regions);
        providers.push(Arc::new(Aws::new(aws, http).or_input()?));
    }
    let (options, waits_for_disk) = audit(folder, &settings.audit)?;
    let signer = LogSigner::new(&format!("{domain}/audit"), online.clone(), AUDIT_KEY).or_input()?;
    let keys = server_keys(folder, settings, online, unlock, (&spiffe, &bundles))?;
    // A file that cannot be read must not forgive anybody: then there is no server.
    let (kept, revocations, now) =
        (Kept::at(folder.join(KEPT)), Revocations::new(REVOCATIONS_MAX), std::time::SystemTime::now());
    for (what, until) in kept.read(now).or_input()? {
        revocations.add(what, until, now).or_input()?;
    }
    let (admission, mut used) = (Admission::new(&settings.admission), KeptUsage::at(folder.join(USED)));
    // Where another server has it, this one tries again, and says so.
    used.take(&admission, now).or_input()?;
    let followed = Followed {
        policies: policies_folder,
        revocations: Some(folder.join(REVOCATIONS)),
        bundles,
        spiffe: Some(spiffe),
    };
    Ok(TrustConfig {
        keys,
        identities: Identities::new(providers),
        sessions,
        dpop,
        revocations: Arc::new(revocations),
        kept: Some(kept),
        policies: Arc::new(policies),
        kept_policies,
        scorer: Scorer::new(settings.score.clone()).or_input()?,
        detectors: settings.detectors,
        admission,
        used,
        audit: Arc::new(AuditLog::open(&options, signer).map_err(|error| Failure::Work(error.into()))?),
        waits_for_disk,
        digest_bytes_max: settings.audit.digest_bytes_max.unwrap_or(DIGEST_BYTES_MAX),
        site: settings.site.clone(),
        hosts: settings.hosts.clone(),
        review_every: Duration::from_secs(settings.review_seconds.unwrap_or(REVIEW_SECONDS).max(1)),
        followed,
    })
}

/// Those of the folder, or of a call that came later.
fn policies(folder: &Path, kept: &KeptPolicies) -> Result<Policies, Failure> {
    let found = kept.in_force(folder).or_input()?;
    Policies::new(&found.sources).map_err(|error| match found.origin {
        Origin::Call => Failure::input(format!(
            "policies of a call, `{}`: {error}; delete the file to have the folder's policies in force",
            kept.path().display()
        )),
        Origin::Folder | Origin::ChangedFolder => Failure::input(error.to_string()),
    })
}

fn sessions(domain: &str, table: &SessionTable, dpop: Arc<Dpop>) -> Result<Sessions, Failure> {
    let own = format!("edgeward:{domain}");
    let issuer = table.issuer.clone().unwrap_or_else(|| own.clone());
    let mut settings = SessionSettings::new(issuer, table.audience.clone().unwrap_or(own));
    if let Some(seconds) = table.seconds {
        settings.ttl_max = Duration::from_secs(seconds);
    }
    Sessions::new(settings, Arc::new(LocalSigner::generate(Algorithm::EdDsa).or_input()?), dpop).or_input()
}

type Bundles = Vec<(String, PathBuf)>;

/// The own trust domain and those of the table.
fn spiffe(folder: &Path, domain: &str, tables: &[SpiffeTable]) -> Result<(Arc<Spiffe>, Bundles), Failure> {
    let (bundles, mut domains) = (TrustBundles::new(), BTreeMap::new());
    let mut files = vec![(domain.to_owned(), folder.join(BUNDLE))];
    for table in tables {
        let strength = if table.attested { Strength::Attested } else { Strength::KeyBound };
        let settings = DomainSettings { tenant: table.tenant.clone(), strength, ..DomainSettings::default() };
        domains.insert(table.domain.clone(), settings);
        files.push((table.domain.clone(), table.bundle.clone()));
    }
    for (domain, path) in &files {
        bundles.set_from_file(domain, path).or_input()?;
    }
    Ok((Arc::new(Spiffe::new(bundles, domains)), files))
}

fn oidc(table: &OidcTable, dpop: Arc<Dpop>) -> Result<Oidc, Failure> {
    let (issuer, audience) = (table.issuer.as_str(), table.audience.as_str());
    let mut settings = match table.kind {
        OidcKind::Generic => OidcSettings::new(issuer, audience),
        OidcKind::EntraId => OidcSettings::entra_id(issuer, audience),
        OidcKind::Google => OidcSettings::google(audience),
        OidcKind::Keycloak => OidcSettings::keycloak(issuer, audience),
        OidcKind::Kubernetes => OidcSettings::kubernetes(issuer, audience),
        OidcKind::InCluster => OidcSettings::kubernetes(issuer, audience).in_cluster(),
    };
    if let Some(tenant) = &table.tenant {
        settings.mapping.tenant = Some(TenantFrom::Fixed(tenant.clone()));
    }
    let roots = table.roots.as_ref().map(|path| {
        std::fs::read(path).map_err(|error| Failure::input(format!("roots `{}`: {error}", path.display())))
    });
    let http = Http::new(&HttpSettings { roots_pem: roots.transpose()?, ..HttpSettings::default() }).or_input()?;
    Oidc::new(settings, http, dpop).or_input()
}

fn audit(folder: &Path, settings: &AuditSettings) -> Result<(LogOptions, bool), Failure> {
    let mut options = LogOptions::new(settings.folder.clone().unwrap_or_else(|| folder.join("audit")));
    options.durability = match settings.durability.as_deref() {
        Some("strict") => Durability::Strict,
        Some("none") => Durability::None,
        None => Durability::Interval(Duration::from_millis(200)),
        Some(text) => match humantime::parse_duration(text) {
            Ok(interval) if !interval.is_zero() => Durability::Interval(interval),
            _ => {
                let text = format!(
                    "`durability = \"{text}\"` in `[trust.audit]`; expected `strict`, `none` or a time as `200ms`"
                );
                return Err(Failure::input(text));
            }
        },
    };
    let strict = options.durability == Durability::Strict;
    Ok((options, strict))
}

/// The server's certificate: of files, of the SPIFFE agent, of Vault, or else of the own authority.
fn server_keys(
    folder: &Path,
    settings: &TrustSettings,
    online: Arc<dyn KeyProvider>,
    unlock: &Unlocking,
    (spiffe, bundles): (&Arc<Spiffe>, &Bundles),
) -> Result<Box<dyn ServerKeySource>, Failure> {
    match (&settings.certificate, &settings.key, &settings.workload_api, &settings.pki) {
        (None, None, None, None) => {}
        (Some(certificate), Some(key), None, None) => return Ok(Box::new(KeyFiles::new(certificate, key))),
        (None, None, Some(table), None) => {
            let api = WorkloadApi::connect(table).or_input()?;
            let held = bundles.iter().map(|(domain, _)| domain.clone()).collect();
            api.follow(spiffe.clone(), held).or_input()?;
            return Ok(Box::new(api.server_keys()));
        }
        (None, None, None, Some(table)) => {
            let vault = Vault::connect(&table.server).or_input()?;
            return Ok(Box::new(VaultPki::new(vault, table.certificate.clone()).or_input()?));
        }
        _ => {
            let text =
                "a server has one certificate: of `certificate` with `key`, `[trust.workload_api]` or `[trust.pki]`";
            return Err(Failure::input(text));
        }
    }
    let root_keys = folder.join(ROOT_KEYS);
    let root: Option<Arc<dyn KeyProvider>> = match root_keys.exists() {
        true => Some(Arc::new(SealedFile::open(&root_keys, &unlock.get(folder)?).or_input()?)),
        false => None,
    };
    let (dns, addresses) = names(folder, settings);
    let keys = AuthorityKeys { online: issuing_keys(folder, || Ok(online))?, root };
    Ok(Box::new(AuthoritySource::new(folder, keys, Lifetimes::default(), dns, addresses)))
}

/// Host names and addresses of the server: those of the certificate that `trust init` made, and of the table.
fn names(folder: &Path, settings: &TrustSettings) -> (Vec<String>, Vec<IpAddr>) {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap_or_default();
    let first = ServerKeys::from_pem(&read("server.pem"), &read("server.key")).map(|keys| keys.names);
    let first = first.unwrap_or_else(|_| ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec());
    let mut names: Vec<String> = first.into_iter().chain(settings.hosts.iter().cloned()).collect();
    names.sort();
    names.dedup();
    let (addresses, dns): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| name.parse::<IpAddr>().is_ok());
    (dns, addresses.iter().filter_map(|address| address.parse().ok()).collect())
}

/// The first policies of a folder: its administrator may do everything, whoever is verified may ask for health.
pub fn first_policies(folder: &Path, domain: &str, models: &[String]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let policies = format!(
        "// Nobody may do anything but what a policy permits. See docs/policies.md.\n\n\
         @id(\"admin\")\n@description(\"the administrator of this installation\")\n\
         permit (principal == Workload::\"spiffe://{domain}/admin\", action, resource);\n\n\
         @id(\"health\")\n@description(\"whoever is verified\")\n\
         permit (principal, action == Action::\"get\", resource)\n\
         when {{ [Endpoint::\"live\", Endpoint::\"ready\", Endpoint::\"server\"].contains(resource) }};\n"
    );
    let mut entities = "# What is listed. What is not listed is denied, whoever asks.\n".to_owned();
    for model in models {
        entities.push_str(&format!("\n[Model.{}]\nany_version = true\n", toml::Value::String(model.clone())));
    }
    std::fs::write(folder.join("first.cedar"), policies)?;
    std::fs::write(folder.join("entities.toml"), entities)
}

/// Says which models nobody can call, because they are not listed.
pub fn warn_of_unlisted<'a>(policies: &Policies, folder: &Path, models: impl Iterator<Item = (&'a str, &'a str)>) {
    let rules = policies.current();
    for (name, version) in models {
        if rules.is_listed(&edgeward_trust::Resource::version(name, version)) {
            continue;
        }
        let mend = format!("[Model.{:?}]\nany_version = true", name);
        let file = folder.join("entities.toml").display().to_string();
        tracing::warn!(model = name, version, file, mend, "nobody may call this model: it is not listed");
    }
}
