//! Programs that know nothing of all this reach their servers by name.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::enclave::{Enclave, rootfs};
use crate::machine::{Node, within};
use crate::outside::{NameServer, WebServer, address};

/// A program that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn curl_psql_and_a_tls_client_reach_their_servers_by_name_without_proxy_variables() {
    let node = Node::new();
    let here = address();
    let names = NameServer::start();
    for name in ["web.example.com", "db.example.com", "tls.example.com"] {
        names.says(name, &[&[&here.to_string()]]);
    }
    let web = WebServer::start(SocketAddr::from((here, 80)), "from outside");
    let (database, postgres) = start_postgres(node.scratch(), here);
    let (certificate, tls) = start_tls(node.scratch(), here);

    let psql = postgres.join("psql");
    let root = rootfs(&node, &[Path::new("/usr/bin/curl"), Path::new("/usr/bin/openssl"), &psql]);
    fs::copy(&certificate, root.join("ca.pem")).unwrap();
    // As images that were made on a machine with systemd-resolved have it.
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", root.join("etc/resolv.conf"))
        .unwrap();
    let rules = ["web.example.com:80", "db.example.com:5432", "*.example.com:4433"].map(str::to_owned);
    let outer: Vec<String> = rules.iter().cloned().chain([format!("{here}:80,443,4433,5432")]).collect();
    let mut enclave = Enclave::start(&node, &root, &rules, &outer, names.address);

    assert_eq!(enclave.run("curl -sS --max-time 20 http://web.example.com/"), "from outside");
    assert_eq!(web.served(), 1);
    let query = "select 6 * 7, inet_server_port()";
    let answer = enclave
        .run(&format!("PGCONNECT_TIMEOUT=20 psql -h db.example.com -U postgres -Atc '{query}' postgres"));
    assert_eq!(answer.trim(), "42|5432");
    // Large results in one direction and large statements in the other.
    let size = enclave
        .run("psql -h db.example.com -U postgres -Atc \"select repeat('x', 4000000)\" postgres | wc -c");
    assert_eq!(size.trim(), "4000001");
    let page = enclave.run("curl -sS --max-time 20 --cacert /ca.pem https://tls.example.com:4433/");
    assert!(page.contains("s_server"), "{page}");
    let shaken = enclave.run(
        "openssl s_client -connect tls.example.com:4433 -CAfile /ca.pem -verify_hostname tls.example.com \
         -verify_return_error -brief </dev/null",
    );
    assert!(shaken.contains("Verification: OK"), "{shaken}");
    assert!(enclave.run("env").lines().all(|line| !line.to_ascii_lowercase().contains("proxy")));
    within(Duration::from_secs(10), "all connections have ended", || enclave.ended("completed") >= 5);
    let text = enclave.shim.log();
    assert!(text.contains("egress allowed") && text.contains("web.example.com:80"), "the decision is logged");
    drop((database, tls));
}

#[test]
fn a_workload_that_listens_on_443_itself_reaches_443_of_a_name_in_both_orders() {
    let node = Node::new();
    let here = address();
    let names = NameServer::start();
    names.says("example.com", &[&[&here.to_string()]]);
    let _web = WebServer::start(SocketAddr::from((here, 443)), "from outside");
    let root = rootfs(&node, &[Path::new("/usr/bin/curl")]);
    let rules = ["example.com:443".to_owned()];
    let outer = [rules[0].clone(), format!("{here}:443")];
    let enclave = Enclave::start(&node, &root, &rules, &outer, names.address);
    let out = "curl -sS --max-time 20 http://example.com:443/";
    // The agent listened first.
    assert_eq!(enclave.run(out), "from outside");
    enclave.run("nc -ll -p 443 -e /bin/cat >/dev/null 2>&1 </dev/null &");
    within(Duration::from_secs(10), "the workload listens on 443", || {
        enclave.run("echo own | timeout 5 nc 127.0.0.1 443").contains("own")
    });
    assert_eq!(enclave.run(out), "from outside");
    assert_eq!(enclave.run("echo own | timeout 5 nc 127.0.0.1 443").trim(), "own");

    // The workload listened first: its own program, before anything has connected.
    let second = Node::new();
    let root = rootfs(&second, &[Path::new("/usr/bin/curl")]);
    fs::write(root.join("start"), "#!/bin/sh\nnc -ll -p 443 -e /bin/cat &\nexec nc -ll -p 8080 -e /bin/sh\n")
        .unwrap();
    let enclave = Enclave::start(&second, &root, &rules, &outer, names.address);
    assert_eq!(enclave.run("echo own | timeout 5 nc 127.0.0.1 443").trim(), "own");
    assert_eq!(enclave.run(out), "from outside");
}

/// Debian's server on `here`:5432, and the directory of its programs.
fn start_postgres(scratch: &Path, here: Ipv4Addr) -> (Server, PathBuf) {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL: run scripts/setup.sh test");
    let programs = versions.map(|entry| entry.unwrap().path().join("bin")).max().unwrap();
    let user =
        nix::unistd::User::from_name("postgres").unwrap().expect("the package makes the user postgres");
    let data = scratch.join("postgres");
    fs::create_dir(&data).unwrap();
    nix::unistd::chown(&data, Some(user.uid), Some(user.gid)).unwrap();
    // The node's directory is root's alone.
    fs::set_permissions(scratch, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let as_postgres = |program: &str| {
        let mut command = Command::new(programs.join(program));
        command
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw())
            .current_dir(&data)
            .arg("-D")
            .arg(data.join("data"));
        command
    };
    let made =
        as_postgres("initdb").args(["-A", "trust", "-N", "-E", "UTF8", "--locale=C"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut server = as_postgres("postgres");
    server.args([
        "-p",
        "5432",
        "-c",
        "fsync=off",
        "-c",
        "max_connections=10",
        "-c",
        "shared_buffers=8MB",
        "-h",
    ]);
    server.arg(here.to_string()).arg("-k").arg(&data).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server(server.spawn().unwrap());
    listens(SocketAddr::from((here, 5432)));
    (server, programs)
}

/// A self-signed certificate for tls.example.com, and a server with it on 4433.
fn start_tls(scratch: &Path, here: Ipv4Addr) -> (PathBuf, Server) {
    let (key, certificate) = (scratch.join("key.pem"), scratch.join("certificate.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=tls.example.com", "-addext", "subjectAltName=DNS:tls.example.com", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut server = Command::new("openssl");
    server.args(["s_server", "-www", "-quiet", "-accept", &format!("{here}:4433"), "-key"]).arg(&key);
    server.arg("-cert").arg(&certificate).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server(server.spawn().unwrap());
    listens(SocketAddr::from((here, 4433)));
    (certificate, server)
}

fn listens(address: SocketAddr) {
    within(Duration::from_secs(30), "a server listens", || {
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
    });
    assert!(TcpListener::bind(address).is_err());
}
