//! Any files make an archive that this crate's reader and Debian's cpio read
//! as those files.
#![no_main]

#[path = "../../eif/tests/round_trip/mod.rs"]
mod round_trip;

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use round_trip::{Node, check, name};

fuzz_target!(|data: &[u8]| {
    let mut nodes = BTreeMap::new();
    let mut rest = data;
    while let Some((head, after)) = rest.split_first_chunk::<16>() {
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (path, after) = after.split_at(after.len().min(usize::from(head[12])));
        let (content, after) = after.split_at(after.len().min(usize::from(head[13]) << (head[14] % 9)));
        rest = after;
        let path = name(path, usize::from(head[15] % 4) + 1);
        if !path.is_empty() {
            let permissions = u16::from_le_bytes([head[2], head[3]]);
            nodes.insert(path, Node::of(head[0], permissions, number(4), number(8), content, head[1] & 1 == 1));
        }
    }
    check(&nodes);
});
