//! `enclave-node allocator`: sets CPUs and huge pages aside, as
//! `allocator.yaml` says.
//!
//! Read [`reserve`] first. [`cores`] chooses CPUs, [`sysfs`] does the reading
//! and writing; the file's reader and the page plan are in `kubernetes`.

mod cores;
mod reserve;
mod sysfs;
#[cfg(test)]
mod tests;

use std::{fs, io, path::PathBuf, process::ExitCode};

use kubernetes::{
    allocator::{self, AllocatorError, Cpus, Reservation, list_text},
    pages::PagePlan,
};

use self::{
    reserve::{Record, Reserve, ReserveError, Reserved, report},
    sysfs::{Directory, Sysfs, SysfsError},
};

/// Where the last run's [`Record`] is kept.
const RECORD: &str = "run/enclave-node/allocator.json";

/// Sets CPUs and huge pages aside for enclaves.
///
/// Reads the file of AWS's allocator and plans as that does: largest pages
/// first, on the NUMA node of the CPUs. Pages that others have set are kept.
/// Nothing is touched when everything is in place; after a failure everything
/// is as it was before.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to set aside
    #[arg(long, value_name = "FILE", default_value = "/etc/nitro_enclaves/allocator.yaml")]
    config: PathBuf,
    /// Directory that holds sys and run
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Change nothing; exit 1 unless everything is set aside already
    #[arg(long)]
    check: bool,
    /// Change nothing; print what would be done
    #[arg(long, conflicts_with = "check")]
    dry_run: bool,
    /// Clear huge pages that others have set on the node, as AWS's allocator does
    #[arg(long)]
    take_over: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot read {}", .path.display())]
    NoConfig { path: PathBuf, source: io::Error },
    #[error("cannot use {}", .path.display())]
    Config { path: PathBuf, source: AllocatorError },
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    #[error("cannot record what was set aside in {}", .path.display())]
    Record { path: PathBuf, source: io::Error },
}

impl Failure {
    /// As in sysexits.h.
    fn exit_code(&self) -> u8 {
        match self {
            Failure::NoConfig { .. } => 66,
            Failure::Config { .. } => 64,
            Failure::Reserve(ReserveError::NoDriver) => 69,
            Failure::Reserve(ReserveError::Sysfs(_)) | Failure::Record { .. } => 74,
            Failure::Reserve(_) => 71,
        }
    }
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match Allocator::new(args).and_then(|allocator| allocator.run()) {
        Ok(code) => code,
        Err(failure) => {
            let mut text = failure.to_string();
            let mut cause = std::error::Error::source(&failure);
            while let Some(error) = cause {
                let line = error.to_string();
                // A transparent error is its own cause.
                if !text.ends_with(&line) {
                    text.push_str(": ");
                    text.push_str(&line);
                }
                cause = error.source();
            }
            eprintln!("error: {text}");
            ExitCode::from(failure.exit_code())
        }
    }
}

struct Allocator<'a> {
    args: &'a Args,
    files: Directory,
    reservation: Reservation,
    record: Option<Record>,
}

impl<'a> Allocator<'a> {
    fn new(args: &'a Args) -> Result<Allocator<'a>, Failure> {
        let path = &args.config;
        let text =
            fs::read_to_string(path).map_err(|source| Failure::NoConfig { path: path.clone(), source })?;
        let reservation = reservation(&text, &path.display().to_string())
            .map_err(|source| Failure::Config { path: path.clone(), source })?;
        let record = fs::read_to_string(args.root.join(RECORD)).ok();
        let record = record.and_then(|text| serde_json::from_str(&text).ok());
        Ok(Allocator { args, files: Directory { root: args.root.clone() }, reservation, record })
    }

    fn run(&self) -> Result<ExitCode, Failure> {
        let sysfs = Sysfs { files: &self.files };
        if !sysfs.has_driver() {
            return Err(ReserveError::NoDriver.into());
        }
        let in_place =
            in_place(&sysfs, &self.reservation, self.record.as_ref()).map_err(ReserveError::from)?;
        if self.args.check {
            return Ok(self.checked(in_place.as_ref()));
        }
        if self.args.dry_run {
            self.announce(&sysfs, in_place.is_some())?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(reserved) = in_place.filter(|reserved| !self.args.take_over || has_no_others(reserved)) {
            self.print("already set aside", &reserved);
            return Ok(ExitCode::SUCCESS);
        }
        let record = self.record.clone().unwrap_or_default();
        let reserve =
            Reserve { sysfs, reservation: &self.reservation, record, take_over: self.args.take_over };
        let (reserved, record) = reserve.run()?;
        self.keep(&record)?;
        self.print("set aside", &reserved);
        Ok(ExitCode::SUCCESS)
    }

    fn checked(&self, in_place: Option<&Reserved>) -> ExitCode {
        match in_place {
            Some(reserved) => {
                self.print("set aside", reserved);
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("error: what {} asks for is not set aside", self.args.config.display());
                ExitCode::FAILURE
            }
        }
    }

    /// The plan, if everything is granted.
    fn announce(&self, sysfs: &Sysfs<'_>, in_place: bool) -> Result<(), Failure> {
        if in_place {
            println!("nothing to do: everything is set aside");
            return Ok(());
        }
        let (node, cpus) = self.likely_cpus(sysfs)?;
        let pools = sysfs.pools(node).map_err(ReserveError::from)?;
        let sizes: Vec<_> = pools.keys().copied().collect();
        let memory_mib = self.reservation.memory_mib;
        let plan = PagePlan::new(memory_mib, &sizes).ok_or(ReserveError::TooLarge { memory_mib })?;
        println!("node {node}: {cpus}, pages {plan}");
        for (size, count) in pools.iter().filter(|(_, count)| **count > 0) {
            let fate = if self.args.take_over { "cleared" } else { "kept" };
            println!("node {node}: {count} x {size} are there already and {fate}");
        }
        Ok(())
    }

    /// The first choice. CPUs of a present pool are offline and cannot be seen.
    fn likely_cpus(&self, sysfs: &Sysfs<'_>) -> Result<(u32, String), ReserveError> {
        let pool = sysfs.cpu_pool()?;
        if let Some(&first) = pool.first() {
            let node = sysfs.node_of(first)?.unwrap_or_default();
            return Ok((node, format!("the pool {} comes back online first", list_text(&pool))));
        }
        let machine = sysfs.machine()?;
        let (node, cpus) = match &self.reservation.cpus {
            Cpus::Ids(ids) => (machine.node_of_pool(ids)?, ids.clone()),
            Cpus::Count(count) => machine.candidates(*count)?.swap_remove(0),
        };
        Ok((node, format!("CPUs {}", list_text(&cpus))))
    }

    fn keep(&self, record: &Record) -> Result<(), Failure> {
        let path = self.args.root.join(RECORD);
        let fault = |source| Failure::Record { path: path.clone(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(fault)?;
        }
        let text = serde_json::to_string(record).map_err(|error| fault(error.into()))?;
        // Whole or not at all: a torn record would count our pages as others'.
        let beside = path.with_extension("new");
        fs::write(&beside, text + "\n").map_err(fault)?;
        fs::rename(&beside, &path).map_err(fault)
    }

    fn print(&self, what: &str, reserved: &Reserved) {
        if self.args.json {
            println!("{}", serde_json::json!({ "state": what, "reserved": reserved }));
            return;
        }
        println!("{what} on node {}: CPUs {}", reserved.node, list_text(&reserved.cpus));
        for pool in &reserved.pages {
            let others =
                if pool.others > 0 { format!(", {} of others kept", pool.others) } else { String::new() };
            println!("  {}: {} pages{others}, {} free", pool.resource, pool.ours, pool.free);
        }
    }
}

/// Reads the file as AWS's script does. What that would drop without a word is
/// said; the list form, which it does not read, is taken as a sum.
fn reservation(text: &str, name: &str) -> Result<Reservation, AllocatorError> {
    let reading = allocator::read(text);
    for warning in &reading.warnings {
        eprintln!("warning: {name}:{}: {}", warning.line, warning.kind);
    }
    match reading.outcome {
        Ok(request) => request.reservation(),
        Err(error) => match allocator::read_list(text) {
            Some(request) => {
                eprintln!("warning: {name}: a list, which no released allocator of AWS reads");
                request.reservation()
            }
            None => Err(error),
        },
    }
}

fn has_no_others(reserved: &Reserved) -> bool {
    reserved.pages.iter().all(|pool| pool.others == 0)
}

/// What is set aside, if it is what the reservation asks for.
fn in_place(
    sysfs: &Sysfs<'_>,
    reservation: &Reservation,
    record: Option<&Record>,
) -> Result<Option<Reserved>, SysfsError> {
    let pool = sysfs.cpu_pool()?;
    let cpus_fit = match &reservation.cpus {
        Cpus::Count(count) => pool.len() == *count as usize,
        Cpus::Ids(ids) => pool == *ids,
    };
    let Some(&first) = pool.first().filter(|_| cpus_fit) else { return Ok(None) };
    let Some(node) = sysfs.node_of(first)? else { return Ok(None) };
    let pools = sysfs.pools(node)?;
    let sizes: Vec<_> = pools.keys().copied().collect();
    let Some(plan) = PagePlan::new(reservation.memory_mib, &sizes) else { return Ok(None) };
    let wanted: u64 = plan.pages().iter().map(|(size, count)| size.0 * count).sum();
    let record = match record {
        Some(record) if record.node == node => record.clone(),
        // AWS's allocator was here, or nobody: the plan's own pages are ours.
        _ => Record {
            node,
            pages: plan.pages().iter().map(|(size, count)| (size.sysfs_name(), *count)).collect(),
        },
    };
    let there = |(name, count): (&String, &u64)| {
        pools.iter().any(|(size, pages)| size.sysfs_name() == *name && pages >= count)
    };
    let bytes: u64 =
        pools.keys().map(|size| size.0 * record.pages.get(&size.sysfs_name()).copied().unwrap_or(0)).sum();
    if bytes != wanted || !record.pages.iter().all(there) {
        return Ok(None);
    }
    report(sysfs, &record, pool).map(Some)
}
