//! Promise: an enclave whose kernel panics ends the shim with 76 at once, and
//! the kernel's last words are kept. Only the qemu engine has a kernel to panic.

mod machine;

use std::time::{Duration, Instant};

use machine::{Image, Node, Shim, boots_kernels, python};

#[test]
fn a_kernel_panic_is_76_with_the_last_words_of_the_console() {
    if !boots_kernels() {
        eprintln!("SKIPPED: needs FAKENITRO_ENGINE=qemu, the process engine boots no kernel");
        return;
    }
    let node = Node::new();
    let image = Image::crashing(&node);
    let mut shim = Shim::with_flags(&node, &image, &["--debug"]);
    shim.ready();
    let cid = node.running()[0];
    let call = format!("import socket\nsocket.socket(40, 1).connect(({cid}, 666))");
    let called = node.command(&python()).arg("-c").arg(call).output().unwrap();
    assert!(called.status.success(), "{called:?}");
    let pressed = Instant::now();
    let (code, seen) = shim.ended(Duration::from_secs(40));
    assert_eq!(code, 76, "{}", shim.log());
    println!("76 after {:?}", seen - pressed);
    let log = shim.log();
    assert!(log.contains("Kernel panic - not syncing: sysrq triggered crash"), "{log}");
    assert!(node.running().is_empty());
}
