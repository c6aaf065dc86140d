//! The seccomp profile of an enclave container, in the form that kubelet hands
//! to the runtime (OCI runtime specification, LinuxSeccomp).
//!
//! What container engines allow a container without capabilities, except
//! io_uring; and two things more: AF_VSOCK, which newer engines refuse, and
//! the NUMA memory policy, by which the shim binds pages to the CPUs' node.

use serde::Serialize;

/// Allowed whatever the arguments.
const ALLOWED: &str = "accept accept4 access adjtimex alarm arch_prctl arm_fadvise64_64 arm_sync_file_range bind \
    breakpoint brk cacheflush capget capset chdir chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres \
    clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range \
    connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait \
    epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 \
    fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl \
    fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs \
    fstatfs64 fsync ftruncate ftruncate64 futex futex_time64 futex_waitv futimesat get_mempolicy get_robust_list \
    get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups \
    getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 \
    getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 \
    getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents \
    io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listxattr llistxattr \
    _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise mbind membarrier memfd_create memfd_secret mincore \
    mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect mq_getsetattr mq_notify mq_open \
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap msgctl msgget msgrcv \
    msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 \
    pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl \
    pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 \
    ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 \
    recvmsg remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction \
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 \
    send sendfile sendfile64 sendmmsg sendmsg sendto set_mempolicy set_robust_list set_thread_area set_tid_address \
    set_tls setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid \
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid \
    setsockopt setuid setuid32 setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
    sigprocmask sigreturn socket socketcall socketpair splice stat stat64 statfs statfs64 statx symlink symlinkat \
    sync sync_file_range sync_file_range2 syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun \
    timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
    timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat utime \
    utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";
/// Values of personality(2) that runtimes allow: Linux, Linux32, with
/// UNAME26, and the question.
const PERSONALITIES: [u64; 5] = [0, 8, 0x20000, 0x20008, 0xffff_ffff];
/// CLONE_NEW* of clone(2) but CLONE_NEWTIME: a container makes no namespaces.
const CLONE_NEW: u64 = 0x7e02_0000;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

/// A profile, its fields named and ordered as the specification does.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: &'static str,
    default_errno_ret: u32,
    architectures: [&'static str; 5],
    syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<&'static str>,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<[Argument; 1]>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    value_two: u64,
    op: &'static str,
}

impl Profile {
    /// The profile of an enclave container.
    pub fn new() -> Profile {
        let allow = |names: Vec<&'static str>, args: Option<Argument>| Rule {
            names,
            action: "SCMP_ACT_ALLOW",
            errno_ret: None,
            args: args.map(|one| [one]),
        };
        let mut syscalls = vec![allow(ALLOWED.split_whitespace().collect(), None)];
        for value in PERSONALITIES {
            let is = Argument { index: 0, value, value_two: 0, op: "SCMP_CMP_EQ" };
            syscalls.push(allow(vec!["personality"], Some(is)));
        }
        // `value` is the mask, `valueTwo` what must be left.
        let makes_none = Argument { index: 0, value: CLONE_NEW, value_two: 0, op: "SCMP_CMP_MASKED_EQ" };
        syscalls.push(allow(vec!["clone"], Some(makes_none)));
        // Its flags lie in memory, where no filter sees them; libraries fall back to clone.
        syscalls.push(Rule {
            names: vec!["clone3"],
            action: "SCMP_ACT_ERRNO",
            errno_ret: Some(ENOSYS),
            args: None,
        });
        Profile {
            default_action: "SCMP_ACT_ERRNO",
            default_errno_ret: EPERM,
            architectures: [
                "SCMP_ARCH_X86_64",
                "SCMP_ARCH_X86",
                "SCMP_ARCH_X32",
                "SCMP_ARCH_AARCH64",
                "SCMP_ARCH_ARM",
            ],
            syscalls,
        }
    }

    /// On one line.
    pub fn compact(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// For people.
    pub fn pretty(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl Default for Profile {
    fn default() -> Profile {
        Profile::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_shim_needs_is_allowed_and_what_escapes_is_not() {
        let names = &Profile::new().syscalls[0].names;
        for needed in ["socket", "ioctl", "madvise", "set_mempolicy", "mbind", "mmap", "ppoll"] {
            assert!(names.contains(&needed), "{needed}");
        }
        for refused in
            ["mount", "unshare", "setns", "bpf", "io_uring_setup", "clone", "clone3", "reboot", "keyctl"]
        {
            assert!(!names.contains(&refused), "{refused}");
        }
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
    }
}
