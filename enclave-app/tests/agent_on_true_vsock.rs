//! Promise: the agent loads the modules of its image, and serves over a true AF_VSOCK
//! as it does under fakenitro. Needs a machine of its own whose kernel has vsock in
//! modules that nobody has loaded: scripts/true-vsock.sh boots one and names an image
//! of examples/hello with them.

#![allow(clippy::unwrap_used, clippy::panic)] // a failure here is the test's

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use relay::{Counters, Options, Vsock, relay_with};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_LOCAL, VsockAddr, VsockStream};
use wire::{
    ExitStatus, FrameReader, Greeting, Hello, PROTOCOL, Phase, Refusal, SessionToken, ToAgent, ToShim,
};

/// Longer than any step takes on an emulated processor.
const SOON: Duration = Duration::from_secs(60);
/// Linux, asm-generic/errno-base.h and errno.h.
const ENODEV: i32 = 19;
const EAFNOSUPPORT: i32 = 97;
const ECONNRESET: i32 = 104;
const WEB: u32 = 8080;
const COUNT: u32 = 8081;

/// An agent that is PID 1 of its own process namespace, on a root of its own.
struct Agent {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Agent {
    fn start(image: &Path) -> Agent {
        let image = eif::Image::read(File::open(image).unwrap()).unwrap();
        let mut script = String::from("mkdir /enclave && mount -t tmpfs enclave /enclave && cd /enclave");
        for (number, section) in image.layout().ramdisks().enumerate() {
            let path = format!("/tmp/ramdisk-{number}");
            io::copy(&mut image.reader(section), &mut File::create(&path).unwrap()).unwrap();
            script += &format!(" && cpio -idm <{path}");
        }
        script += " && exec unshare -m -p -f chroot /enclave /init 2>&1";
        let mut command = Command::new("/bin/sh");
        let mut child = command.args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (lines, sink) = (BufReader::new(child.stdout.take().unwrap()).lines(), said.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                println!("agent: {line}");
                *sink.lock().unwrap() += &(line + "\n");
            }
        });
        Agent { child, said }
    }

    fn has_said(&self, words: &str) -> bool {
        self.said.lock().unwrap().contains(words)
    }

    /// The agent itself: the one child of what made its namespaces.
    fn pid(&self) -> Pid {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        Pid::from_raw(children.trim().parse().unwrap()).unwrap()
    }

    fn limit_open_files(&self, soft: u64) {
        let limit = Rlimit { current: Some(soft), maximum: Some(65_536) };
        prlimit(Some(self.pid()), Resource::Nofile, limit).unwrap();
    }
}

/// A control connection.
struct Control {
    stream: VsockStream,
    reader: FrameReader,
}

impl Control {
    async fn dial(token: u8) -> io::Result<(Control, Greeting)> {
        let stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_LOCAL, wire::port::CONTROL)).await?;
        let mut control = Control { stream, reader: FrameReader::new() };
        let token = SessionToken::from_random([token; 16]);
        control.send(&Hello { version: PROTOCOL, token }).await;
        let greeting = control.receive().await;
        Ok((control, greeting))
    }

    async fn send<T: minicbor::Encode<()>>(&mut self, message: &T) {
        self.stream.write_all(&wire::encode(message).unwrap()).await.unwrap();
    }

    async fn receive<T: for<'a> minicbor::Decode<'a, ()>>(&mut self) -> T {
        loop {
            if let Some(message) = self.reader.next_message().unwrap() {
                return message;
            }
            let mut bytes = [0; 4096];
            let read = timeout(SOON, self.stream.read(&mut bytes)).await.unwrap().unwrap();
            assert!(read > 0, "the agent closed the control connection");
            self.reader.push(&bytes[..read]);
        }
    }

    async fn until(&mut self, wanted: impl Fn(&ToShim) -> bool) -> ToShim {
        loop {
            let message = self.receive().await;
            if wanted(&message) {
                return message;
            }
        }
    }
}

/// The shim's ingress: every connection is carried to `port` of the enclave.
async fn ingress(port: u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let vsock = Vsock::connect(VMADDR_CID_LOCAL, port).await.unwrap();
                let options = Options { far_end_relays: true, ..Options::default() };
                relay_with(tcp, vsock, &Counters::default(), options).await
            });
        }
    });
    address
}

/// Sends `bytes`, ends that direction, and returns what comes back.
async fn exchange(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut client = TcpStream::connect(to).await.unwrap();
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    answer
}

async fn within(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn claim_traffic_descriptor_limits_and_the_exit_status_over_a_true_vsock() {
    let Some(image) = std::env::var_os("TRUE_VSOCK_IMAGE") else {
        eprintln!("SKIPPED true_vsock: TRUE_VSOCK_IMAGE is not set (scripts/true-vsock.sh)");
        return;
    };
    let without = Control::dial(1).await.map(|_| ()).unwrap_err().raw_os_error();
    assert_eq!(without, Some(EAFNOSUPPORT), "this kernel has vsock before the agent has loaded it");
    let agent = Agent::start(Path::new(&image));
    let dialling = Instant::now();
    let (mut control, greeting) = loop {
        match Control::dial(1).await {
            Ok(dialled) => break dialled,
            // Not loaded yet, or not the transport, or nobody listens yet.
            Err(error) => {
                let early = [EAFNOSUPPORT, ENODEV, ECONNRESET].map(Some);
                assert!(early.contains(&error.raw_os_error()), "{error}");
            }
        }
        assert!(dialling.elapsed() < SOON, "the agent does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(matches!(greeting, Greeting::Welcome { .. }), "{greeting:?}");
    let loaded = std::fs::read_to_string("/proc/modules").unwrap();
    for module in ["vsock", "vmw_vsock_virtio_transport_common", "vsock_loopback"] {
        assert!(loaded.lines().any(|line| line.split(' ').next() == Some(module)), "{module}: {loaded}");
    }
    control.until(|message| matches!(message, ToShim::Reached { phase: Phase::Ready, .. })).await;
    let (_, greeting) = Control::dial(2).await.unwrap();
    assert_eq!(greeting, Greeting::Refused(Refusal::AlreadyClaimed));

    let (web, count) = (ingress(WEB).await, ingress(COUNT).await);
    let request = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    let page = || async { String::from_utf8_lossy(&exchange(web, request).await).into_owned() };
    assert!(page().await.starts_with("HTTP/1.1 200"));
    let megabytes: Vec<u8> =
        (0..8_000_001u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let answer = String::from_utf8(exchange(count, &megabytes).await).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &megabytes);
    assert_eq!(answer, format!("{} {}\n", megabytes.len(), hex::encode(digest)));

    // Three descriptors are open: accepting fails with EMFILE until there are more.
    agent.limit_open_files(3);
    let waiting = tokio::spawn(async move { exchange(web, request).await });
    within("the agent is out of descriptors", || agent.has_said("cannot accept")).await;
    assert!(!waiting.is_finished(), "nobody may be turned away while descriptors are short");
    agent.limit_open_files(65_536);
    assert!(waiting.await.unwrap().starts_with(b"HTTP/1.1 200"));

    control.send(&ToAgent::Stop { grace_ms: 20_000 }).await;
    let exited = control.until(|message| matches!(message, ToShim::Exited(_))).await;
    assert_eq!(exited, ToShim::Exited(ExitStatus::Code(0)));
    control.send(&ToAgent::Goodbye).await;
    let mut agent = agent;
    tokio::task::spawn_blocking(move || agent.child.wait().unwrap()).await.unwrap();
}
