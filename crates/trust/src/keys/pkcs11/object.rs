//! Keys as objects of a token.

use std::collections::BTreeMap;

use cryptoki::{
    error::Error,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::sessions::Failure;
use crate::keys::{KeyKind, is_key_name};

const AES_BYTES: u64 = 32;
/// DER of the object identifier 1.2.840.10045.3.1.7.
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// Ed25519 as PKCS#11 3.0 names it by a string, which SoftHSM takes alone, and by the object identifier 1.3.101.112 of RFC 8410.
const ED25519: &[u8] = b"\x13\x0cedwards25519";
const ED25519_OID: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

/// All versions of one key.
pub struct Objects {
    pub kind: KeyKind,
    /// Oldest first; never empty.
    pub versions: Vec<Version>,
}

/// The secret or private object of one version.
#[derive(Clone, Copy)]
pub struct Version {
    pub number: u32,
    pub handle: ObjectHandle,
}

impl Objects {
    /// The version in use.
    pub fn newest(&self) -> Version {
        self.versions[self.versions.len() - 1]
    }
}

/// The keys of a token, or those of one label. Objects that do not follow the provider's naming, or are of other kinds, are left out.
pub fn find(session: &Session, label: Option<&str>) -> Result<BTreeMap<String, Objects>, Failure> {
    let mut keys: BTreeMap<String, Objects> = BTreeMap::new();
    for class in [ObjectClass::SECRET_KEY, ObjectClass::PRIVATE_KEY] {
        let mut template = vec![Attribute::Class(class), Attribute::Token(true)];
        template.extend(label.map(|label| Attribute::Label(label.as_bytes().to_vec())));
        for handle in session.find_objects(&template)? {
            let Some((label, kind, number)) = read(session, handle)? else { continue };
            let key = keys.entry(label).or_insert(Objects { kind, versions: Vec::new() });
            if key.kind == kind {
                key.versions.push(Version { number, handle });
            }
        }
    }
    for key in keys.values_mut() {
        key.versions.sort_by_key(|version| version.number);
    }
    Ok(keys)
}

/// Label, kind and number of an object, where it is a key of ours.
fn read(session: &Session, handle: ObjectHandle) -> Result<Option<(String, KeyKind, u32)>, Failure> {
    let wanted = [AttributeType::Label, AttributeType::Id, AttributeType::KeyType];
    let (mut label, mut number, mut key_type) = (None, None, None);
    for attribute in session.get_attributes(handle, &wanted)? {
        match attribute {
            Attribute::Label(bytes) => label = String::from_utf8(bytes).ok().filter(|text| is_key_name(text)),
            Attribute::Id(bytes) => number = version_number(&bytes),
            Attribute::KeyType(found) => key_type = Some(found),
            _ => {}
        }
    }
    let (Some(label), Some(number), Some(key_type)) = (label, number, key_type) else { return Ok(None) };
    let detail = match key_type {
        KeyType::AES => AttributeType::ValueLen,
        KeyType::EC | KeyType::EC_EDWARDS => AttributeType::EcParams,
        _ => return Ok(None),
    };
    let kind = match session.get_attributes(handle, &[detail])?.first() {
        Some(Attribute::ValueLen(bytes)) if u64::from(*bytes) == AES_BYTES => KeyKind::Wrapping,
        Some(Attribute::EcParams(curve)) if curve == P256 => KeyKind::P256,
        Some(Attribute::EcParams(curve)) if curve == ED25519 || curve == ED25519_OID => KeyKind::Ed25519,
        _ => return Ok(None),
    };
    Ok(Some((label, kind, number)))
}

/// A number from 1, most significant byte first.
fn version_number(id: &[u8]) -> Option<u32> {
    let number = id.iter().try_fold(0_u32, |number, &byte| number.checked_mul(256)?.checked_add(byte.into()))?;
    (number > 0).then_some(number)
}

fn id_of(number: u32) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let zeroes = bytes.iter().take_while(|&&byte| byte == 0).count();
    bytes[zeroes..].to_vec()
}

/// The public half of a version, where the token has it.
pub fn public_key(session: &Session, label: &str, version: &Version) -> Result<Option<Vec<u8>>, Failure> {
    let template = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::Token(true),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Id(id_of(version.number)),
    ];
    for handle in session.find_objects(&template)? {
        if let Some(Attribute::EcPoint(point)) = session.get_attributes(handle, &[AttributeType::EcPoint])?.first() {
            return Ok(bare_point(point));
        }
    }
    Ok(None)
}

/// A point as keys are written elsewhere. Tokens give it in an OCTET STRING as the standard says, some in a BIT STRING or bare.
fn bare_point(point: &[u8]) -> Option<Vec<u8>> {
    let bare = match point {
        [0x04, 65, rest @ ..] | [0x04, 32, rest @ ..] | [0x03, 66 | 33, 0, rest @ ..] => rest,
        bare => bare,
    };
    matches!(bare, [0x04, ..] if bare.len() == 65)
        .then_some(bare)
        .or((bare.len() == 32).then_some(bare))
        .map(Into::into)
}

/// Makes a version, within the token.
pub fn make(session: &Session, label: &str, kind: KeyKind, number: u32) -> Result<(), Error> {
    let naming = || [Attribute::Token(true), Attribute::Label(label.as_bytes().to_vec()), Attribute::Id(id_of(number))];
    let kept = || [Attribute::Private(true), Attribute::Sensitive(true), Attribute::Extractable(false)];
    let (mechanism, curve) = match kind {
        KeyKind::Wrapping => {
            let mut template = vec![Attribute::ValueLen(AES_BYTES.into())];
            template.extend([Attribute::Encrypt(true), Attribute::Decrypt(true)]);
            template.extend(naming().into_iter().chain(kept()));
            return session.generate_key(&Mechanism::AesKeyGen, &template).map(drop);
        }
        KeyKind::P256 => (Mechanism::EccKeyPairGen, P256),
        KeyKind::Ed25519 => (Mechanism::EccEdwardsKeyPairGen, ED25519),
    };
    let mut public = vec![Attribute::Private(false), Attribute::Verify(true), Attribute::EcParams(curve.to_vec())];
    public.extend(naming());
    let mut private = vec![Attribute::Sign(true)];
    private.extend(naming().into_iter().chain(kept()));
    session.generate_key_pair(&mechanism, &public, &private).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers() {
        for number in [1, 255, 256, 65_537, u32::MAX] {
            assert_eq!(version_number(&id_of(number)), Some(number));
        }
        for id in [&[][..], &[0], &[0, 0], &[1, 0, 0, 0, 0], &[0xff; 40]] {
            assert_eq!(version_number(id), None, "{id:?}");
        }
    }

    #[test]
    fn points_are_bare_in_each_spelling() {
        let point = [&[4_u8][..], &[7; 64]].concat();
        assert_eq!(bare_point(&point), Some(point.clone()));
        assert_eq!(bare_point(&[&[4, 65][..], &point].concat()), Some(point.clone()));
        assert_eq!(bare_point(&[&[3, 66, 0][..], &point].concat()), Some(point));
        assert_eq!(bare_point(&[&[4, 32][..], &[9; 32]].concat()), Some(vec![9; 32]));
        assert_eq!(bare_point(&[9; 32]), Some(vec![9; 32]));
        for bad in [&[][..], &[4], &[4, 65], &[4, 65, 4], &[9; 33], &[2; 65], &[4; 66]] {
            assert_eq!(bare_point(bad), None, "{bad:?}");
        }
    }
}
