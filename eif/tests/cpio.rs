//! The archive writer, read back by another program: property tests beside
//! the fuzz target of the same name.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod round_trip;

use std::collections::BTreeMap;

use proptest::prelude::*;
use round_trip::{Node, check, name};

fn node() -> impl Strategy<Value = Node> {
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..9),
        prop::collection::vec(any::<u8>(), 65_530..65_560)
    ];
    (any::<u8>(), any::<u16>(), any::<u32>(), any::<u32>(), data, any::<bool>()).prop_map(
        |(kind, permissions, uid, gid, data, twin)| Node::of(kind, permissions, uid, gid, &data, twin),
    )
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(any::<u8>(), 1..300), 1..4usize)
        .prop_map(|(bytes, depth)| name(&bytes, depth))
        .prop_filter("a name is never empty", |name| !name.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn debians_cpio_reads_what_the_writer_wrote(nodes in prop::collection::btree_map(path(), node(), 0..12)) {
        check(&nodes);
    }
}

#[test]
fn names_and_data_of_every_length_modulo_four_are_aligned() {
    let mut nodes = BTreeMap::new();
    for len in 0..8usize {
        let path = name(&vec![len as u8; len + 1], 1);
        nodes.insert(path, Node::of(3, 0o644, 0, 0, &vec![7; len], len % 3 == 0));
    }
    check(&nodes);
}
