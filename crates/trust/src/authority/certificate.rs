//! Makes certificates and revocation lists. ECDSA on P-256 throughout; signing is the key provider's.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm, SigningKey, string::Ia5String,
};
use zeroize::Zeroizing;

use super::{
    LeafRequest,
    state::{CaCertificate, LeafKind, LeafRecord, State},
};
use crate::{
    error::{ErrorKind, TrustError},
    keys::{KeyProvider, check_key_name, random_bytes},
};

/// Clocks may differ by so much.
const SKEW: Duration = Duration::from_secs(60);

/// Whose key a leaf certifies.
#[derive(Clone, Debug)]
pub enum LeafKey {
    /// A new one, which is handed out with the certificate.
    Generate,
    /// That of a PKCS#10 request in PEM, whose names are not taken over.
    Request(String),
}

/// A certificate for its holder.
pub struct IssuedLeaf {
    /// Serial number in hexadecimal.
    pub serial: String,
    /// `spiffe://DOMAIN/NAME`.
    pub spiffe_id: String,
    /// The leaf and its intermediate, in PEM.
    pub chain: String,
    /// The private key in PEM (PKCS#8), where it was generated.
    pub key: Option<Zeroizing<String>>,
    /// End of its validity.
    pub not_after: SystemTime,
}

/// A key of a provider, as rcgen signs with it.
struct ProviderKey {
    provider: Arc<dyn KeyProvider>,
    id: String,
    public: Vec<u8>,
}

impl ProviderKey {
    fn open(provider: Arc<dyn KeyProvider>, id: &str) -> Result<Self, TrustError> {
        let info = provider.describe(id)?;
        let public = info.versions.last().and_then(|version| version.public_key.clone());
        let public = public.ok_or_else(|| {
            TrustError::new(ErrorKind::Invalid, format!("key `{id}` is {}; expected a P-256 key", info.kind))
        })?;
        Ok(Self { provider, id: id.to_owned(), public })
    }
}

impl PublicKeyData for ProviderKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for ProviderKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.provider.sign(&self.id, message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// Makes a root that signs itself with key `id`.
pub fn root(
    trust_domain: &str,
    keys: Arc<dyn KeyProvider>,
    id: &str,
    now: SystemTime,
    lifetime: Duration,
) -> Result<CaCertificate, TrustError> {
    let key = ProviderKey::open(keys, id)?;
    let (serial, mut params) = ca_params(trust_domain, id, 1)?;
    let (not_before, not_after) = validity(&mut params, now, lifetime);
    let pem = params.self_signed(&key).map_err(|error| failed(&error))?.pem();
    Ok(CaCertificate { serial, key: id.to_owned(), not_before, not_after, pem })
}

/// Makes an intermediate for the key `id` of `keys`, which ends with its root at the latest.
pub fn intermediate(
    trust_domain: &str,
    root: &CaCertificate,
    root_keys: Arc<dyn KeyProvider>,
    (keys, id): (Arc<dyn KeyProvider>, &str),
    now: SystemTime,
    lifetime: Duration,
) -> Result<CaCertificate, TrustError> {
    let key = ProviderKey::open(keys, id)?;
    let issuer = issuer(root, root_keys)?;
    let (serial, mut params) = ca_params(trust_domain, id, 0)?;
    params.use_authority_key_identifier_extension = true;
    let (not_before, not_after) = validity(&mut params, now, within(root, now, lifetime));
    let pem = params.signed_by(&key, &issuer).map_err(|error| failed(&error))?.pem();
    Ok(CaCertificate { serial, key: id.to_owned(), not_before, not_after, pem })
}

/// Makes a leaf, which ends with its intermediate at the latest.
pub fn leaf(
    trust_domain: &str,
    ca: &CaCertificate,
    keys: Arc<dyn KeyProvider>,
    request: &LeafRequest,
    now: SystemTime,
    lifetime: Duration,
) -> Result<(IssuedLeaf, LeafRecord), TrustError> {
    check_path(&request.name)?;
    let spiffe_id = format!("spiffe://{trust_domain}/{}", request.name);
    let mut params = CertificateParams::default();
    params.distinguished_name = Default::default();
    params.distinguished_name.push(DnType::CommonName, request.name.rsplit('/').next().unwrap_or_default());
    params.subject_alt_names = names(&spiffe_id, request)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if request.kind == LeafKind::Server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    let serial = new_serial(&mut params)?;
    let (not_before, not_after) = validity(&mut params, now, within(ca, now, lifetime));
    let issuer = issuer(ca, keys)?;
    let (certificate, key) = match &request.key {
        LeafKey::Generate => {
            let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed(&error))?;
            (params.signed_by(&pair, &issuer), Some(Zeroizing::new(pair.serialize_pem())))
        }
        LeafKey::Request(pem) => {
            let request = CertificateSigningRequestParams::from_pem(pem)
                .map_err(|error| TrustError::new(ErrorKind::Invalid, format!("the certificate request: {error}")))?;
            (params.signed_by(&request.public_key, &issuer), None)
        }
    };
    let chain = certificate.map_err(|error| failed(&error))?.pem() + &ca.pem;
    let (name, kind, issuer) = (request.name.clone(), request.kind, ca.serial.clone());
    let record = LeafRecord { serial: serial.clone(), name, kind, issuer, not_before, not_after };
    Ok((IssuedLeaf { serial, spiffe_id, chain, key, not_after }, record))
}

/// The revocation list of every intermediate that is valid, in PEM; numbered by the version of the revocations.
pub fn revocation_lists(
    state: &State,
    keys: &Arc<dyn KeyProvider>,
    signed_at: SystemTime,
    lifetime: Duration,
) -> Result<String, TrustError> {
    let mut lists = String::new();
    for ca in state.intermediates.iter().filter(|ca| ca.is_valid(signed_at)) {
        let of_this =
            |serial: &String| state.leaves.iter().any(|leaf| leaf.serial == *serial && leaf.issuer == ca.serial);
        let revoked = state.revoked.iter().filter(|(serial, _)| of_this(serial));
        let params = CertificateRevocationListParams {
            this_update: signed_at.into(),
            next_update: (signed_at + lifetime).into(),
            crl_number: SerialNumber::from(state.revocation_version),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .map(|(serial, revocation)| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&hex_bytes(serial)),
                    revocation_time: revocation.at.into(),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&issuer(ca, keys.clone())?).and_then(|list| list.pem());
        lists.push_str(&list.map_err(|error| failed(&error))?);
    }
    Ok(lists)
}

/// Whether SPIFFE ids may begin so (SPIFFE-ID section 2.1): 1 to 255 of `a-z`, `0-9`, `.`, `-` and `_`.
pub fn check_trust_domain(trust_domain: &str) -> Result<(), TrustError> {
    let taken = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
    if (1..=255).contains(&trust_domain.len()) && trust_domain.chars().all(taken) {
        return Ok(());
    }
    let text = format!("`{trust_domain}` is no trust domain; expected a name like `hospital.example`");
    Err(TrustError::new(ErrorKind::Invalid, text))
}

/// Whether a SPIFFE id may have this path (SPIFFE-ID section 2.2): segments of letters, digits, `.`, `-` and `_`.
fn check_path(path: &str) -> Result<(), TrustError> {
    let taken = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.chars().all(taken);
    if path.len() <= 1024 && path.split('/').all(segment) {
        return Ok(());
    }
    let text = format!(
        "`{path}` cannot name a certificate; expected segments of letters, digits, `.`, `-` and `_`: `ward/scanner-3`"
    );
    Err(TrustError::new(ErrorKind::Invalid, text))
}

fn names(spiffe_id: &str, request: &LeafRequest) -> Result<Vec<SanType>, TrustError> {
    let ascii = |text: &str| {
        let dns = text.strip_prefix("*.").unwrap_or(text);
        let taken = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        let plausible = text == spiffe_id || (!dns.is_empty() && dns.len() <= 253 && dns.chars().all(taken));
        Ia5String::try_from(text.to_owned()).ok().filter(|_| plausible).ok_or_else(|| {
            TrustError::new(ErrorKind::Invalid, format!("`{text}` is no host name; expected one like `edge-1.example`"))
        })
    };
    let mut names = vec![SanType::URI(ascii(spiffe_id)?)];
    for dns in &request.dns {
        names.push(SanType::DnsName(ascii(dns)?));
    }
    names.extend(request.addresses.iter().map(|&address: &IpAddr| SanType::IpAddress(address)));
    Ok(names)
}

fn ca_params(trust_domain: &str, id: &str, below: u8) -> Result<(String, CertificateParams), TrustError> {
    check_key_name(id)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = Default::default();
    params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} {id}"));
    params.distinguished_name.push(DnType::OrganizationName, "Edgeward");
    let uri = Ia5String::try_from(format!("spiffe://{trust_domain}")).map_err(|error| failed(&error))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let serial = new_serial(&mut params)?;
    Ok((serial, params))
}

/// 16 random bytes, positive and without leading zeroes, so that all tools write it alike.
fn new_serial(params: &mut CertificateParams) -> Result<String, TrustError> {
    let mut bytes = random_bytes::<16>()?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&bytes));
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn hex_bytes(hex: &str) -> Vec<u8> {
    let digits = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    hex.as_bytes().chunks(2).filter_map(digits).collect()
}

/// Sets the validity, in whole seconds as certificates have it.
fn validity(params: &mut CertificateParams, now: SystemTime, lifetime: Duration) -> (SystemTime, SystemTime) {
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(since_1970.as_secs());
    let (not_before, not_after) = (now - SKEW, now + Duration::from_secs(lifetime.as_secs()));
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    (not_before, not_after)
}

fn within(issuer: &CaCertificate, now: SystemTime, lifetime: Duration) -> Duration {
    lifetime.min(issuer.not_after.duration_since(now).unwrap_or_default())
}

fn issuer(ca: &CaCertificate, keys: Arc<dyn KeyProvider>) -> Result<Issuer<'static, ProviderKey>, TrustError> {
    let key = ProviderKey::open(keys, &ca.key)?;
    Issuer::from_ca_cert_pem(&ca.pem, key).map_err(|error| failed(&error))
}

fn failed(error: &rcgen::Error) -> TrustError {
    TrustError::new(ErrorKind::Unavailable, format!("a certificate could not be made: {error}"))
}
