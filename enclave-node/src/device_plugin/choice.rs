//! Which devices a container gets: whole cores first, then what it is handed.
//!
//! An enclave must take whole cores (NE_ERR_FULL_CORES_NOT_USED at start), so
//! half of a core that another pod has is worthless: fragments are used last.

use std::collections::{BTreeMap, BTreeSet};

use super::api::{ContainerAllocateResponse, DeviceSpec};
use super::offer::{Device, Kind, Offer, Trouble};

/// A count of CPUs, as AWS's device plugin sets it.
const CPU_COUNT: &str = "NITRO_ENCLAVES_CPUS";
/// CPU ids, joined with commas, that enclave-shim reads.
const CPU_IDS: &str = "ENCLAVE_SHIM_CPU_IDS";
/// Slot numbers, joined with commas.
const SLOT: &str = "ENCLAVE_SHIM_SLOT";
/// Where containers expect the device, whatever it is called on the node.
const DEVICE_IN_CONTAINER: &str = "/dev/nitro_enclaves";

/// Why a container gets nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Kubelet's books and ours differ: the allocator was run again, or a peer is not kubelet.
    #[error("no device {0:?} is offered")]
    Unknown(String),
    /// The same device twice in one request.
    #[error("device {0:?} is asked for twice")]
    Twice(String),
    /// The node lost what the device stands for.
    #[error(transparent)]
    Unhealthy(Trouble),
}

/// Up to `size` of the `available` ids, `must` among them. Ids that are not
/// offered are left out.
pub(crate) fn preferred(
    kind: Kind,
    offer: &Offer,
    available: &[String],
    must: &[String],
    size: usize,
) -> Vec<String> {
    let offered = |id: &String| kind.number(id).and_then(|number| offer.device(number));
    let mut free: BTreeMap<u32, &Device> =
        available.iter().filter_map(offered).map(|device| (device.number, device)).collect();
    let mut chosen = BTreeSet::new();
    for device in must.iter().filter_map(offered) {
        free.remove(&device.number);
        chosen.insert(device.number);
    }
    while chosen.len() < size {
        let Some(next) = best(offer, &free, &chosen, size - chosen.len()) else { break };
        for number in next {
            free.remove(&number);
            chosen.insert(number);
        }
    }
    chosen.into_iter().map(|number| kind.device_id(number)).collect()
}

/// The next devices to take together: the rest of a core that is begun, else
/// a whole core, else one CPU of the most broken core.
fn best(
    offer: &Offer,
    free: &BTreeMap<u32, &Device>,
    chosen: &BTreeSet<u32>,
    room: usize,
) -> Option<Vec<u32>> {
    let mut cores: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for device in free.values() {
        cores.entry(device.core).or_default().push(device.number);
    }
    let begun: BTreeSet<u32> =
        chosen.iter().filter_map(|number| offer.device(*number)).map(|device| device.core).collect();
    let threads = |core: u32| offer.devices.iter().filter(|device| device.core == core).count();
    let rest = cores.iter().find(|(core, _)| begun.contains(core));
    let whole = || cores.iter().find(|(core, cpus)| cpus.len() == threads(**core) && cpus.len() <= room);
    if let Some((_, cpus)) = rest.or_else(whole) {
        return Some(cpus.iter().copied().take(room).collect());
    }
    let broken = cores.values().min_by_key(|cpus| cpus.len())?;
    Some(broken.iter().copied().take(1).collect())
}

/// The numbers behind `ids`, lowest first, all of which must be offered and healthy.
pub(crate) fn granted(kind: Kind, offer: &Offer, ids: &[String]) -> Result<BTreeSet<u32>, Refusal> {
    if let Some(trouble) = offer.trouble {
        return Err(Refusal::Unhealthy(trouble));
    }
    let mut numbers = BTreeSet::new();
    for id in ids {
        let device = kind.number(id).and_then(|number| offer.device(number));
        let device = device.ok_or_else(|| Refusal::Unknown(id.clone()))?;
        if !numbers.insert(device.number) {
            return Err(Refusal::Twice(id.clone()));
        }
    }
    Ok(numbers)
}

/// Whether no core of `numbers` is shared with a CPU that is not among them.
pub(crate) fn whole_cores(offer: &Offer, numbers: &BTreeSet<u32>) -> bool {
    let taken: BTreeSet<u32> =
        numbers.iter().filter_map(|number| offer.device(*number)).map(|device| device.core).collect();
    let mut siblings = offer.devices.iter().filter(|device| taken.contains(&device.core));
    siblings.all(|device| numbers.contains(&device.number))
}

/// What the container is started with: `device` is the path on the node.
pub(crate) fn container(kind: Kind, numbers: &BTreeSet<u32>, device: &str) -> ContainerAllocateResponse {
    let list = numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut response = ContainerAllocateResponse::default();
    match kind {
        Kind::Enclaves => {
            response.envs.insert(SLOT.into(), list);
            response.devices.push(DeviceSpec {
                container_path: DEVICE_IN_CONTAINER.into(),
                host_path: device.into(),
                permissions: "rw".into(),
            });
        }
        Kind::Cpus => {
            response.envs.insert(CPU_COUNT.into(), numbers.len().to_string());
            response.envs.insert(CPU_IDS.into(), list);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPUs 2 to 9 in cores of two.
    fn pool() -> Offer {
        let device = |number: u32| Device { number, core: number - number % 2, numa: vec![0] };
        Offer { devices: (2..10).map(device).collect(), trouble: None }
    }

    fn choose(available: &str, must: &str, size: usize) -> String {
        let ids = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        preferred(Kind::Cpus, &pool(), &ids(available), &ids(must), size).join(" ")
    }

    #[test]
    fn whole_cores_go_before_fragments() {
        assert_eq!(choose("3 4 5 7 8 9", "", 4), "4 5 8 9");
    }

    #[test]
    fn the_core_of_a_cpu_that_must_be_included_is_completed_first() {
        assert_eq!(choose("2 3 4 5 6 7", "6", 2), "6 7");
        assert_eq!(choose("2 3 4 5 6 7", "6", 4), "2 3 6 7");
    }

    #[test]
    fn an_odd_rest_takes_a_fragment_and_breaks_no_core() {
        assert_eq!(choose("2 3 5 6 7", "", 3), "2 3 5");
    }

    /// Every set of free CPUs and every size: 256 times 9.
    #[test]
    fn no_core_is_broken_while_whole_ones_or_fragments_suffice() {
        for free in 0_u32..256 {
            let available: BTreeSet<u32> = (2..10).filter(|cpu| free >> (cpu - 2) & 1 == 1).collect();
            let ids: Vec<String> = available.iter().map(u32::to_string).collect();
            let whole = (0..4).filter(|core| (free >> (2 * core) & 3) == 3).count();
            let fragments = available.len() - 2 * whole;
            for size in 0..=8 {
                let chosen = preferred(Kind::Cpus, &pool(), &ids, &[], size);
                let numbers: BTreeSet<u32> = chosen.iter().map(|id| id.parse().unwrap()).collect();
                assert!(numbers.is_subset(&available));
                assert_eq!(chosen.len(), size.min(available.len()));
                let taken = |core: u32| numbers.range(2 * core..2 * core + 2).count();
                let both_free = |core: &u32| available.range(2 * core..2 * core + 2).count() == 2;
                let complete = (1..5).filter(|core| taken(*core) == 2).count();
                assert_eq!(complete, whole.min(size / 2), "{size} of {available:?}: {chosen:?}");
                let broken = (1..5).filter(both_free).filter(|core| taken(*core) == 1).count();
                let rest = chosen.len() - 2 * complete;
                assert_eq!(broken, usize::from(rest > fragments), "{size} of {available:?}: {chosen:?}");
            }
        }
    }

    #[test]
    fn what_is_not_there_is_not_invented() {
        assert_eq!(choose("2 3 99 x", "", 8), "2 3");
        assert_eq!(choose("", "", 2), "");
        assert_eq!(choose("2 3", "", 0), "");
    }

    #[test]
    fn unknown_repeated_and_unhealthy_devices_are_refused() {
        let ids = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let refused = |offer: &Offer, text| granted(Kind::Cpus, offer, &ids(text)).unwrap_err();
        assert!(matches!(refused(&pool(), "2 42"), Refusal::Unknown(id) if id == "42"));
        assert!(matches!(refused(&pool(), "2 2"), Refusal::Twice(id) if id == "2"));
        let sick = Offer { trouble: Some(Trouble::EmptyPool), ..pool() };
        assert!(matches!(refused(&sick, "2"), Refusal::Unhealthy(Trouble::EmptyPool)));
    }

    #[test]
    fn half_a_core_is_noticed() {
        assert!(whole_cores(&pool(), &BTreeSet::from([2, 3])));
        assert!(!whole_cores(&pool(), &BTreeSet::from([2, 3, 4])));
    }

    #[test]
    fn cpus_are_given_as_a_count_and_as_ids() {
        let response = container(Kind::Cpus, &BTreeSet::from([10, 2]), "/dev/nitro_enclaves");
        assert_eq!(response.envs["NITRO_ENCLAVES_CPUS"], "2");
        assert_eq!(response.envs["ENCLAVE_SHIM_CPU_IDS"], "2,10");
        assert!(response.devices.is_empty());
    }
}
