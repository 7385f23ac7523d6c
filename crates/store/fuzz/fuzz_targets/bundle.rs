//! What a signature's reader takes from others: bundle, envelope, statement, keys and roots.

#![no_main]

use edgeward_store::signing::{Bundle, ModelStatement, PublicKey, SigningKey, TrustRoots};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = PublicKey::from_pem(data);
    let _ = SigningKey::from_pem(data);
    let _ = TrustRoots::default().with_roots(data, &["spiffe://domain.example/*".to_owned()]);
    let _ = ModelStatement::parse(data);
    let Ok(bundle) = Bundle::parse(data) else { return };
    let again = bundle.to_bytes().expect("what was read can be written");
    assert_eq!(Bundle::parse(&again).expect("what was written can be read"), bundle);
    let _ = ModelStatement::parse(&bundle.payload);
});
