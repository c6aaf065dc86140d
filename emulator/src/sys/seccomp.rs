//! Builds and installs the filter that hands a few system calls to the node.
//!
//! A filter is a list of [`Rule`]s. A system call without a rule is allowed
//! and, because the kernel sees that no argument matters, costs nothing.
//! Sources: seccomp(2), `linux/filter.h`, `linux/audit.h`.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` of `linux/seccomp.h`.
const NEW_LISTENER: libc::c_ulong = 1 << 3;

#[cfg(target_arch = "x86_64")]
const NATIVE_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const NATIVE_ARCH: u32 = 0xC000_00B7;

/// System call numbers from here on belong to the x32 ABI.
const X32_BIT: u32 = 0x4000_0000;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP_EQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GT: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// What happens to a call that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Runs as if there were no filter.
    Allow,
    /// Waits for the holder of the listener to answer.
    Notify,
    /// Fails with this errno.
    Fail(u16),
}

impl Action {
    fn code(self) -> u32 {
        match self {
            Action::Allow => 0x7fff_0000,
            Action::Notify => 0x7fc0_0000,
            Action::Fail(errno) => 0x0005_0000 | u32::from(errno),
        }
    }
}

/// A test of one argument, by its index 0 to 5.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Test {
    /// The low 32 bits under a mask equal a value.
    Masked(u8, u32, u32),
    /// The whole 64 bits are larger than a value.
    Above(u8, u32),
}

impl Test {
    /// The low 32 bits equal `value`.
    pub(crate) const fn equals(argument: u8, value: u32) -> Test {
        Test::Masked(argument, u32::MAX, value)
    }
}

/// One system call: the action is taken when all tests of any alternative
/// hold; a rule without alternatives always matches.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    number: u32,
    alternatives: Vec<Vec<Test>>,
    action: Action,
}

impl Rule {
    /// A rule for every call of system call `number`.
    pub(crate) fn new(number: libc::c_long, action: Action) -> Rule {
        // System call numbers are small positive integers.
        Rule { number: number as u32, alternatives: Vec::new(), action }
    }

    /// Adds a set of tests that must hold together.
    pub(crate) fn when(mut self, tests: &[Test]) -> Rule {
        self.alternatives.push(tests.to_vec());
        self
    }
}

/// A compiled filter.
pub(crate) struct Filter {
    program: Vec<libc::sock_filter>,
}

impl Filter {
    /// Compiles `rules`; calls through another architecture's entry are
    /// refused with ENOSYS, because its numbers mean other calls.
    pub(crate) fn new(rules: &[Rule]) -> Filter {
        let refuse = Action::Fail(libc::ENOSYS as u16).code();
        let mut program = vec![
            step(LOAD, 4), // offsetof(struct seccomp_data, arch)
            jump(JUMP_EQ, NATIVE_ARCH, 1, 0),
            step(RETURN, refuse),
            step(LOAD, 0), // offsetof(struct seccomp_data, nr)
            jump(JUMP_GE, X32_BIT, 0, 1),
            step(RETURN, refuse),
        ];
        for rule in rules {
            let block = block(rule);
            program.push(jump(JUMP_EQ, rule.number, 0, block.len() as u8));
            program.extend(block);
        }
        program.push(step(RETURN, Action::Allow.code()));
        Filter { program }
    }

    /// Installs the filter on the calling thread and everything it becomes or
    /// starts; returns the listener (close-on-exec).
    ///
    /// # Errors
    /// EACCES without CAP_SYS_ADMIN, EBUSY when a filter with a listener is
    /// already installed (only one is possible).
    pub(crate) fn install(&self) -> io::Result<OwnedFd> {
        let program =
            libc::sock_fprog { len: self.program.len() as u16, filter: self.program.as_ptr().cast_mut() };
        // SAFETY:
        // - `program` describes `self.program`, which lives across the call; the kernel copies it.
        // - the kernel validates every instruction and jump before use.
        let rc = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, NEW_LISTENER, &program)
        };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: with NEW_LISTENER a result >= 0 is a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(rc as i32) })
    }
}

/// The instructions that decide one rule; every path through them returns.
fn block(rule: &Rule) -> Vec<libc::sock_filter> {
    let taken = step(RETURN, rule.action.code());
    if rule.alternatives.is_empty() {
        return vec![taken];
    }
    let mut block = Vec::new();
    for tests in &rule.alternatives {
        let sizes: Vec<usize> = tests.iter().map(|t| encoded(*t, 0).len()).collect();
        let mut rest: usize = sizes.iter().sum::<usize>() + 1;
        for (test, size) in tests.iter().zip(sizes) {
            rest -= size;
            block.extend(encoded(*test, rest as u8));
        }
        block.push(taken);
    }
    block.push(step(RETURN, Action::Allow.code()));
    block
}

/// One test; when it fails, `skip` instructions after it are jumped over.
fn encoded(test: Test, skip: u8) -> Vec<libc::sock_filter> {
    // struct seccomp_data { int nr; u32 arch; u64 ip; u64 args[6]; }, little endian.
    let low = |argument: u8| 16 + u32::from(argument) * 8;
    match test {
        Test::Masked(argument, u32::MAX, value) => {
            vec![step(LOAD, low(argument)), jump(JUMP_EQ, value, 0, skip)]
        }
        Test::Masked(argument, mask, value) => {
            vec![step(LOAD, low(argument)), step(AND, mask), jump(JUMP_EQ, value, 0, skip)]
        }
        Test::Above(argument, value) => vec![
            step(LOAD, low(argument) + 4),
            jump(JUMP_GT, 0, 2, 0),
            step(LOAD, low(argument)),
            jump(JUMP_GT, value, 0, skip),
        ],
    }
}

fn step(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program the way the kernel does.
    fn run(filter: &Filter, number: u32, arch: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        args.iter().for_each(|a| data.extend(a.to_le_bytes()));
        let (mut at, mut acc) = (0usize, 0u32);
        loop {
            let i = filter.program[at];
            at += 1;
            let branch = |yes: bool| if yes { i.jt as usize } else { i.jf as usize };
            match i.code {
                LOAD => acc = u32::from_le_bytes(data[i.k as usize..i.k as usize + 4].try_into().unwrap()),
                AND => acc &= i.k,
                JUMP_EQ => at += branch(acc == i.k),
                JUMP_GT => at += branch(acc > i.k),
                JUMP_GE => at += branch(acc >= i.k),
                RETURN => return i.k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn a_rule_matches_any_alternative_and_nothing_else() {
        let filter = Filter::new(&[
            Rule::new(1, Action::Notify).when(&[Test::Above(2, 32768)]),
            Rule::new(16, Action::Notify)
                .when(&[Test::Masked(1, 0xffff, 0xAE20)])
                .when(&[Test::equals(1, 0xC020_0A00), Test::equals(0, 5)]),
            Rule::new(425, Action::Fail(38)),
        ]);
        let ask = |nr, args| run(&filter, nr, NATIVE_ARCH, args);
        let (allow, notify) = (Action::Allow.code(), Action::Notify.code());
        assert_eq!(ask(1, [0, 0, 32768, 0, 0, 0]), allow);
        assert_eq!(ask(1, [0, 0, 32769, 0, 0, 0]), notify);
        assert_eq!(ask(1, [0, 0, 1 << 32, 0, 0, 0]), notify);
        assert_eq!(ask(16, [9, 0x8008_AE20, 0, 0, 0, 0]), notify);
        assert_eq!(ask(16, [5, 0xC020_0A00, 0, 0, 0, 0]), notify);
        assert_eq!(ask(16, [6, 0xC020_0A00, 0, 0, 0, 0]), allow);
        assert_eq!(ask(425, [0; 6]), Action::Fail(38).code());
        assert_eq!(ask(2, [0; 6]), allow);
    }

    #[test]
    fn other_entries_are_refused() {
        let filter = Filter::new(&[]);
        let refuse = Action::Fail(libc::ENOSYS as u16).code();
        assert_eq!(run(&filter, 1, 0x4000_0003, [0; 6]), refuse);
        assert_eq!(run(&filter, X32_BIT + 1, NATIVE_ARCH, [0; 6]), refuse);
    }
}
