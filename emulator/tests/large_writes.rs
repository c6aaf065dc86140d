//! vsock writes above 32 KiB are seen, and in `corrupt` mode damaged.

mod support;

use support::{Node, printed};

const PROGRAM: &str = r#"
import hashlib, os, socket, sys, threading
size, how = int(sys.argv[1]), sys.argv[2]
def vsock(): return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
l = vsock(); l.bind((3, 7000)); l.listen(1)
c = vsock(); c.connect((3, 7000)); a, _ = l.accept()
data = os.urandom(size); seen = hashlib.sha256()
def read():
    while chunk := a.recv(65536): seen.update(chunk)
reader = threading.Thread(target=read); reader.start()
if how == "send": sent = c.send(data)
if how == "write": sent = os.write(c.fileno(), data)
if how == "writev": sent = os.writev(c.fileno(), [data[:100], data[100:]])
if how == "sendmsg": sent = c.sendmsg([data[:100], data[100:]])
if how == "sendfile":
    f = open("/proc/self/fd/%d" % os.memfd_create("x"), "wb+"); f.write(data); f.flush()
    sent = os.sendfile(c.fileno(), f.fileno(), 0, size)
c.close(); reader.join()
print(sent, seen.digest() == hashlib.sha256(data[:sent]).digest())
"#;

fn large_writes(node: &Node) -> serde_json::Value {
    node.json(&["stats"])["vsock_writes_over_32k"].clone()
}

#[test]
fn every_way_of_writing_is_counted_above_32_kib_and_not_below() {
    need!("python3");
    for how in ["send", "write", "writev", "sendmsg", "sendfile"] {
        let node = Node::new(&[]);
        assert_eq!(printed(node.python(PROGRAM, &["32768", how])), "32768 True\n", "{how}");
        assert_eq!(large_writes(&node), 0, "{how}");
        assert_eq!(printed(node.python(PROGRAM, &["65536", how])), "65536 True\n", "{how}");
        assert_eq!(large_writes(&node), 1, "{how}");
    }
}

#[test]
fn corrupt_mode_damages_what_is_too_large_and_nothing_else() {
    need!("python3");
    let node = Node::new(&["--large-writes", "corrupt"]);
    for how in ["send", "write", "writev", "sendmsg"] {
        assert_eq!(printed(node.python(PROGRAM, &["32768", how])), "32768 True\n", "{how}");
        assert_eq!(printed(node.python(PROGRAM, &["65536", how])), "65536 False\n", "{how}");
    }
    // What the socket cannot take at once is waited for; a short count is honest.
    let printed = printed(node.python(PROGRAM, &["2000000", "send"]));
    assert!(printed.ends_with(" False\n"), "{printed}");
}

#[test]
fn off_looks_at_nothing() {
    need!("python3");
    let node = Node::new(&["--large-writes", "off"]);
    assert_eq!(printed(node.python(PROGRAM, &["65536", "send"])), "65536 True\n");
    assert_eq!(large_writes(&node), 0);
}
