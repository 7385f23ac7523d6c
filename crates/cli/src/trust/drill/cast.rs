//! Who plays in the drills: callers with credentials that are made for them, of the operator's authority and of a false one.
//!
//! Keys live in this process only, and certificates of drills end by themselves after [`LIFETIME`].

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    Action, Principal, Resource, Thumbprint,
    authority::{Authority, AuthorityKeys, BUNDLE, LeafKey, LeafKind, LeafRequest, Lifetimes, State},
    keys::SealedFile,
    policy::{ObservedRecord, PrincipalRecord, Request, Rules, Sources},
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};

use crate::wire::{Dialer, Shown};
use crate::{
    failure::{Failure, OrInput as _},
    trust::{authority, authority::Unlocking, failure},
};

/// Certificates of drills end after so long.
const LIFETIME: Duration = Duration::from_secs(900);

/// The operator's folder, and what opens it.
pub struct Folder<'a> {
    /// That of `trust init`.
    pub path: &'a Path,
    /// Where the server has its policies.
    pub policies: PathBuf,
    /// Where the server has its log.
    pub audit: PathBuf,
    /// What opens the keys.
    pub unlock: &'a Unlocking,
    /// Its trust domain.
    pub domain: String,
}

/// A caller with a certificate.
#[derive(Clone, Debug)]
pub struct Person {
    /// Path of its SPIFFE id.
    pub name: String,
    /// Serial number of its certificate.
    pub serial: String,
    /// When that ends.
    pub not_after: SystemTime,
    /// What it shows.
    pub shown: Shown,
    chain: String,
    key: String,
}

impl Person {
    /// `x5t#S256` of its certificate.
    pub fn thumbprint(&self) -> String {
        Thumbprint::of_certificate(self.shown.leaf()).to_base64url()
    }
}

/// All who play.
pub struct Cast {
    /// Makes their connections.
    pub dialer: Dialer,
    /// Who may use the model: whose credentials are stolen, and who turns against the model.
    pub insider: Person,
    /// Who is verified and may not use the model.
    pub stranger: Person,
    /// The administrator.
    pub admin: Person,
    /// True where policies permit the insider to use the model.
    pub insider_may: bool,
}

impl Folder<'_> {
    /// The rules that the server was given.
    pub fn rules(&self) -> Result<Rules, Failure> {
        Rules::compile(&Sources::read(&self.policies).or_input()?, 1).or_input()
    }

    /// Opens the authority for a moment: the server opens it too, to renew its certificate.
    pub fn with_authority<T>(&self, act: impl FnOnce(&mut Authority) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut tries = 0;
        loop {
            match authority::open(self.path, None, self.unlock) {
                Ok(mut authority) => return act(&mut authority),
                // Another process has it, for a moment as well.
                Err(Failure::Work(_)) if tries < 20 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(failed) => return Err(failed),
            }
        }
    }

    /// A certificate of the operator's authority.
    pub fn issue(&self, name: &str, lifetime: Duration) -> Result<Person, Failure> {
        self.with_authority(|authority| person(authority, name, lifetime))
    }
}

fn person(authority: &mut Authority, name: &str, lifetime: Duration) -> Result<Person, Failure> {
    let request = LeafRequest {
        name: name.to_owned(),
        kind: LeafKind::Client,
        dns: Vec::new(),
        addresses: Vec::new(),
        lifetime: Some(lifetime),
        key: LeafKey::Generate,
    };
    let issued = authority.issue(&request, SystemTime::now()).map_err(failure)?;
    let key = issued.key.map(|key| key.to_string()).unwrap_or_default();
    let shown = Shown::from_pem(&issued.chain, &key)?;
    Ok(Person {
        name: name.to_owned(),
        serial: issued.serial,
        not_after: issued.not_after,
        shown,
        chain: issued.chain,
        key,
    })
}

impl Cast {
    /// Issues to all who play. The model is none where the server has none.
    pub fn gather(
        folder: &Folder<'_>,
        dialer: Dialer,
        model: Option<&Resource>,
        insider: Option<&str>,
    ) -> Result<Self, Failure> {
        let parts = Parts::choose(folder, model, insider)?;
        Ok(Self {
            dialer,
            insider: folder.issue(&parts.insider, LIFETIME)?,
            stranger: folder.issue(&parts.stranger, LIFETIME)?,
            admin: folder.issue("admin", LIFETIME)?,
            insider_may: parts.insider_may,
        })
    }
}

impl Cast {
    /// What believes the folder's authority.
    pub fn dialer(folder: &Folder<'_>) -> Result<Dialer, Failure> {
        let roots = folder.path.join(BUNDLE);
        let roots = std::fs::read(&roots).map_err(|error| Failure::input(format!("`{}`: {error}", roots.display())))?;
        Dialer::new(&roots)
    }
}

/// Who takes which part.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    insider: String,
    stranger: String,
    insider_may: bool,
}

impl Parts {
    /// From the names of the own trust domain that policies and entities speak of.
    fn choose(folder: &Folder<'_>, model: Option<&Resource>, insider: Option<&str>) -> Result<Self, Failure> {
        let sources = Sources::read(&folder.policies).or_input()?;
        let rules = folder.rules()?;
        let texts = sources.policies.iter().chain(&sources.entities).map(|file| file.text.as_str());
        let named = names(texts, &folder.domain);
        let may = |name: &str| model.is_some_and(|model| may_infer(&rules, &folder.domain, name, model));
        let candidates = ["drill/insider"].into_iter().chain(named.iter().map(String::as_str));
        let found = insider.or_else(|| candidates.clone().find(|name| may(name)));
        let insider = found.unwrap_or("drill/insider").to_owned();
        let other = |name: &&str| *name != insider && *name != "drill/insider" && !may(name);
        let stranger = candidates.clone().find(other).unwrap_or("drill/stranger").to_owned();
        Ok(Self { insider_may: may(&insider), insider, stranger })
    }
}

/// Names of workloads of a trust domain in policies and entities, but the administrator's and the server's.
fn names<'a>(texts: impl Iterator<Item = &'a str>, domain: &str) -> Vec<String> {
    let prefix = format!("\"spiffe://{domain}/");
    let mut names: Vec<String> = Vec::new();
    for text in texts {
        for rest in text.split(&prefix).skip(1) {
            let name = rest.split('"').next().unwrap_or_default().to_owned();
            if !name.is_empty() && name != "admin" && name != "server" && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// Whether a workload may use a model, under harmless observations.
fn may_infer(rules: &Rules, domain: &str, name: &str, model: &Resource) -> bool {
    let record = PrincipalRecord {
        strength: Some("key_bound".to_owned()),
        tenant: Some(domain.to_owned()),
        ..PrincipalRecord::named(format!("spiffe://{domain}/{name}"))
    };
    let Ok(principal): Result<Principal, _> = record.principal() else { return false };
    let request = Request { principal: &principal, action: Action::Infer, resource: model };
    rules.decide(&request, &ObservedRecord::default().observed(SystemTime::now())).allowed()
}

/// An authority of nobody's, which calls itself by the same trust domain.
pub struct Foreign {
    authority: Authority,
    _files: tempfile::TempDir,
}

impl Foreign {
    /// Makes it, for a trust domain.
    pub fn new(domain: &str) -> Result<Self, Failure> {
        let files = tempfile::tempdir()?;
        let unlock = edgeward_trust::keys::Unlock::Passphrase(b"of no worth".to_vec().into());
        let keys = Arc::new(SealedFile::create(&files.path().join("keys"), &unlock).map_err(failure)?);
        let keys = AuthorityKeys { online: keys.clone(), root: Some(keys) };
        let folder = files.path().join("authority");
        let authority =
            Authority::init(&folder, domain, keys, Lifetimes::default(), SystemTime::now()).map_err(failure)?;
        Ok(Self { authority, _files: files })
    }

    /// A certificate of it.
    pub fn issue(&mut self, name: &str) -> Result<Person, Failure> {
        person(&mut self.authority, name, LIFETIME)
    }
}

/// A certificate for a SPIFFE id that `by` signs with its leaf, as if that were an authority; or that signs itself.
pub fn forged(spiffe_id: &str, by: Option<&Person>) -> Result<Shown, Failure> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(spiffe_id.try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - Duration::from_secs(60)).into(), (now + LIFETIME).into());
    let key = KeyPair::generate()?;
    let chain = match by {
        None => params.self_signed(&key)?.pem(),
        Some(by) => {
            let issuer = Issuer::from_ca_cert_pem(&by.chain, KeyPair::from_pem(&by.key)?)?;
            params.signed_by(&key, &issuer)?.pem() + &by.chain
        }
    };
    Shown::from_pem(&chain, &key.serialize_pem())
}

/// The trust domain of a folder.
pub fn domain(folder: &Path) -> Result<String, Failure> {
    Ok(State::read(folder).or_input()?.trust_domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_own_domain_once_each() {
        let text = r#"permit (principal == Workload::"spiffe://a.b/ward/1", action, resource);
            [Workload."spiffe://a.b/ward/1"] [Workload."spiffe://a.b/admin"] "spiffe://other/x" "spiffe://a.b/two""#;
        assert_eq!(names([text].into_iter(), "a.b"), ["ward/1", "two"]);
    }
}
