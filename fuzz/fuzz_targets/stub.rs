//! Any bytes as a name server's answer: refused, or addresses of the family that was asked for.
#![no_main]

use std::net::IpAddr;

use egress::stub::{Family, Question, Said};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(name) = "api.example.com".parse() else { return };
    for (family, four) in [(Family::Four, true), (Family::Six, false)] {
        let question = Question::new(&name, family, [0; 32]);
        // With the right beginning, so that what follows it is reached.
        let section = &question.bytes()[12..question.bytes().len() - 11];
        let split = data.len().min(10);
        let answer = [&[0, 0], &data[..split], section, &data[split..]].concat();
        for bytes in [data, answer.as_slice()] {
            if let Ok(Said::Addresses(addresses, _)) = question.read(bytes) {
                assert!(addresses.iter().all(|address| matches!(address, IpAddr::V4(_)) == four));
            }
        }
    }
});
