//! The way out of an image without our agent, and who may not take it.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use nix::sys::signal::Signal;

use crate::SOON;
use crate::image::image;
use crate::launches::start;
use crate::machine::{self, Image, Node, Shim, client, program_path};
use crate::outside::{NameServer, WebServer, address};

/// Bytes; fewer where a processor is emulated.
fn each_way() -> usize {
    if machine::boots_kernels() { 6 << 20 } else { 48 << 20 }
}

/// Bytes that no shift or repetition leaves as they are.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(each_way());
    while bytes.len() < each_way() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend((state >> 16).to_le_bytes());
    }
    bytes
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    context.finish().as_ref().to_vec()
}

/// One connection: sends noise while it reads to the end, and only then what that was.
fn mirror(listener: TcpListener) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut client = listener.accept().unwrap().0;
        let mut sending = client.try_clone().unwrap();
        let sender = std::thread::spawn(move || sending.write_all(&noise(7)).unwrap());
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        sender.join().unwrap();
        client.write_all(&digest(&received)).unwrap();
    })
}

/// A connection of the enclave to `port` of its parent, held by this test.
fn dial(shim: &mut Shim, port: u32) -> TcpStream {
    let mut stream = client::connect(shim.ingress(8081)).unwrap();
    stream.write_all(&port.to_be_bytes()).unwrap();
    stream
}

/// Closes without an end of stream.
fn reset(client: TcpStream) {
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
}

/// What comes back until the end, however it ends.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        bytes.extend_from_slice(&piece[..count]);
    }
    bytes
}

fn fetch(shim: &mut Shim, port: u32) -> String {
    let mut stream = dial(shim, port);
    // Who is refused may be closed before it has asked.
    let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
    String::from_utf8(rest(stream)).unwrap()
}

fn ended(shim: &mut Shim, outcome: &str) -> u64 {
    let name = format!("enclave_shim_egress_connections_total{{outcome=\"{outcome}\"}}");
    shim.metric(&name).unwrap_or(0.0) as u64
}

fn counted(shim: &mut Shim, outcome: &str, times: u64) {
    let http = shim.http();
    let line = format!("enclave_shim_egress_connections_total{{outcome=\"{outcome}\"}} {times}");
    shim.until(SOON, &line, |_| client::get(http, "/metrics").is_ok_and(|page| page.text().contains(&line)));
}

fn allowlist(node: &Node, entries: &str) -> PathBuf {
    let path = node.scratch().join("vsock-proxy.yaml");
    std::fs::write(&path, format!("allowlist:\n{entries}")).unwrap();
    path
}

#[test]
fn bytes_go_both_ways_unchanged_and_each_direction_ends_by_itself() {
    let node = Node::new();
    let here = address();
    let listener = TcpListener::bind((here, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let list = allowlist(&node, &format!("- {{address: {here}, port: {port}}}\n"));
    let config = format!(
        "tunnels: [{{port: 8000, to: '{here}:{port}'}}]\nvsock_proxy_allowlist: {}\n",
        list.display()
    );
    let mut shim = start(&node, &image(&node, false), &config);
    shim.ready();
    let server = mirror(listener);
    let mut stream = dial(&mut shim, 8000);
    let mut sending = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        sending.write_all(&noise(3)).unwrap();
        sending.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    server.join().unwrap();
    assert_eq!(received.len(), each_way() + 32);
    // It was written after the end of our direction had arrived.
    assert_eq!(received[each_way()..], digest(&noise(3)));
    assert!(received[..each_way()] == noise(7), "the answer is not what the server sent");
    counted(&mut shim, "completed", 1);
    let log = shim.log();
    assert!(log.contains("egress allowed") && log.contains(&format!("{here}:{port}")), "{log}");
    // One span, with what tells connections apart.
    let line =
        log.lines().rfind(|line| line.contains("\"completed\"") && line.contains("to_server")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let span = &line["span"];
    assert_eq!(span["name"], "tunnel", "{line}");
    assert_eq!(span["to"], format!("{here}:{port}"));
    assert_eq!(span["port"], 8000);
    let cid = node.running()[0].to_string();
    assert!(span["conn"].is_u64() && span["cid"] == cid, "{line}");
}

#[test]
fn a_stranger_on_a_tunnel_is_closed_and_counted_and_reaches_nothing() {
    let node = Node::new();
    let web = WebServer::start(SocketAddr::from((address(), 80)), "from outside");
    let eif = image(&node, false);
    let config = format!("tunnels: [{{port: 8000, to: '{}'}}]\n", web.address);
    let mut shim = start(&node, &eif, &config);
    shim.ready();
    let mut other = start(&node, &eif, "");
    other.ready();
    assert_eq!(fetch(&mut other, 8000), "");
    counted(&mut shim, "stranger", 1);
    // A process of the parent, of this pod or another, is a stranger as well.
    node.stranger_gets_nothing(8000, b"GET / HTTP/1.0\r\n\r\n");
    counted(&mut shim, "stranger", 2);
    assert_eq!(web.served(), 0, "a stranger reached the target");
    assert!(shim.log().contains("a stranger on a tunnel is closed"), "{}", shim.log());
    assert!(fetch(&mut shim, 8000).ends_with("from outside"), "its own enclave is served");
    assert_eq!(web.served(), 1);
}

#[test]
fn a_tunnel_leads_to_no_address_that_only_its_name_leads_to() {
    let node = Node::new();
    let here = address();
    let names = NameServer::start();
    let good = here.to_string();
    for (name, answers) in [
        ("good.example.com", &[&[good.as_str()][..]][..]),
        ("rebinds.example.com", &[&[good.as_str()], &["169.254.169.254"]]),
        ("imds.example.com", &[&["169.254.169.254"]]),
        ("loopback.example.com", &[&["127.0.0.1", "::1"]]),
        ("mapped.example.com", &[&["::ffff:169.254.169.254"]]),
        ("private.example.com", &[&["10.1.2.3"]]),
    ] {
        names.says(name, answers);
    }
    let web = WebServer::start(SocketAddr::from((here, 80)), "from outside");
    let config = format!(
        "egress: ['{here}:80', '!secret.example.com:*']
resolver: {{servers: ['{}']}}
tunnels:
  - {{port: 8000, to: 'good.example.com:80'}}
  - {{port: 8001, to: 'rebinds.example.com:80'}}
  - {{port: 8002, to: 'imds.example.com:80'}}
  - {{port: 8003, to: 'loopback.example.com:80'}}
  - {{port: 8004, to: 'mapped.example.com:80'}}
  - {{port: 8005, to: 'private.example.com:80'}}
  - {{port: 8006, to: 'secret.example.com:80'}}
  - {{port: 8007, to: 'missing.example.com:80'}}
  - {{port: 8008, to: '{here}:81'}}
",
        names.address
    );
    let mut shim = start(&node, &image(&node, false), &config);
    shim.ready();
    for port in [8000, 8001] {
        assert!(fetch(&mut shim, port).ends_with("from outside"), "{port}");
    }
    for (port, outcome) in [
        (8001, "address_denied"),
        (8002, "address_denied"),
        (8003, "address_denied"),
        (8004, "address_denied"),
        (8005, "address_denied"),
        (8006, "denied"),
        (8007, "no_such_name"),
        (8008, "refused"),
    ] {
        let before = ended(&mut shim, outcome);
        assert_eq!(fetch(&mut shim, port), "", "{port}");
        counted(&mut shim, outcome, before + 1);
    }
    assert_eq!(web.served(), 2);
    let log = shim.log();
    for reason in ["link-local", "loopback", "private", "denied by a rule"] {
        assert!(log.lines().any(|line| line.contains("denied") && line.contains(reason)), "{reason}: {log}");
    }
}

#[test]
fn tunnels_share_the_limit_of_outgoing_connections() {
    let node = Node::new();
    let listener = TcpListener::bind((IpAddr::from(address()), 0)).unwrap();
    let target = listener.local_addr().unwrap();
    let config = format!("tunnels: [{{port: 8000, to: '{target}'}}]\nlimits: {{egress_connections: 1}}\n");
    let mut shim = start(&node, &image(&node, false), &config);
    shim.ready();
    let http = shim.http();
    let mut first = dial(&mut shim, 8000);
    let (mut server, _) = listener.accept().unwrap();
    assert_eq!(rest(dial(&mut shim, 8000)), b"");
    counted(&mut shim, "full", 1);
    first.write_all(b"still here").unwrap();
    let mut arrived = [0; 10];
    server.read_exact(&mut arrived).unwrap();
    assert_eq!(&arrived, b"still here");
    drop((server, first));
    shim.until(SOON, "its place is free again", |_| {
        client::get(http, "/metrics")
            .is_ok_and(|page| page.text().contains("enclave_shim_egress_connections_open 0"))
    });
    let again = dial(&mut shim, 8000);
    listener.accept().unwrap();
    drop(again);
}

#[test]
fn a_silent_tunnel_ends_after_the_idle_timeout() {
    let node = Node::new();
    let listener = TcpListener::bind((IpAddr::from(address()), 0)).unwrap();
    let target = listener.local_addr().unwrap();
    let config = format!("tunnels: [{{port: 8000, to: '{target}'}}]\nlimits: {{idle_timeout: 2s}}\n");
    let mut shim = start(&node, &image(&node, false), &config);
    shim.ready();
    let client = dial(&mut shim, 8000);
    let (mut server, _) = listener.accept().unwrap();
    let accepted = Instant::now();
    // The client goes for good, or its own connection would be the first that is idle;
    // the workload waits on for what the server may say.
    reset(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0, "the workload's own direction has ended");
    counted(&mut shim, "idle", 1);
    assert!(accepted.elapsed() >= Duration::from_millis(1500), "after {:?}", accepted.elapsed());
    // What a reset leaves behind once the end has been read.
    let cut = server.take_error().unwrap().map(|error| error.kind());
    assert_eq!(cut, Some(ErrorKind::BrokenPipe), "a cut is a reset");
}

#[test]
fn no_stop_waits_for_a_tunnel_that_the_workload_holds_open() {
    let node = Node::new();
    let listener = TcpListener::bind((IpAddr::from(address()), 0)).unwrap();
    let target = listener.local_addr().unwrap();
    let config = format!("tunnels: [{{port: 8000, to: '{target}'}}]\ndrain: {{accept: 100ms}}\n");
    let mut shim = start(&node, &image(&node, false), &config);
    shim.ready();
    let client = dial(&mut shim, 8000);
    let (mut server, _) = listener.accept().unwrap();
    // The client goes for good; the workload waits on for what the server may say.
    reset(client);
    let http = shim.http();
    let open = ["enclave_shim_ingress_connections_open 0", "enclave_shim_egress_connections_open 1"];
    shim.until(SOON, "only the tunnel is open", |_| {
        client::get(http, "/metrics").is_ok_and(|page| open.iter().all(|line| page.text().contains(line)))
    });
    let sent = Instant::now();
    shim.signal(Signal::SIGTERM);
    let (code, ended) = shim.ended(SOON);
    assert_eq!(code, 143, "{}", shim.log());
    let limit = machine::limit(Duration::from_millis(1500), Duration::from_secs(5));
    assert!(ended - sent < limit, "took {:?}", ended - sent);
    // Whether as an end or as a reset: the server is not left waiting.
    let mut nothing = Vec::new();
    let _ = server.read_to_end(&mut nothing);
    assert!(nothing.is_empty());
}

#[test]
fn a_taken_port_is_told_by_its_number_before_anything_is_launched() {
    let node = Node::new();
    let eif = image(&node, false);
    let config = "tunnels: [{port: 8000, to: 'a.example.com:443'}]\n";
    let mut first = start(&node, &eif, config);
    first.ready();
    let mut second = start(&node, &eif, config);
    assert_eq!(second.exit_code(SOON), 71, "{}", second.log());
    let log = second.log();
    assert!(
        log.contains("cannot listen on vsock port 8000 of this instance for the tunnel to a.example.com:443"),
        "{log}"
    );
    assert!(log.contains("give this tunnel another port"), "{log}");
    assert_eq!(node.running().len(), 1);
}

#[test]
fn a_tunnel_to_where_vsock_proxys_list_does_not_lead_is_refused_at_the_start() {
    let node = Node::new();
    let list = allowlist(&node, "- {address: kms.eu-west-1.amazonaws.com, port: 443}\n");
    let eif = image(&node, false);
    for (to, message) in [
        (
            "kms.eu-west-2.amazonaws.com:443",
            "the tunnel at port 8000 leads to kms.eu-west-2.amazonaws.com:443, which",
        ),
        ("kms.eu-west-1.amazonaws.com:80", "does not name"),
        ("10.1.2.3:443", "does not name"),
    ] {
        let config =
            format!("tunnels: [{{port: 8000, to: '{to}'}}]\nvsock_proxy_allowlist: {}\n", list.display());
        let mut shim = start(&node, &eif, &config);
        assert_eq!(shim.exit_code(SOON), 64, "{}", shim.log());
        assert!(shim.log().contains(message), "{}", shim.log());
    }
    let mut shim = start(&node, &eif, "vsock_proxy_allowlist: /nonexistent.yaml\n");
    assert_eq!(shim.exit_code(SOON), 64, "{}", shim.log());
    assert!(shim.log().contains("cannot read the allow-list /nonexistent.yaml"), "{}", shim.log());
    assert!(node.status()["enclaves"].as_array().is_none_or(Vec::is_empty), "nothing was launched");
}

#[test]
fn an_image_with_our_agent_may_use_a_tunnel_where_its_settings_allow_vsock() {
    let node = Node::new();
    let web = WebServer::start(SocketAddr::from((address(), 80)), "from outside");
    let rootfs = node.scratch().join("vsock-rootfs");
    std::fs::create_dir_all(&rootfs).unwrap();
    std::fs::copy(program_path("foreign-init"), rootfs.join("carry")).unwrap();
    std::fs::write(rootfs.join("silent"), "").unwrap();
    let manifest = "name: carry\nversion: '1'\nentrypoint: [/carry]\nvsock: allow\nready: started\n";
    let image = Image::from_rootfs(&node, manifest, &rootfs);
    let config = format!("memory_mib: 64\ntunnels: [{{port: 8000, to: '{}'}}]\n", web.address);
    let mut shim = Shim::with_config(&node, &image, &config);
    shim.ready();
    // Started is not listening yet.
    let mut answer = String::new();
    machine::within(SOON, "the workload carries", || {
        answer = fetch(&mut shim, 8000);
        !answer.is_empty()
    });
    assert!(answer.ends_with("from outside"), "{answer}");
}
