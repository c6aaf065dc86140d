//! Any bytes as the head of a CONNECT request: refused, unfinished, or one target that reads back.
#![no_main]

use egress::connect;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(Some(request)) = connect::read(data) {
        assert!(request.length <= data.len().min(connect::LONGEST_HEAD));
        assert_eq!(request.target.to_string().parse(), Ok(request.target));
    }
});
