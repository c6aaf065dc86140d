//! Every message, by connection. CBOR arrays with numbered variants: a number
//! is never reused, fields are only ever added at the end.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::SessionToken;

/// The version of this protocol. The agent is measured and the shim is not, so
/// the two may come from different releases: the agent refuses a version that
/// it does not know and names its own. 2: the agent may ask for outgoing
/// connections, which a shim of 1 would not understand.
pub const PROTOCOL: u16 = 2;

/// The first frame of a control, attestation, stream, log or announced connection.
///
/// The first control hello claims the agent; every later hello must carry the
/// same token.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// [`PROTOCOL`] of the shim.
    #[n(0)]
    pub version: u16,
    /// The secret of this enclave's life.
    #[n(1)]
    pub token: SessionToken,
}

/// The agent's answer to a [`Hello`]. After `Refused` it closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Greeting {
    /// The connection may be used.
    #[n(0)]
    Welcome {
        /// The agent's build, for logs only.
        #[n(0)]
        build: String,
    },
    /// It may not.
    #[n(1)]
    Refused(#[n(0)] Refusal),
}

/// Why the agent does not talk to this peer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum Refusal {
    /// Another token claimed the enclave first.
    #[n(0)]
    #[error("the enclave is claimed by another shim")]
    AlreadyClaimed,
    /// A connection other than control before any control connection.
    #[n(1)]
    #[error("the enclave is not claimed yet")]
    NotClaimed,
    /// The agent does not speak the shim's version.
    #[n(2)]
    #[error("the agent speaks protocol {supported}")]
    Version {
        /// The version that the agent speaks.
        #[n(0)]
        supported: u16,
    },
    /// The first frame was no hello, or came too late.
    #[n(3)]
    #[error("the first frame is not a hello")]
    NotAHello,
    /// The measured settings do not allow what this connection is for.
    #[n(4)]
    #[error("the image's settings do not allow it")]
    NotAllowed,
}

/// How far the enclave has come. Only ever moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Phase {
    /// The agent runs; the workload does not yet.
    #[n(0)]
    AgentUp,
    /// The workload has been started.
    #[n(1)]
    WorkloadStarted,
    /// The workload is ready by the rule of its settings.
    #[n(2)]
    Ready,
}

/// How a workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ExitStatus {
    /// It called exit with this code.
    #[n(0)]
    Code(#[n(0)] u8),
    /// A signal of this number ended it.
    #[n(1)]
    Signal(#[n(0)] u8),
}

impl ExitStatus {
    /// The code that a shell would report: 128 + n for a signal.
    pub fn shell_code(self) -> u8 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// Shim to agent, on the control connection.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToAgent {
    /// Answered by [`ToShim::Pong`] with the same id.
    #[n(0)]
    Ping {
        /// Any number.
        #[n(0)]
        id: u64,
    },
    /// SIGTERM to the workload; SIGKILL when the grace is over.
    #[n(1)]
    Stop {
        /// Milliseconds between the two.
        #[n(0)]
        grace_ms: u32,
    },
    /// SIGKILL to the workload now.
    #[n(2)]
    Hurry,
    /// A signal to pass on as it is (HUP, USR1, USR2, WINCH …).
    #[n(3)]
    Signal {
        /// The Linux signal number.
        #[n(0)]
        number: u8,
    },
    /// The exit status is known here: the enclave may power off.
    #[n(4)]
    Goodbye,
    /// The answer to a [`ToShim::Dial`] that comes to nothing. One that
    /// succeeds is answered by the stream itself, see [`Attach`].
    #[n(5)]
    Undialled {
        /// The number of the request.
        #[n(0)]
        stream: u64,
        /// Why not.
        #[n(1)]
        reason: Undialled,
    },
    /// The answer to [`ToShim::EnvironmentWanted`].
    #[n(6)]
    Environment {
        /// What the pod has of the wanted names; at most
        /// [`Variable::ALL_MAX`] bytes of names and values together.
        #[n(0)]
        variables: Vec<Variable>,
    },
}

/// Why the shim does not connect the workload to where it wants. A closed set:
/// it labels metrics on one side and becomes a SOCKS or HTTP answer on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, thiserror::Error)]
#[cbor(index_only)]
pub enum Undialled {
    /// The host is neither a name nor an address, or is written ambiguously.
    #[n(0)]
    #[error("the target cannot be understood")]
    BadTarget,
    /// The shim's policy does not name it, or denies it.
    #[n(1)]
    #[error("the shim's egress policy does not allow it")]
    Denied,
    /// The name leads only to addresses that the shim's policy refuses.
    #[n(2)]
    #[error("its addresses are refused by the shim's egress policy")]
    AddressDenied,
    /// There is no such name, or it has no address.
    #[n(3)]
    #[error("there is no such name")]
    NoSuchName,
    /// No resolver answered, and nothing is remembered.
    #[n(4)]
    #[error("the name cannot be resolved now")]
    Unresolved,
    /// Every address refused the connection.
    #[n(5)]
    #[error("the connection was refused")]
    Refused,
    /// No address can be reached.
    #[n(6)]
    #[error("it cannot be reached")]
    Unreachable,
    /// No address answered in time.
    #[n(7)]
    #[error("it did not answer in time")]
    Late,
    /// The shim carries as many outgoing connections as it may.
    #[n(8)]
    #[error("too many outgoing connections are open")]
    Full,
}

impl Undialled {
    /// Every reason, for metrics that must exist before their first event.
    pub const ALL: [Undialled; 9] = [
        Undialled::BadTarget,
        Undialled::Denied,
        Undialled::AddressDenied,
        Undialled::NoSuchName,
        Undialled::Unresolved,
        Undialled::Refused,
        Undialled::Unreachable,
        Undialled::Late,
        Undialled::Full,
    ];

    /// A stable word for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Undialled::BadTarget => "bad_target",
            Undialled::Denied => "denied",
            Undialled::AddressDenied => "address_denied",
            Undialled::NoSuchName => "no_such_name",
            Undialled::Unresolved => "unresolved",
            Undialled::Refused => "refused",
            Undialled::Unreachable => "unreachable",
            Undialled::Late => "late",
            Undialled::Full => "full",
        }
    }
}

/// The shim's second frame on a stream connection, right after the hello: which
/// [`ToShim::Dial`] this is. From here on the bytes are the workload's; the
/// shim sends none before it has been welcomed. An agent that does not wait for
/// the stream any more closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Attach {
    /// The number of the request.
    #[n(0)]
    pub stream: u64,
}

/// One variable of the pod's environment.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Variable {
    /// One of the names that the image's settings allow.
    #[n(0)]
    pub name: String,
    /// Without NUL bytes.
    #[n(1)]
    pub value: String,
}

impl Variable {
    /// Bytes of all names and values together: a frame holds them.
    pub const ALL_MAX: usize = 16 * 1024;

    /// Bytes of the names and values of `variables`.
    pub fn size_of_all(variables: &[Variable]) -> usize {
        variables.iter().map(|Variable { name, value }| name.len() + value.len()).sum()
    }
}

/// Agent to shim, on the control connection. Every phase so far is sent right
/// after the greeting; whatever was said before a reconnect and still matters
/// (an exit, a failure) is said again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToShim {
    /// The answer to a ping.
    #[n(0)]
    Pong {
        /// The ping's id.
        #[n(0)]
        id: u64,
    },
    /// The enclave has reached a phase.
    #[n(1)]
    Reached {
        /// Which one.
        #[n(0)]
        phase: Phase,
        /// Milliseconds since the agent started.
        #[n(1)]
        after_ms: u64,
    },
    /// The workload has ended. Repeated on every connection until `Goodbye`.
    #[n(2)]
    Exited(#[n(0)] ExitStatus),
    /// The workload cannot be run at all (settings, root filesystem, program).
    /// When its launcher got as far as to end, [`ToShim::Exited`] follows with
    /// the code of a shell: 127 program not found, 126 not executable, 125 not
    /// prepared. When there was no launcher nothing follows.
    #[n(3)]
    Failed {
        /// One line for the operator: what was tried on which object, and why not.
        #[n(0)]
        cause: String,
    },
    /// The workload wants to connect. Answered by a stream connection with the
    /// same number, or by [`ToAgent::Undialled`].
    #[n(4)]
    Dial {
        /// Chosen by the agent, never used twice in the enclave's life.
        #[n(0)]
        stream: u64,
        /// A DNS name without its final dot, or an address without brackets.
        #[n(1)]
        host: String,
        /// The TCP port.
        #[n(2)]
        port: u16,
    },
    /// The workload waits for these variables of the pod. Said on every
    /// connection; the first answer counts.
    #[n(5)]
    EnvironmentWanted {
        /// Their names, of which the pod need not have any.
        #[n(0)]
        names: Vec<String>,
    },
}

/// Follows the hello on an announced connection, without waiting for the
/// greeting. The client's bytes follow the greeting.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AnnouncedRequest {
    /// The workload's port; its settings must say that it reads PROXY headers.
    #[n(0)]
    pub port: u16,
    /// A [`crate::ProxyHeader`], which the agent writes to the workload first.
    #[n(1)]
    pub header: ByteVec,
}

/// Asks for a document. Outsiders choose the nonce and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AttestationRequest {
    /// At most 1024 bytes (the NSM's limit).
    #[n(0)]
    pub nonce: ByteVec,
}

/// The answer to an [`AttestationRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AttestationAnswer {
    /// A document, or why there is none.
    #[n(0)]
    pub outcome: AttestationOutcome,
    /// Microseconds that the NSM took.
    #[n(1)]
    pub nsm_us: u64,
}

/// What became of an [`AttestationRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum AttestationOutcome {
    /// A COSE_Sign1 as the NSM signed it.
    #[n(0)]
    Document(#[n(0)] ByteVec),
    /// The NSM, or the agent, refused.
    #[n(1)]
    Refused {
        /// One line for the client.
        #[n(0)]
        cause: String,
        /// True when the NSM has too many requests at the moment; absent from
        /// agents that do not tell.
        #[n(1)]
        #[cbor(default)]
        busy: bool,
    },
}

/// Which of its outputs a workload wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum LogStream {
    /// Standard output.
    #[n(0)]
    Stdout,
    /// Standard error.
    #[n(1)]
    Stderr,
}

impl LogStream {
    /// `stdout` or `stderr`.
    pub fn name(self) -> &'static str {
        match self {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        }
    }
}

/// One line of a workload's output.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LogLine {
    /// Where it was written.
    #[n(0)]
    pub stream: LogStream,
    /// Without its end; what is no UTF-8 is replaced. At most [`LogLine::LONGEST`]
    /// bytes as they were written: a longer line comes in pieces.
    #[n(1)]
    pub text: String,
}

impl LogLine {
    /// Bytes of the workload's output in one line.
    pub const LONGEST: usize = 4 * 1024;
}

/// Agent to shim, on the log connection. Nothing is said the other way: a shim
/// that reads slowly makes the agent drop lines, never the workload wait.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum LogMessage {
    /// The next lines.
    #[n(0)]
    Lines {
        /// How many were dropped just before these.
        #[n(0)]
        dropped: u64,
        /// In the order in which they were read.
        #[n(1)]
        lines: Vec<LogLine>,
    },
    /// Both outputs are at their end and everything has been said.
    #[n(1)]
    End,
}
