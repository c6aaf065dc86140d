//! What is not allowed is refused, each time with its own reason.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::enclave::{Enclave, GATEWAY, PROXY, rootfs};
use crate::machine::{self, Node};
use crate::outside::{NameServer, WebServer, address};

const CURL: &str = "curl -sS --max-time 20";

/// curl's words for a reset: while it connects, right after, while it sends, before an answer.
fn cut(printed: &str) -> bool {
    ["[7]", "[52]", "[55]", "[56]"].iter().any(|code| printed.contains(code))
}

fn strings<const N: usize>(list: [&str; N]) -> Vec<String> {
    list.map(str::to_owned).to_vec()
}

#[test]
fn no_name_leads_to_an_address_that_is_not_allowed_and_no_rebinding_helps() {
    let node = Node::new();
    let here = address();
    let names = NameServer::start();
    let web = WebServer::start(SocketAddr::from((here, 80)), "from outside");
    let good = here.to_string();
    for (name, answers) in [
        ("good.example.com", &[&[good.as_str()][..]][..]),
        ("rebinds.example.com", &[&[good.as_str()], &["169.254.169.254"], &["127.0.0.1"]]),
        ("imds.example.com", &[&["169.254.169.254"]]),
        ("loopback.example.com", &[&["127.0.0.1"]]),
        ("mapped.example.com", &[&["::ffff:169.254.169.254"]]),
        ("imds6.example.com", &[&["fd00:ec2::254"]]),
        ("private.example.com", &[&["10.1.2.3"]]),
        ("denied.example.com", &[&["127.64.0.1"]]),
        // Refused, denied, good: all are looked at, all that are left are tried.
        ("several.example.com", &[&["127.63.255.1", "169.254.169.254", good.as_str()]]),
    ] {
        names.says(name, answers);
    }
    let root = rootfs(&node, &[Path::new("/usr/bin/curl")]);
    let image = strings(["*.example.com:80", "elsewhere.test:80", "gone.example.com:80"]);
    let shim = [
        "*.example.com:80".to_owned(),
        format!("{here}:80"),
        "127.63.255.1:80".to_owned(),
        "!127.64.0.1:*".to_owned(),
        "!secret.example.com:*".to_owned(),
    ];
    let mut enclave = Enclave::start(&node, &root, &image, &shim, names.address);
    let fetch = |enclave: &Enclave, name: &str| enclave.run(&format!("{CURL} http://{name}/; echo \"[$?]\""));

    assert_eq!(fetch(&enclave, "good.example.com").trim(), "from outside[0]");
    assert_eq!(fetch(&enclave, "several.example.com").trim(), "from outside[0]");
    assert_eq!(fetch(&enclave, "rebinds.example.com").trim(), "from outside[0]");
    let served = web.served();
    let mut denied = enclave.ended("address_denied");
    for (name, reason) in [
        ("rebinds.example.com", "link-local"),
        ("rebinds.example.com", "loopback"),
        ("imds.example.com", "link-local"),
        ("loopback.example.com", "loopback"),
        ("mapped.example.com", "link-local"),
        ("imds6.example.com", "private"),
        ("private.example.com", "private"),
        ("denied.example.com", "denied by a rule"),
    ] {
        let printed = fetch(&enclave, name);
        assert!(cut(&printed), "{name}: {printed}");
        denied += 1;
        assert_eq!(enclave.ended("address_denied"), denied, "{name}");
        machine::within(Duration::from_secs(10), "the refusal is logged with its reason", || {
            let text = enclave.shim.log();
            let line = text.lines().rfind(|line| line.contains("egress address denied"));
            line.is_some_and(|line| line.contains(name) && line.contains(reason))
        });
    }
    for (name, outcome) in [
        ("missing.example.com", "no_such_name"),
        ("secret.example.com", "denied"),
        ("elsewhere.test", "denied"),
    ] {
        let before = enclave.ended(outcome);
        let asked = names.asked();
        assert!(!fetch(&enclave, name).contains("[0]"), "{name}");
        assert_eq!(enclave.ended(outcome), before + 1, "{name}");
        assert!(outcome != "denied" || names.asked() == asked, "{name} was resolved");
    }
    assert_eq!(web.served(), served);

    // A name server that fails takes nothing away that was known, and adds nothing.
    names.breaks();
    assert_eq!(fetch(&enclave, "good.example.com").trim(), "from outside[0]");
    assert!(enclave.shim.metric("enclave_shim_egress_stale_answers_total").unwrap() >= 1.0);
    assert!(!fetch(&enclave, "never-asked.example.com").contains("[0]"));
    assert_eq!(enclave.ended("unresolved"), 1);
    assert!(!fetch(&enclave, "imds.example.com").contains("[0]"), "what is remembered is decided on too");
    assert_eq!(enclave.ended("address_denied"), denied + 1);
}

#[test]
fn the_agent_answers_for_allowed_names_only_and_refuses_every_trick_at_its_proxy() {
    let node = Node::new();
    let here = address();
    let names = NameServer::start();
    names.says("api.example.com", &[&[&here.to_string()]]);
    let _web = WebServer::start(SocketAddr::from((here, 80)), "from outside");
    let wide = WebServer::start(SocketAddr::from((here, 8017)), "wide");
    let root = rootfs(&node, &[Path::new("/usr/bin/curl")]);
    let rules = vec![
        "api.example.com:80,443".to_owned(),
        "*.wild.example.com:80".to_owned(),
        "api.example.com:8001-8017".to_owned(),
        format!("{here}:80"),
        "!old.wild.example.com:*".to_owned(),
    ];
    let outer = vec![
        "*.example.com:*".to_owned(),
        "169.254.0.0/16:*".to_owned(),
        format!("{here}:*"),
        "evil.test:*".to_owned(),
    ];
    let mut enclave = Enclave::start(&node, &root, &rules, &outer, names.address);

    // DNS: one address a name, the same for ever, another for every other name.
    let api = enclave.address_of("api.example.com");
    assert!(api.starts_with("198.18."), "{api}");
    let (a, b) = (enclave.address_of("a.wild.example.com"), enclave.address_of("b.wild.example.com"));
    assert!(a.starts_with("198.18.") && a != b && a != api && b != api, "{a} {b} {api}");
    assert_eq!(enclave.address_of("API.example.com"), api);
    for kind in ["aaaa", "txt", "mx"] {
        let printed = enclave.run(&format!("nslookup -type={kind} api.example.com {GATEWAY}"));
        assert!(!printed.contains("NXDOMAIN") && !printed.contains("mail exchanger"), "{printed}");
    }
    for name in ["evil.test", "old.wild.example.com", "wild.example.com", "1.0.18.198.in-addr.arpa"] {
        let printed = enclave.run(&format!("nslookup -type=a {name} {GATEWAY}"));
        assert!(printed.contains("NXDOMAIN"), "{name}: {printed}");
    }
    // What the image does not name is not even asked of the shim.
    let asked = enclave.ended("denied") + enclave.ended("bad_target");
    let by = |enclave: &Enclave, how: &str| enclave.run(&format!("{CURL} {how}; echo \"[$?]\""));
    assert!(by(&enclave, "http://169.254.169.254/").contains("[7]"), "no route");
    assert!(cut(&by(&enclave, "http://198.18.99.99/")), "an address of no name");
    assert!(
        by(&enclave, &format!("http://api.example.com:8017/ --connect-to ::{api}:")).contains("[7]"),
        "not listened on"
    );

    // The proxy: what has no address of its own, by both protocols.
    for how in [
        format!("-p -x http://{PROXY} http://api.example.com:8017/"),
        format!("-x socks5h://{PROXY} http://api.example.com:8017/"),
    ] {
        assert_eq!(by(&enclave, &how).trim(), "wide[0]");
    }
    assert_eq!(wide.served(), 2);
    for how in [
        format!("-p -x http://{PROXY} http://{here}/"),
        format!("-x socks5h://{PROXY} http://{here}/"),
        format!("-x socks5h://{PROXY} http://api.example.com/"),
    ] {
        assert_eq!(by(&enclave, &how).trim(), "from outside[0]");
    }

    let talk = |enclave: &Enclave, bytes: &str| {
        enclave.run(&format!("printf '{bytes}' | timeout 15 nc {GATEWAY} 3128 | head -c 200"))
    };
    let connect = |target: &str| format!("CONNECT {target} HTTP/1.1\\r\\n\\r\\n");
    for (target, status, reason) in [
        ("169.254.169.254:80", "403", "policy"),
        ("127.0.0.1:80", "403", "policy"),
        ("[::ffff:169.254.169.254]:80", "403", "policy"),
        ("evil.test:80", "403", "policy"),
        ("api.example.com:22", "403", "policy"),
        ("2852039166:80", "400", "looks like an address"),
        ("0xa9.0xfe.0xa9.0xfe:80", "400", "looks like an address"),
        ("0251.0376.0251.0376:80", "400", "looks like an address"),
        ("169.254.43518:80", "400", "looks like an address"),
        ("api.example.com:80@169.254.169.254:80", "400", "no host name"),
        ("user@api.example.com:80", "400", "no host name"),
        ("api.example.com", "400", "no port"),
        ("api.example.com:0", "400", "no port"),
    ] {
        let printed = talk(&enclave, &connect(target));
        assert!(
            printed.starts_with(&format!("HTTP/1.1 {status} ")) && printed.contains(reason),
            "{target}: {printed}"
        );
    }
    let absolute = "GET http://api.example.com@169.254.169.254/ HTTP/1.1\\r\\n\\r\\n";
    assert!(talk(&enclave, absolute).starts_with("HTTP/1.1 405 "));
    let differs = "CONNECT api.example.com:80 HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n";
    assert!(talk(&enclave, differs).starts_with("HTTP/1.1 400 "));
    // Larger than a head may be: a field, the target itself, the number of fields.
    let long = "head -c 9000 /dev/zero | tr '\\000' a";
    for (first, more) in [
        ("CONNECT api.example.com:80 HTTP/1.1\\r\\nX: ", long),
        ("CONNECT ", long),
        ("CONNECT api.example.com:80 HTTP/1.1\\r\\n", "seq 1 70 | sed 's/$/: x/'"),
    ] {
        let script = format!("(printf '{first}'; {more}) | timeout 15 nc {GATEWAY} 3128 | head -c 40");
        let printed = enclave.run(&script);
        assert!(printed.starts_with("HTTP/1.1 431 "), "{first}: {printed}");
    }
    // SOCKS: the longest name, which is none of DNS; as many methods as there can be.
    let repeat = |text: &str, count: usize| text.repeat(count);
    for (bytes, answer) in [
        (format!("\\005\\001\\000\\005\\001\\000\\003\\377{}\\000\\120", repeat("a", 255)), "05000501"),
        (format!("\\005\\377{}", repeat("\\002", 255)), "05ff"),
    ] {
        let printed = enclave.run(&format!(
            "printf '{bytes}' | timeout 15 nc {GATEWAY} 3128 | /bin/busybox xxd -p | head -c 8"
        ));
        assert!(printed.trim().starts_with(answer), "{printed}");
    }
    // SOCKS: methods, then requests. The last two numbers of a reply's first four tell.
    for (bytes, answer) in [
        ("\\004\\001\\000\\120\\251\\376\\251\\376\\000", ""),
        ("\\005\\001\\002", "05ff"),
        ("\\005\\001\\000\\005\\002\\000\\001\\251\\376\\251\\376\\000\\120", "05000507"),
        ("\\005\\001\\000\\005\\001\\000\\001\\251\\376\\251\\376\\000\\120", "05000502"),
        ("\\005\\001\\000\\005\\001\\000\\011", "05000508"),
        ("\\005\\001\\000\\005\\001\\000\\003\\00612.3.4\\000\\120", "05000501"),
    ] {
        let printed = enclave.run(&format!(
            "printf '{bytes}' | timeout 15 nc {GATEWAY} 3128 | /bin/busybox xxd -p | head -c 8"
        ));
        assert!(printed.trim().starts_with(answer), "{bytes}: {printed}");
    }
    assert_eq!(enclave.ended("denied") + enclave.ended("bad_target"), asked, "the agent asked the shim");
}

#[test]
fn a_stranger_on_the_node_gets_no_stream_and_no_shim_without_rules_carries_any() {
    let node = Node::new();
    let names = NameServer::start();
    names.says("api.example.com", &[&["127.0.0.1"]]);
    let root = rootfs(&node, &[Path::new("/usr/bin/curl")]);
    let rules = strings(["api.example.com:80"]);
    let mut enclave = Enclave::start(&node, &root, &rules, &[], names.address);
    assert!(cut(&enclave.run(&format!("{CURL} http://api.example.com/; echo \"[$?]\""))));
    assert_eq!((enclave.ended("denied"), names.asked()), (1, 0));

    let cid = node.running()[0];
    let script = format!(
        r#"
import socket, struct, time
def frame(body): return struct.pack(">I", len(body)) + body
hello = frame(bytes([0x82, {version}, 0x50]) + bytes(16))
attach = frame(bytes([0x81, 0x01]))
for first in (hello + attach, hello, b"", attach, b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 4096, hello[:5]):
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.settimeout(20)
    s.connect(({cid}, {stream}))
    begun = time.monotonic()
    answer = b""
    try:
        s.sendall(first)
        while True:
            piece = s.recv(4096)
            if not piece:
                break
            answer += piece
    except ConnectionResetError:
        pass
    assert time.monotonic() - begun < 15, "a silent stranger keeps its place"
    print(len(first), answer.hex())
    s.close()
"#,
        version = wire::PROTOCOL,
        stream = wire::port::STREAM,
    );
    let output = node.command(&machine::python()).arg("-c").arg(script).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let claimed = wire::encode(&wire::Greeting::Refused(wire::Refusal::AlreadyClaimed)).unwrap();
    let no_hello = wire::encode(&wire::Greeting::Refused(wire::Refusal::NotAHello)).unwrap();
    let refusals = [hex::encode(claimed), hex::encode(no_hello)];
    assert_eq!(text.lines().count(), 7, "{text}");
    assert!(
        text.lines().all(|line| refusals.iter().any(|refusal| line.ends_with(refusal.as_str()))),
        "{text}"
    );
    assert_eq!(text.lines().filter(|line| line.ends_with(&refusals[0])).count(), 2, "{text}");
}

#[test]
fn slow_clients_are_let_go_and_do_not_keep_others_waiting() {
    let node = Node::new();
    let here = address();
    let names = NameServer::start();
    names.says("api.example.com", &[&[&here.to_string()]]);
    let _web = WebServer::start(SocketAddr::from((here, 80)), "from outside");
    let root = rootfs(&node, &[Path::new("/usr/bin/curl")]);
    let rules = vec!["api.example.com:80".to_owned(), format!("{here}:80")];
    let enclave = Enclave::start(&node, &root, &rules, &rules, names.address);
    // Each says a little of something, and then nothing.
    let begun = std::time::Instant::now();
    enclave.run(
        r#"slow() { (printf "$1"; sleep 40) 2>/dev/null | timeout 60 nc 198.19.255.1 $2 >/dev/null 2>&1 & }
for i in 1 2 3 4; do
slow '' 3128
slow 'CONNECT api.example.com:80 HT' 3128
slow '\005\001\000\005\001\000\003\077' 3128
slow '\000\040ab' 53
done"#,
    );
    // By their own ends: the gateway's are followed by another address.
    let connected = "cat /proc/net/tcp | grep -c ' 01FF13C6:0C38 01 \\| 01FF13C6:0035 01 '";
    machine::within(Duration::from_secs(8), "every slow client is connected", || {
        enclave.run(connected).trim() == "16"
    });
    let out = format!("{CURL} http://api.example.com/");
    assert_eq!(enclave.run(&out), "from outside");
    assert_eq!(enclave.run(&format!("{CURL} -x socks5h://{PROXY} http://api.example.com/")), "from outside");
    machine::within(Duration::from_secs(30), "slow clients are let go", || {
        enclave.run(connected).trim() == "0"
    });
    assert!(begun.elapsed() < Duration::from_secs(35), "they went by themselves");
}
