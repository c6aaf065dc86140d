//! Arbitrary bytes as a PROXY protocol v2 header: refused, or kept as they
//! are, with an address that a header of our own says again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::ProxyHeader;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = ProxyHeader::parse(bytes.to_vec()) else { return };
    assert_eq!(header.bytes(), bytes);
    if let Some(client) = header.client() {
        assert_eq!(ProxyHeader::tcp(client, client).client(), Some(client));
    }
});
