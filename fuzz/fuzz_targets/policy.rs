//! Arbitrary text as a policy file: refused, or a policy of at least one build
//! that refuses what is no document.
#![no_main]

use attestation::{Class, Clock, PolicyFile, Verifier};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|yaml: &str| {
    let Ok(file) = PolicyFile::parse(yaml) else { return };
    assert!(file.build_name(0).is_some(), "a policy without builds");
    let refusal = Verifier::new(file.anchors(), file.policy()).verify(b"", Clock::System).map(drop);
    assert_eq!(refusal.map_err(|error| error.class()), Err(Class::Malformed));
});
