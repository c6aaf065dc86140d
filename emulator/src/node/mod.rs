//! The node: one process per state directory that plays the Nitro machine.
//!
//! ```text
//! fakenitro ──node.sock──▶ control ──▶ Desk per filter ──▶ vsock, device, writes
//!                                          │                  │
//!                                   enclaves' filters      Slot ──▶ Enclave ──▶ engine
//! ```
//!
//! It lives as long as anybody is under one of its filters, connected to its
//! socket or running as an enclave ([`Presence`]), and no longer. Read
//! [`supervisor`] first, then [`vsock`] and [`device`].

mod boot_image;
pub(crate) mod caller;
mod console;
pub(crate) mod control;
mod daemon;
mod device;
pub(crate) mod enclave;
mod faults;
mod files;
mod guests;
mod handshake;
pub(crate) mod names;
pub(crate) mod ne;
mod nsm_device;
mod options;
pub(crate) mod pool;
mod regions;
mod slot;
pub(crate) mod stats;
pub(crate) mod supervisor;
mod vsock;
pub(crate) mod writes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nix::errno::Errno as SysErrno;
use nix::sys::eventfd::EventFd;
use nix::sys::inotify::{Inotify, WatchDescriptor};
use serde::{Deserialize, Serialize};

use crate::nsm;
use crate::vm::{self, Accelerator};
use caller::Errno;
pub use daemon::{DaemonArgs, main};
pub(crate) use daemon::{LOCK_FILE, SOCKET_FILE};
pub(crate) use device::STAND_IN;
use enclave::{Enclave, Status};
use names::Names;
use pool::{CpuPool, PoolError};
use slot::{Phase, Slot};
use writes::LargeWrites;

/// CIDs that are given to enclaves that ask for none start here, as on Nitro.
const FIRST_CID: u32 = 16;
/// Ephemeral ports are above the reserved ones and, like the kernel's, do not
/// start at the same one every time.
const EPHEMERAL: std::ops::Range<u32> = 1024..u32::MAX;

/// What a node pretends to be. Fixed when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// CPU list of the pool, as in `ne_cpus`.
    pub(crate) cpu_pool: String,
    /// Hardware threads per core of the pretended instance.
    pub(crate) threads_per_core: u32,
    /// Enclaves at a time.
    pub(crate) slots: usize,
    /// Memory regions per enclave.
    pub(crate) max_regions: usize,
    /// What happens to vsock writes above 32 KiB.
    pub(crate) large_writes: LargeWrites,
    /// ARN of the instance's IAM role, for PCR3.
    pub(crate) role_arn: Option<String>,
    /// Milliseconds that the security module takes for every request.
    pub(crate) nsm_delay_ms: u64,
    /// What runs enclaves.
    pub(crate) engine: Engine,
    /// QEMU of the qemu engine.
    pub(crate) qemu: PathBuf,
    /// How QEMU runs a machine.
    pub(crate) accelerator: Accelerator,
}

/// What runs enclaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// The ramdisks, unpacked in namespaces of their own
    #[default]
    Process,
    /// The image's own kernel, booted in a virtual machine
    Qemu,
}

/// The options that a command line gave; the rest is the node's or the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub(crate) struct ConfigWishes {
    /// What runs the enclaves [default: process]
    #[arg(long, value_name = "ENGINE")]
    pub(crate) engine: Option<Engine>,
    /// QEMU 10.2 or newer, for --engine qemu [default: $FAKENITRO_QEMU or qemu-system-x86_64]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) qemu: Option<PathBuf>,
    /// How QEMU runs a machine [default: auto]
    #[arg(long, value_name = "KIND", env = "FAKENITRO_ACCEL")]
    pub(crate) accelerator: Option<Accelerator>,
    /// CPUs given up for enclaves, whole cores [default: 2-9]
    #[arg(long, value_name = "LIST")]
    pub(crate) cpu_pool: Option<String>,
    /// Hardware threads per core of the pretended instance [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) threads_per_core: Option<u32>,
    /// Enclaves that can exist at a time [default: 4]
    #[arg(long, value_name = "N")]
    pub(crate) slots: Option<usize>,
    /// Memory regions (physically contiguous pieces) that an enclave may have [default: 65536]
    #[arg(long, value_name = "N")]
    pub(crate) max_regions: Option<usize>,
    /// What to do with vsock writes above 32 KiB, which Nitro may corrupt [default: count]
    #[arg(long, value_name = "MODE")]
    pub(crate) large_writes: Option<LargeWrites>,
    /// IAM role of the pretended instance, for PCR3 [default: none]
    #[arg(long, value_name = "ARN")]
    pub(crate) role_arn: Option<String>,
    /// How long the security module takes for every request, in milliseconds [default: 0]
    #[arg(long = "nsm-delay", value_name = "MS", value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub(crate) nsm_delay_ms: Option<u64>,
}

impl Config {
    /// The configuration of a new node.
    pub(crate) fn new(wishes: ConfigWishes) -> Result<Config, PoolError> {
        let config = Config {
            cpu_pool: wishes.cpu_pool.unwrap_or_else(|| "2-9".to_owned()),
            threads_per_core: wishes.threads_per_core.unwrap_or(2),
            slots: wishes.slots.unwrap_or(4),
            max_regions: wishes.max_regions.unwrap_or(65536),
            large_writes: wishes.large_writes.unwrap_or_default(),
            role_arn: wishes.role_arn,
            nsm_delay_ms: wishes.nsm_delay_ms.unwrap_or_default(),
            engine: wishes.engine.unwrap_or_default(),
            qemu: wishes.qemu.unwrap_or_else(vm::default_program),
            accelerator: wishes.accelerator.unwrap_or_default(),
        };
        CpuPool::parse(&config.cpu_pool, config.threads_per_core)?;
        Ok(config)
    }

    /// The first wish that this configuration does not fulfil, as text.
    pub(crate) fn conflict(&self, wishes: &ConfigWishes) -> Option<String> {
        fn differs<T: PartialEq + std::fmt::Debug>(name: &str, wish: &Option<T>, is: &T) -> Option<String> {
            let wish = wish.as_ref()?;
            (wish != is).then(|| format!("{name} {wish:?} was asked for, but this node runs with {is:?}"))
        }
        differs("--engine", &wishes.engine, &self.engine)
            .or_else(|| differs("--qemu", &wishes.qemu, &self.qemu))
            .or_else(|| differs("--accelerator", &wishes.accelerator, &self.accelerator))
            .or_else(|| differs("--cpu-pool", &wishes.cpu_pool, &self.cpu_pool))
            .or_else(|| differs("--threads-per-core", &wishes.threads_per_core, &self.threads_per_core))
            .or_else(|| differs("--slots", &wishes.slots, &self.slots))
            .or_else(|| differs("--max-regions", &wishes.max_regions, &self.max_regions))
            .or_else(|| differs("--large-writes", &wishes.large_writes, &self.large_writes))
            .or_else(|| differs("--role-arn", &wishes.role_arn.as_ref().map(Some), &self.role_arn.as_ref()))
            .or_else(|| differs("--nsm-delay", &wishes.nsm_delay_ms, &self.nsm_delay_ms))
    }
}

/// A node.
pub(crate) struct Node {
    /// The state directory.
    pub(crate) dir: PathBuf,
    /// What it pretends to be.
    pub(crate) config: Config,
    /// Names of its vsock addresses.
    pub(crate) names: Names,
    /// Socket options that were set.
    pub(crate) options: options::Options,
    /// Counters.
    pub(crate) stats: stats::Stats,
    /// Faults that tests ask for.
    pub(crate) faults: faults::Faults,
    /// The development authority.
    pub(crate) authority: Arc<nsm::Authority>,
    /// The pretended instance.
    pub(crate) instance: nsm::InstanceId,
    next_port: AtomicU32,
    accepting: Mutex<()>,
    pool: Mutex<CpuPool>,
    residents: Mutex<Residents>,
    watcher: Inotify,
    present: Arc<Present>,
}

#[derive(Default)]
struct Residents {
    slots: BTreeMap<u64, Arc<Slot>>,
    watches: HashMap<WatchDescriptor, (u64, Presence)>,
    enclaves: BTreeMap<u32, Arc<Enclave>>,
    cids: BTreeSet<u32>,
}

impl Node {
    fn new(dir: PathBuf, config: Config, watcher: Inotify, authority: nsm::Authority) -> io::Result<Node> {
        let pool = CpuPool::parse(&config.cpu_pool, config.threads_per_core).map_err(io::Error::other)?;
        let seed = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
        let next_port = EPHEMERAL.start + seed % (EPHEMERAL.end / 2);
        Ok(Node {
            names: Names::of(&dir)?,
            options: options::Options::default(),
            stats: stats::Stats::default(),
            faults: faults::Faults::of(&dir),
            authority: Arc::new(authority),
            instance: nsm::InstanceId::generate(),
            next_port: AtomicU32::new(next_port),
            accepting: Mutex::default(),
            pool: Mutex::new(pool),
            residents: Mutex::default(),
            watcher,
            present: Arc::new(Present { count: AtomicUsize::new(0), left: EventFd::new()? }),
            dir,
            config,
        })
    }

    /// A port to try for a socket that wants any.
    pub(crate) fn next_port(&self) -> u32 {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        if EPHEMERAL.contains(&port) {
            return port;
        }
        self.next_port.store(EPHEMERAL.start, Ordering::Relaxed);
        EPHEMERAL.start
    }

    /// Held while looking at a listener's queue and taking from it.
    pub(crate) fn accept_turn(&self) -> MutexGuard<'_, ()> {
        self.accepting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The CPU pool.
    pub(crate) fn pool(&self) -> MutexGuard<'_, CpuPool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the node alive until dropped.
    pub(crate) fn presence(&self) -> Presence {
        Presence::new(self.present.clone())
    }

    /// Makes a slot for process `creator`.
    ///
    /// # Errors
    /// 272 when no CPU is left, ENOSPC when no slot is.
    pub(crate) fn create_slot(&self, creator: i32) -> Result<(Arc<Slot>, OwnedFd), Errno> {
        if self.pool().is_empty() {
            return Err(Errno(ne::NO_CPUS_AVAIL_IN_POOL));
        }
        let presence = self.presence();
        let mut residents = self.residents();
        if residents.slots.len() >= self.config.slots {
            return Err(Errno(libc::ENOSPC));
        }
        let uid = nsm::ModuleId::generate_slot(SystemTime::now());
        let (slot, fd, watch) = Slot::create(uid, creator, &self.dir, &self.watcher)?;
        let slot = Arc::new(slot);
        residents.slots.insert(uid, slot.clone());
        residents.watches.insert(watch, (uid, presence));
        Ok((slot, fd))
    }

    /// The slot whose descriptor has this device and inode.
    pub(crate) fn slot_with(&self, identity: (u64, u64)) -> Option<Arc<Slot>> {
        self.residents().slots.values().find(|slot| slot.identity == identity).cloned()
    }

    /// Frees slots whose descriptors were closed. Call when `watcher` is readable.
    fn free_closed_slots(&self) -> io::Result<()> {
        let events = match self.watcher.read_events() {
            Err(SysErrno::EAGAIN) => return Ok(()),
            other => other?,
        };
        for event in events {
            let mut residents = self.residents();
            let Some((uid, presence)) = residents.watches.remove(&event.wd) else { continue };
            let slot = residents.slots.remove(&uid);
            drop(residents);
            if let Some(slot) = slot {
                self.free(&slot);
            }
            drop(presence);
        }
        Ok(())
    }

    fn free(&self, slot: &Slot) {
        let mut content = slot.content();
        self.pool().give_back(&mut content.taken);
        if let Phase::Running(Some(enclave)) = &content.phase {
            enclave.kill();
        }
    }

    /// The way into the enclave with this CID, if it is a machine.
    pub(crate) fn guest(&self, cid: u32) -> Option<Arc<vm::Vsock>> {
        self.residents().enclaves.get(&cid)?.guest.clone()
    }

    /// Whether an enclave has this CID.
    pub(crate) fn has_enclave(&self, cid: u32) -> bool {
        self.residents().enclaves.contains_key(&cid)
    }

    /// Takes `wanted`, or any free CID if it is 0.
    fn reserve_cid(&self, wanted: u32) -> Option<u32> {
        let cids = &mut self.residents().cids;
        let cid = if wanted == 0 { (FIRST_CID..u32::MAX).find(|cid| !cids.contains(cid))? } else { wanted };
        cids.insert(cid).then_some(cid)
    }

    fn release_cid(&self, cid: u32) {
        self.residents().cids.remove(&cid);
    }

    fn insert_enclave(&self, enclave: &Arc<Enclave>) {
        self.residents().enclaves.insert(enclave.cid, enclave.clone());
    }

    fn remove_enclave(&self, cid: u32) {
        self.residents().enclaves.remove(&cid);
    }

    fn enclave(&self, cid: u32) -> Option<Arc<Enclave>> {
        self.residents().enclaves.get(&cid).cloned()
    }

    fn status(&self) -> control::NodeStatus {
        let (slots, enclaves): (Vec<_>, Vec<Status>) = {
            let residents = self.residents();
            let running = residents.enclaves.values().map(|enclave| enclave.status("running"));
            (residents.slots.values().cloned().collect(), running.collect())
        };
        let cpus = slots.iter().flat_map(|slot| slot.content().taken.cpus.clone()).collect();
        control::NodeStatus { pid: std::process::id(), slots: slots.len(), cpus, enclaves }
    }

    fn residents(&self) -> MutexGuard<'_, Residents> {
        self.residents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Present {
    count: AtomicUsize,
    left: EventFd,
}

/// Somebody is there. When the last one goes, the node's main loop wakes.
pub(crate) struct Presence {
    present: Arc<Present>,
}

impl Presence {
    fn new(present: Arc<Present>) -> Presence {
        present.count.fetch_add(1, Ordering::AcqRel);
        Presence { present }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if self.present.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = self.present.left.write(1);
        }
    }
}

impl AsFd for Present {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.left.as_fd()
    }
}
