//! Outgoing streams whose ends reset, half-close, stall, trickle and leave early: both ends
//! check every byte, and the one in the enclave says with its exit code what they found.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::machine::{Image, Node, Shim, boots_kernels, program_path, streams_of};
use crate::outside::{NameServer, address};

const PORT: u16 = 7001;

/// A fifteenth of the whole soak's time, which SOAK_SECONDS says.
fn seconds() -> u64 {
    std::env::var("SOAK_SECONDS").map_or(20, |text| (text.parse::<u64>().unwrap() / 15).max(2))
}

/// The server outside, until the test is over.
struct Server(Child);

impl Server {
    fn start(at: &str) -> Server {
        let mut command = Command::new(program_path("bench"));
        let mut server = command.args(["soak-server", at]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Server(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn outgoing_streams_keep_every_byte_while_their_ends_misbehave() {
    let node = Node::new();
    let (names, here) = (NameServer::start(), address());
    names.says("soak.example.com", &[&[&here.to_string()]]);
    let _server = Server::start(&format!("tcp:{here}:{PORT}"));
    let root = node.scratch().join("soak-rootfs");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::copy(program_path("bench"), root.join("bench")).unwrap();
    // The first name of the rules has the first address.
    let manifest = format!(
        "name: soak\nversion: '1'\nlogs: forward\negress: ['soak.example.com:{PORT}']\n\
         entrypoint: [/bench, soak, --through, 'tcp:198.18.0.1:{PORT}', --seconds, '{}']\n",
        seconds()
    );
    let config = format!(
        "memory_mib: 192\negress: ['soak.example.com:{PORT}', '{here}:{PORT}']\n\
         resolver: {{servers: ['{}']}}\n",
        names.address
    );
    let image = Image::from_rootfs(&node, &manifest, &root);
    let mut shim = Shim::with_ingress(&node, &image, " []", &config);
    let code = shim.exit_code(Duration::from_secs(seconds() + 60));
    let log = shim.log();
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains("did not end in time"), "{log}");
    let verdict = log.lines().find(|line| line.contains("MiB checked")).expect("the soak says what it saw");
    let each_second = if boots_kernels() { 1 } else { 25 };
    assert!(streams_of(verdict) >= each_second * seconds(), "{verdict}");
    println!("{verdict}");
}
