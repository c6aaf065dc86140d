//! Promise: ready means the workload, by the rule of its measured settings.

mod machine;

use std::time::Duration;

use machine::{Image, Node, Shim, client};

const SOON: Duration = Duration::from_secs(10);

fn image(node: &Node, lines: &str) -> Image {
    Image::from_manifest(node, &format!("name: ready\nversion: '1'\nentrypoint: [/hello]\n{lines}\n"))
}

#[test]
fn a_workload_may_say_itself_that_it_is_ready() {
    let node = Node::new();
    // Port 9999 is never listened on: only the notification counts.
    let image = image(&node, "ready: notify\ningress: [8080, 9999]");
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    assert_eq!(shim.get("/").status, 200);
}

#[test]
fn without_the_notification_it_is_never_ready() {
    let node = Node::new();
    let image = image(&node, "ready: notify\ningress: [8080]\nenv: {HELLO_SILENT: '1'}");
    let mut shim = Shim::with_config(&node, &image, "memory_mib: 64\nboot: {timeout: 1s}\n");
    let http = shim.http();
    shim.until(SOON, "the workload runs, and the shim is not ready", |_| {
        client::get(http, "/readyz").is_ok_and(|answer| answer.status == 503)
    });
    assert_eq!(shim.exit_code(SOON), 75, "{}", shim.log());
}

#[test]
fn started_does_not_wait_for_a_port() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &image(&node, "ready: started\ningress: [9999]"));
    shim.ready();
}

#[test]
fn without_ingress_ports_started_is_ready() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &image(&node, "ready: listen"));
    shim.ready();
}
