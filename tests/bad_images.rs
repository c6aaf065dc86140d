//! Promise: a damaged image is refused as an image (65), before the device is
//! opened. The library's own tests go through every offset; these thirty go
//! through the real program.

mod machine;

use std::time::Duration;

use machine::shim::config_file;
use machine::{Image, Node, Shim};

#[test]
fn thirty_damaged_images_are_65_before_the_device_is_opened() {
    let node = Node::new();
    let good = std::fs::read(Image::hello(&node).path).unwrap();
    // Opening this device would end with 69: 65 shows that it was not tried.
    let config = config_file(&node, "device: /nonexistent/device\n");
    let damaged = node.scratch().join("damaged.eif");

    std::fs::write(&damaged, &good).unwrap();
    assert_eq!(exit_code(&config, &damaged).0, 69, "the undamaged image gets as far as the device");

    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for step in 1..=12 {
        let length = good.len() * step / 13 / 4096 * 4096;
        cases.push((format!("cut at {length}"), good[..length].to_vec()));
    }
    cases.push(("empty".into(), Vec::new()));
    cases.push(("one byte more".into(), [&good[..], b"x"].concat()));
    let header_fields = [
        (0, "magic"),
        (4, "version"),
        (6, "flags"),
        (24, "reserved"),
        (26, "sections"),
        (28, "offset 0"),
        (36, "offset 1"),
        (284, "size 0"),
        (292, "size 1"),
        (540, "unused"),
        (544, "crc"),
    ];
    for (offset, name) in header_fields {
        let mut bytes = good.clone();
        bytes[offset] ^= 0x40;
        cases.push((name.into(), bytes));
    }
    for (offset, name) in
        [(548, "section type"), (550, "section flags"), (552, "section size"), (1000, "kernel")]
    {
        let mut bytes = good.clone();
        bytes[offset] ^= 1;
        cases.push((name.into(), bytes));
    }
    cases.push(("not an image".into(), b"#!/bin/sh\n".repeat(500)));
    assert!(cases.len() >= 30, "{}", cases.len());

    for (name, bytes) in cases {
        std::fs::write(&damaged, &bytes).unwrap();
        let (code, log) = exit_code(&config, &damaged);
        assert_eq!(code, 65, "{name}:\n{log}");
        assert!(log.contains("damaged.eif"), "{name}: the file is not named:\n{log}");
    }
}

fn exit_code(config: &std::path::Path, eif: &std::path::Path) -> (i32, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_enclave-shim"));
    command.args(["run", "--eif"]).arg(eif).arg("--config").arg(config);
    let mut shim = Shim::run(command);
    (shim.exit_code(Duration::from_secs(10)), shim.log())
}
