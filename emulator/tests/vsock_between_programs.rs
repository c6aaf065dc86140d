//! Unmodified programs talk over AF_VSOCK on one node, with the kernel's
//! addresses and errors.

mod support;

use std::io::Write;
use std::process::Stdio;

use support::{Node, printed};

/// Connects, sends, half-closes, reads the answer.
const DIAL: &str = r#"
import socket, sys
cid, port = int(sys.argv[1]), int(sys.argv[2])
c = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
c.connect((cid, port))
c.sendall(sys.argv[3].encode())
c.shutdown(socket.SHUT_WR)
print(c.makefile().read(), c.getpeername())
"#;

/// Accepts one connection and answers in upper case.
const SERVE: &str = r#"
import socket, sys
l = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
l.bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
l.listen(1)
print("listening", flush=True)
c, peer = l.accept()
c.sendall(c.makefile().read().upper().encode())
print("peer", peer[0], peer[1] > 1023, c.getsockname(), c.getpeername() == peer)
"#;

#[test]
fn two_programs_meet_on_one_node_and_see_each_others_addresses() {
    need!("python3");
    let node = Node::new(&[]);
    let mut server = node.command("python3");
    let mut server = server.args(["-c", SERVE, "5000"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 10];
    std::io::Read::read_exact(server.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert_eq!(printed(node.python(DIAL, &["3", "5000", "hello"])), "HELLO (3, 5000)\n");
    assert_eq!(printed(server.wait_with_output().unwrap()), "peer 3 True (3, 5000) True\n");
}

#[test]
fn nodes_do_not_see_each_other() {
    need!("python3");
    let (node, other) = (Node::new(&[]), Node::new(&[]));
    let mut server = node.command("python3");
    let mut server = server.args(["-c", SERVE, "5000"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 10];
    std::io::Read::read_exact(server.stdout.as_mut().unwrap(), &mut line).unwrap();
    let refused = other.python(DIAL, &["3", "5000", "hello"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ConnectionResetError"), "{refused:?}");
    assert_eq!(printed(node.python(DIAL, &["1", "5000", "hello"])), "HELLO (1, 5000)\n");
    server.wait().unwrap();
}

#[test]
fn errors_are_the_kernels() {
    need!("python3");
    let program = r#"
import errno, os, socket
def name(call):
    try: call(); return "OK"
    except OSError as e: return errno.errorcode[e.errno]
def vsock(): return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
l = vsock(); l.bind((3, 7000)); l.listen(1)
print("in use", name(lambda: vsock().bind((3, 7000))), name(lambda: vsock().bind((socket.VMADDR_CID_ANY, 7000))))
print("bound twice", name(lambda: l.bind((3, 7001))))
print("foreign cid", name(lambda: vsock().bind((77, 7001))))
print("closed port", name(lambda: vsock().connect((3, 7002))))
print("unknown cid", name(lambda: vsock().connect((77, 1))), name(lambda: vsock().connect((2, 1))))
print("not connected", name(lambda: vsock().getpeername()))
print("not listening", name(lambda: vsock().accept()))
print("datagram", name(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_DGRAM)))
l.setblocking(False); print("nobody there", name(lambda: l.accept()))
l.close(); again = vsock(); print("free again", name(lambda: again.bind((3, 7000))))
print("unbound", vsock().getsockname())
a = vsock(); a.bind((3, 0xFFFFFFFF)); print("any port", a.getsockname()[0], a.getsockname()[1] > 1023)
print("domain", vsock().getsockopt(socket.SOL_SOCKET, 39))
s = vsock(); s.setsockopt(40, 0, 1 << 20)
print("clamped", s.getsockopt(40, 0))
print("option", name(lambda: s.getsockopt(40, 99)))
os.setuid(1000); print("privileged", name(lambda: vsock().bind((3, 80))))
"#;
    let expected = "in use EADDRINUSE EADDRINUSE\nbound twice EINVAL\nforeign cid EADDRNOTAVAIL\n\
        closed port ECONNRESET\nunknown cid ENODEV ENODEV\nnot connected ENOTCONN\nnot listening EINVAL\n\
        datagram ENODEV\nnobody there EAGAIN\nfree again OK\nunbound (4294967295, 4294967295)\n\
        any port 3 True\ndomain 40\nclamped 262144\noption ENOPROTOOPT\nprivileged EACCES\n";
    assert_eq!(printed(Node::new(&[]).python(program, &[])), expected);
}

#[test]
fn event_loops_accept_without_blocking_and_threads_share_a_listener() {
    need!("python3");
    let program = r#"
import select, socket, threading
def vsock(): return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
l = vsock(); l.bind((3, 7000)); l.listen(64)
# Several threads blocked in accept on one listener; every connection has one answer.
served = []
def serve():
    for _ in range(10):
        c, peer = l.accept(); served.append(peer); c.sendall(b"x"); c.close()
workers = [threading.Thread(target=serve) for _ in range(4)]
[w.start() for w in workers]
def dial(n):
    for _ in range(n):
        c = vsock(); c.connect((3, 7000)); assert c.recv(1) == b"x"
dialers = [threading.Thread(target=dial, args=(10,)) for _ in range(4)]
[d.start() for d in dialers]; [t.join() for t in dialers + workers]
print("threads", len(set(served)))
# Edge-triggered epoll registered before bind and listen keeps working.
l = vsock(); l.setblocking(False); e = select.epoll(); e.register(l, select.EPOLLIN | select.EPOLLET)
l.bind((3, 7001)); l.listen(8)
clients = [vsock() for _ in range(3)]
[c.connect((3, 7001)) for c in clients]
assert e.poll(5)
accepted = [l.accept()[0] for _ in range(3)]
try: l.accept()
except BlockingIOError: print("epoll", len(accepted))
# A child inherits a listener and a duplicate is the same socket.
import os
if os.fork() == 0:
    c = vsock(); c.connect((3, 7001)); os._exit(0)
os.wait(); copy = os.dup(l.fileno()); print("child", socket.socket(fileno=copy).accept()[1][0])
"#;
    assert_eq!(printed(Node::new(&[]).python(program, &[])), "threads 40\nepoll 3\nchild 3\n");
}

#[test]
fn one_blocked_accept_stalls_nobody_and_signals_reach_it() {
    need!("python3");
    let program = r#"
import signal, socket, threading, time
def vsock(): return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
idle = vsock(); idle.bind((3, 7000)); idle.listen(1)
class Alarm(Exception): pass
def rang(*_): raise Alarm
signal.signal(signal.SIGALRM, rang)
l = vsock(); l.bind((3, 7001)); l.listen(1)
def others():
    for _ in range(20):
        c = vsock(); c.connect((3, 7001)); l.accept()[0].close()
    signal.pthread_kill(main, signal.SIGALRM)
main = threading.get_ident()
threading.Thread(target=others).start()
try: idle.accept()
except Alarm: print("interrupted")
c = vsock(); c.connect((3, 7000)); print("still works", idle.accept()[1] == c.getsockname())
"#;
    assert_eq!(printed(Node::new(&[]).python(program, &[])), "interrupted\nstill works True\n");
}

#[test]
fn a_full_backlog_resets_and_room_lets_waiters_in() {
    need!("python3");
    let program = r#"
import socket, threading
def vsock(): return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
l = vsock(); l.bind((3, 7000)); l.listen(1)
kept = []
try:
    while True:
        c = vsock(); c.connect((3, 7000)); kept.append(c)
except ConnectionResetError: print("reset after", len(kept))
waiter = vsock(); waiting = threading.Thread(target=lambda: waiter.connect((3, 7000))); waiting.start()
l.accept(); waiting.join(); print("let in", waiter.getpeername())
"#;
    assert_eq!(printed(Node::new(&[]).python(program, &[])), "reset after 2\nlet in (3, 7000)\n");
}

#[test]
fn other_sockets_of_a_program_stay_as_they_are() {
    need!("python3");
    let program = r#"
import os, socket, threading
t = socket.socket(); t.bind(("127.0.0.1", 0)); t.listen(1)
c = socket.socket(); c.connect(t.getsockname()); a, peer = t.accept()
print("tcp", peer == c.getsockname(), a.getsockname() == t.getsockname(), t.getsockopt(socket.SOL_SOCKET, 39) == socket.AF_INET)
u = socket.socket(socket.AF_UNIX); u.bind("\0own-name"); u.listen(1)
d = socket.socket(socket.AF_UNIX); d.connect("\0own-name"); print("unix", repr(u.accept()[1]), u.getsockname())
a.sendmsg([b"x" * 70000]); total = 0
while total < 70000: total += len(c.recv(65536))
print("large tcp", total)
"#;
    let node = Node::new(&[]);
    assert_eq!(
        printed(node.python(program, &[])),
        "tcp True True True\nunix '' b'\\x00own-name'\nlarge tcp 70000\n"
    );
    assert_eq!(node.json(&["stats"])["vsock_writes_over_32k"], 0);
}

#[test]
fn socat_speaks_vsock_both_ways() {
    need!("socat");
    let node = Node::new(&[]);
    let mut server = node.command("socat");
    let mut server = server.args(["VSOCK-LISTEN:9100", "EXEC:tr a-z A-Z"]).spawn().unwrap();
    let started = std::time::Instant::now();
    let answer = loop {
        assert!(started.elapsed().as_secs() < 10, "no answer from socat");
        let mut client = node.command("socat");
        let client =
            client.args(["-t5", "-", "VSOCK-CONNECT:3:9100"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = client.stderr(Stdio::null()).spawn().unwrap();
        let _ = client.stdin.take().unwrap().write_all(b"from socat\n");
        let output = client.wait_with_output().unwrap();
        // Until the listener is there, the dial is reset.
        if output.status.success() {
            break output.stdout;
        }
    };
    assert_eq!(answer, b"FROM SOCAT\n");
    server.wait().unwrap();
}
