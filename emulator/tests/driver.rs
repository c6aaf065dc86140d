//! /dev/nitro_enclaves answers as the driver does.

mod support;

use support::{HugePages, Node, printed, program};

/// What every program here starts with.
fn python(node: &Node, body: &str, arguments: &[&str]) -> String {
    let prelude = format!(
        r#"
import errno, fcntl, mmap, os, sys, time
sys.path.insert(0, {:?})
from launch import *
def code(f, *a):
    try: f(*a); return 0
    except OSError as e: return e.errno
def create():
    d = os.open("/dev/nitro_enclaves", os.O_RDWR)
    return call(d, CREATE_VM, "=Q", 0)[0]
"#,
        program("").display().to_string()
    );
    printed(node.python(&(prelude + body), arguments))
}

#[test]
fn memory_is_checked_page_by_page() {
    need!("python3");
    let _pages = HugePages::reserve(16);
    let body = r#"
fd = create()
two = 2 << 20
memory, address = huge(4 * two)
small = mmap.mmap(-1, 3 * two); small_at = ctypes.addressof(ctypes.c_char.from_buffer(small)); small_at += -small_at % two
donate = lambda flags, size, at: code(call, fd, SET_MEMORY, "=QQQ", flags, size, at)
print("flags", donate(1, two, address))
print("size", donate(0, two + 4096, address))
print("alignment", donate(0, two, address + 4096))
print("beyond", donate(0, two, 1 << 63))
print("nothing", donate(0, two, 1 << 40) == errno.EFAULT)
print("ordinary pages", donate(0, two, small_at))
print("good", donate(0, 2 * two, address))
print("overlap", donate(0, 2 * two, address + two))
print("next", donate(0, two, address + 2 * two))
print("unmapped argument", code(fcntl.ioctl, fd, SET_MEMORY, 16) == errno.EFAULT)
print("wrong size in number", code(fcntl.ioctl, fd, 0x4010AE23, bytearray(24)) == errno.ENOTTY)
child = os.fork()
if child == 0:
    print("other process", donate(0, two, address + 3 * two) == errno.EIO, flush=True); os._exit(0)
os.waitpid(child, 0)
"#;
    let expected = "flags 274\nsize 259\nalignment 261\nbeyond 260\nnothing True\nordinary pages 263\ngood 0\n\
        overlap 262\nnext 0\nunmapped argument True\nwrong size in number True\nother process True\n";
    assert_eq!(python(&Node::new(&[]), body, &[]), expected);
}

#[test]
fn cpus_come_from_the_pool_in_whole_cores() {
    need!("python3");
    let body = r#"
one, two = create(), create()
add = lambda fd, cpu: code(call, fd, ADD_VCPU, "=I", cpu)
print(call(one, ADD_VCPU, "=I", 0)[1], add(one, 2), add(two, 3), add(two, 99), add(two, 9), add(two, 0))
print([add(two, 0) for _ in range(5)])
os.close(two); print(open("/sys/module/nitro_enclaves/parameters/ne_cpus").read().strip())
deadline = time.monotonic() + 5
while True: # the node learns of a close a moment later
    try: three = create(); break
    except OSError:
        if time.monotonic() > deadline: raise
print([add(three, 0) for _ in range(3)])
"#;
    // one: 2; two: 9, its sibling 8, then 4 to 7 and nothing more; closing gives them back.
    let expected = "(2,) 256 257 271 0 0\n[0, 0, 0, 0, 272]\n2-9\n[0, 0, 0]\n";
    assert_eq!(python(&Node::new(&[]), body, &[]), expected);
}

#[test]
fn a_start_is_refused_for_the_drivers_reasons_in_its_order() {
    need!("python3");
    let _pages = HugePages::reserve(66);
    let body = r#"
fd = create()
start = lambda flags=0, cid=0: code(call, fd, START, "=QQ", flags, cid)
print("flags", start(2)); print("cids", [start(0, c) for c in (1, 2, 3, 0xFFFFFFFF, 1 << 32)])
print("no memory", start())
memory, address = huge(66 << 20)
call(fd, SET_MEMORY, "=QQQ", 0, 62 << 20, address); print("too little", start())
call(fd, SET_MEMORY, "=QQQ", 0, 4 << 20, address + (62 << 20)); print("no cpus", start())
call(fd, ADD_VCPU, "=I", 0); print("half a core", start())
call(fd, ADD_VCPU, "=I", 0); print("no image", start() == errno.EINVAL)
print("load info", call(fd, LOAD_INFO, "=QQ", 1, 0)[1], code(call, fd, LOAD_INFO, "=QQ", 0, 0), code(call, fd, LOAD_INFO, "=QQ", 2, 0))
"#;
    let expected = "flags 274\ncids [275, 275, 275, 275, 275]\nno memory 266\ntoo little 268\nno cpus 267\n\
        half a core 269\nno image True\nload info (1, 8388608) 274 274\n";
    assert_eq!(python(&Node::new(&[]), body, &[]), expected);
}

#[test]
fn slots_regions_and_the_pool_are_limited() {
    need!("python3");
    let _pages = HugePages::reserve(16);
    let body = r#"
fds = [create() for _ in range(2)]
print("slots", code(create) == errno.ENOSPC)
os.close(fds.pop())
while code(create) == errno.ENOSPC: pass
print("freed")
memory, address = huge(16 << 20)
codes = [code(call, fds[0], SET_MEMORY, "=QQQ", 0, 2 << 20, address + n * (2 << 20)) for n in range(8)]
print(codes)
print("flags of the descriptor", fcntl.fcntl(fds[0], fcntl.F_GETFD) == fcntl.FD_CLOEXEC)
"#;
    let node = Node::new(&["--slots", "2", "--max-regions", "3"]);
    let expected = "slots True\nfreed\n[0, 0, 0, 265, 265, 265, 265, 265]\nflags of the descriptor True\n";
    assert_eq!(python(&node, body, &[]), expected);
    let empty = Node::new(&["--cpu-pool", ""]);
    assert_eq!(python(&empty, "print(code(create))", &[]), "272\n");
}

#[test]
fn the_device_has_an_owner_a_group_and_a_mode() {
    need!("python3");
    let body = r#"
import stat
s = os.stat("/dev/nitro_enclaves"); print(oct(s.st_mode), s.st_uid, s.st_gid)
os.setgroups([]); os.setgid(1000); os.setuid(1000); print(code(create) == errno.EACCES)
"#;
    assert_eq!(python(&Node::new(&["--device-group", "1234"]), body, &[]), "0o20660 0 1234\nTrue\n");
    let without = Node::new(&["--no-device"]);
    let body = "print(code(create) == errno.ENOENT, os.path.exists('/sys/module/nitro_enclaves'), os.path.exists('/dev/vsock'))";
    assert_eq!(python(&without, body, &[]), "True False True\n");
}

#[test]
fn faults_are_injected_as_the_file_says() {
    need!("python3");
    let node = Node::new(&[]);
    std::fs::create_dir_all(node.state()).unwrap();
    let faults =
        r#"[{"ioctl": "NE_ADD_VCPU", "errno": 257, "times": 1}, {"ioctl": "NE_START_ENCLAVE", "errno": 5}]"#;
    std::fs::write(node.state().join("faults.json"), faults).unwrap();
    let body = r#"
fd = create(); add = lambda: code(call, fd, ADD_VCPU, "=I", 0)
print(add(), add(), code(call, fd, START, "=QQ", 0, 0), code(call, fd, START, "=QQ", 0, 0))
"#;
    assert_eq!(python(&node, body, &[]), "257 0 5 5\n");
}
