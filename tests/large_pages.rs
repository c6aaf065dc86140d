//! Promise: pages of 1 GiB are taken first, and an enclave whose memory is
//! made of both sizes boots from it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod machine;

use machine::{Image, Node, Shim};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB";

/// A free page in the pool, added if there was none and then given back at the end.
struct LargePage {
    before: u64,
}

fn number(name: &str) -> Option<u64> {
    std::fs::read_to_string(format!("{POOL}/{name}")).ok()?.trim().parse().ok()
}

impl LargePage {
    /// Nothing where the kernel has no such pages, or finds no room for one.
    fn reserve() -> Option<LargePage> {
        let page = LargePage { before: number("nr_hugepages")? };
        // Room in one piece is rare on a machine that has run for a while.
        if number("free_hugepages")? == 0 {
            let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
            std::fs::write(format!("{POOL}/nr_hugepages"), (page.before + 1).to_string()).ok()?;
        }
        (number("free_hugepages")? > 0).then_some(page)
    }
}

impl Drop for LargePage {
    fn drop(&mut self) {
        let _ = std::fs::write(format!("{POOL}/nr_hugepages"), self.before.to_string());
    }
}

#[test]
fn an_enclave_of_a_large_page_and_small_ones_boots() {
    let Some(_page) = LargePage::reserve() else {
        return eprintln!("SKIPPED: the kernel gives no page of 1 GiB here");
    };
    let free = number("free_hugepages").unwrap();
    let node = Node::new();
    let image = Image::hello(&node);
    let mut shim = Shim::with_config(&node, &image, "memory_mib: 1032\n");
    shim.ready();
    assert!(shim.log().contains("1032 MiB of memory (1 x 1 GiB, 4 x 2 MiB)"), "{}", shim.log());
    assert_eq!(shim.describe()[0]["MemoryMiB"], 1032);
    // The page is the enclave's now.
    assert_eq!(number("free_hugepages"), Some(free - 1));
    assert_eq!(shim.get("/").status, 200);
    shim.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(shim.exit_code(std::time::Duration::from_secs(20)), 0, "{}", shim.log());
    machine::within(std::time::Duration::from_secs(10), "the page is free again", || {
        number("free_hugepages") == Some(free)
    });
}
