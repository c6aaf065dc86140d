//! Any bytes as a DNS question of the workload: no answer, or one that repeats the question.
#![no_main]

use std::net::Ipv4Addr;

use egress::dns::{self, Found};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let found = |name: &egress::Name| match name.as_str().len() % 3 {
        0 => Found::Address(Ipv4Addr::new(198, 18, 0, 1)),
        1 => Found::Nothing,
        _ => Found::Full,
    };
    if let Some(answer) = dns::answer(data, found) {
        assert_eq!(answer[..2], data[..2]);
        assert!(answer[2] & 0x80 != 0, "an answer is no question: two servers never talk to each other");
        assert!(answer.len() <= data.len() + 16);
    }
    let _ = dns::asked_name(data);
});
