//! Any bytes as the messages of a SOCKS5 client: refused, unfinished, or one target that reads back.
#![no_main]

use egress::socks;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(Some(((), length))) = socks::methods(data) {
        assert!(length <= data.len());
    }
    if let Ok(Some((target, length))) = socks::request(data) {
        assert!(length <= data.len().min(socks::LONGEST));
        assert_eq!(target.to_string().parse(), Ok(target));
    }
});
