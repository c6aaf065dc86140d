//! Decides what the enclave gets, from a picture of the machine. Pure.
//!
//! Fewer and larger pages boot faster and leave the driver's region limit
//! alone, so large pages are taken first; what is left over is covered by the
//! smallest page that can. A page more than needed is waste, and reported.

mod cpus;
mod need;
mod shortfall;
mod snapshot;

use std::fmt;

use nitro_device::PageSize;
use serde::{Serialize, Serializer};

pub(crate) use cpus::{CpuPool, CpuShortfall, Cpus};
pub(crate) use need::Needs;
pub(crate) use shortfall::{Shortfall, resource_line};
use shortfall::{page_to_name, shortfall};

use crate::config::Timespan;

const MIB: u64 = 1 << 20;
/// The driver's limit comes from the hypervisor and cannot be asked for. An
/// enclave of 128 GiB in single 2 MiB pages is the largest that is tried.
const MOST_PIECES: u64 = 65_536;

/// The machine's huge pages and CPU pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// One entry a page size.
    pub(crate) pools: Vec<Pool>,
    /// CPUs set aside for enclaves; `None` where the driver does not say.
    pub(crate) cpus: Option<CpuPool>,
    /// The NUMA node on which the enclave's memory must be, if there are several.
    pub(crate) node: Option<u32>,
}

/// Pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) page: PageSize,
    /// Pages that nobody uses or has reserved, on the CPU pool's node.
    pub(crate) free: u64,
    /// Free pages on other nodes, which the driver refuses.
    pub(crate) elsewhere: u64,
    /// The control group's limit, if it has one.
    pub(crate) limit: Option<Limit>,
}

/// A control group's hugetlb limit, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) max: u64,
    pub(crate) used: u64,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Bytes of memory; `None` for what was granted.
    pub(crate) memory: Option<u64>,
    pub(crate) cpus: Cpus,
    pub(crate) image: Needs,
    /// How long the enclave may take to be ready; `None` for what suits the image.
    pub(crate) boot_timeout: Option<Timespan>,
}

/// What the enclave gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Largest pages first: the order in which they make up the memory.
    pub(crate) regions: Vec<Region>,
    pub(crate) cpus: Cpus,
    /// The NUMA node to take the memory from, if it matters.
    pub(crate) node: Option<u32>,
    /// Bytes beyond the wish.
    pub(crate) waste: u64,
    /// How long the enclave may take to be ready.
    pub(crate) boot_timeout: Timespan,
    /// What may go wrong later, each with what to change.
    pub(crate) warnings: Vec<String>,
}

/// Memory of one page size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Region {
    #[serde(rename = "page_bytes", serialize_with = "page_bytes")]
    pub(crate) page: PageSize,
    pub(crate) pages: u64,
}

impl Region {
    pub(crate) fn bytes(self) -> u64 {
        self.page.bytes() * self.pages
    }
}

fn page_bytes<S: Serializer>(page: &PageSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(page.bytes())
}

/// The plan as `run --dry-run=json` prints it. Fields are only ever added.
#[derive(Debug, Serialize)]
struct Report<'a> {
    memory_bytes: u64,
    regions: &'a [Region],
    most_pieces: u64,
    node: Option<u32>,
    waste_bytes: u64,
    cpus: &'a Cpus,
    boot_timeout_seconds: f64,
    warnings: &'a [String],
}

impl Plan {
    /// One line of JSON.
    pub(crate) fn json(&self) -> String {
        let report = Report {
            memory_bytes: self.memory(),
            regions: &self.regions,
            most_pieces: self.most_pieces(),
            node: self.node,
            waste_bytes: self.waste,
            cpus: &self.cpus,
            boot_timeout_seconds: self.boot_timeout.duration().as_secs_f64(),
            warnings: &self.warnings,
        };
        // Numbers and strings always have a JSON form.
        serde_json::to_string(&report).unwrap_or_default()
    }

    /// Pieces that the driver counts when no two pages adjoin.
    pub(crate) fn most_pieces(&self) -> u64 {
        self.regions.iter().map(|region| region.pages).sum()
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes()).sum()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB of memory (", self.memory() / MIB)?;
        for (index, region) in self.regions.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{} x {}", region.pages, region.page)?;
        }
        if self.waste > 0 {
            write!(f, "; {} MiB more than asked", self.waste.div_ceil(MIB))?;
        }
        match &self.cpus {
            Cpus::Count(count) => write!(f, "), {count} CPUs")?,
            Cpus::Ids(ids) => write!(f, "), CPUs {ids:?}")?,
        }
        if let Some(node) = self.node {
            write!(f, ", on NUMA node {node}")?;
        }
        write!(f, "; to be ready within {}", self.boot_timeout)
    }
}

/// What the enclave gets on this machine.
pub(crate) fn plan(wish: &Wish, snapshot: &Snapshot) -> Result<Plan, Shortfall> {
    if let Some(pool) = &snapshot.cpus {
        pool.check(&wish.cpus)?;
    }
    let least = wish.image.least();
    let mut pools: Vec<&Pool> = snapshot.pools.iter().collect();
    pools.sort_by_key(|pool| std::cmp::Reverse(pool.page));
    let needed = match wish.memory {
        Some(memory) => memory,
        None => granted(&pools).unwrap_or_else(|| pools.iter().map(|pool| pool.available()).sum()),
    };
    if wish.memory.is_none() && needed == 0 {
        return Err(Shortfall::None { needed: least });
    }
    if needed < least {
        let page = page_to_name(&pools);
        return Err(Shortfall::Small { page, memory: needed, needed: least, chosen: wish.memory.is_some() });
    }
    let regions = take(needed, &pools).ok_or_else(|| shortfall(needed, &pools, snapshot.node))?;
    let pieces: u64 = regions.iter().map(|region| region.pages).sum();
    if pieces > MOST_PIECES {
        return Err(Shortfall::Pieces { needed, pieces });
    }
    let memory: u64 = regions.iter().map(|region| region.bytes()).sum();
    Ok(Plan {
        regions,
        cpus: wish.cpus.clone(),
        node: snapshot.node,
        waste: memory - needed,
        boot_timeout: wish.boot_timeout.unwrap_or_else(|| wish.image.boot_timeout()),
        warnings: wish.image.warnings(memory),
    })
}

impl Pool {
    /// Bytes that can be had: free, and within the limit.
    fn available(&self) -> u64 {
        let left = self.limit.map_or(u64::MAX, |limit| limit.max.saturating_sub(limit.used));
        (self.free * self.page.bytes()).min(left / self.page.bytes() * self.page.bytes())
    }
}

fn mib(bytes: &u64) -> u64 {
    bytes.div_ceil(MIB)
}

/// Bytes that the control group grants, if it limits anything. Kubernetes sets
/// a limit of zero for every page size that a pod does not ask for.
fn granted(pools: &[&Pool]) -> Option<u64> {
    let limits: Vec<u64> = pools
        .iter()
        .filter_map(|pool| pool.limit.map(|limit| limit.max / pool.page.bytes() * pool.page.bytes()))
        .collect();
    (!limits.is_empty()).then(|| limits.iter().sum())
}

/// Pages that cover `needed` bytes; `pools` by falling page size.
fn take(needed: u64, pools: &[&Pool]) -> Option<Vec<Region>> {
    let mut taken: Vec<Region> = pools.iter().map(|pool| Region { page: pool.page, pages: 0 }).collect();
    let mut left = needed;
    for (region, pool) in taken.iter_mut().zip(pools) {
        region.pages = left.min(pool.available()) / pool.page.bytes();
        left -= region.bytes();
    }
    // What is left is less than a page of every pool that has one to spare: the smallest covers it.
    if left > 0 {
        let spare = |region: &Region, pool: &Pool| region.bytes() < pool.available();
        let (region, _) = taken.iter_mut().zip(pools).rev().find(|(region, pool)| spare(region, pool))?;
        region.pages += 1;
    }
    let mut surplus = taken.iter().map(|region| region.bytes()).sum::<u64>().checked_sub(needed)?;
    for region in taken.iter_mut().rev() {
        let dropped = (surplus / region.page.bytes()).min(region.pages);
        region.pages -= dropped;
        surplus -= dropped * region.page.bytes();
    }
    taken.retain(|region| region.pages > 0);
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::exit::{Blame, Exit};

    fn pool(page: PageSize, free: u64, limit: Option<u64>) -> Pool {
        Pool { page, free, elsewhere: 0, limit: limit.map(|max| Limit { max: max * MIB, used: 0 }) }
    }

    fn of(pools: Vec<Pool>) -> Snapshot {
        Snapshot { pools, ..Snapshot::default() }
    }

    fn wish(mib: Option<u64>) -> Wish {
        let image = Needs { file: 20 * MIB, unpacked: 20 * MIB };
        Wish { memory: mib.map(|mib| mib * MIB), cpus: Cpus::Count(2), image, boot_timeout: None }
    }

    fn pages(plan: &Plan) -> Vec<(u64, u64)> {
        plan.regions.iter().map(|region| (region.page.bytes() / MIB, region.pages)).collect()
    }

    #[test]
    fn memory_defaults_to_the_grant_and_without_limits_to_what_is_free() {
        let pod = [pool(PageSize::MIB2, 500, Some(128)), pool(PageSize::GIB1, 4, Some(0))];
        let plan_in_pod = plan(&wish(None), &of(pod.to_vec())).unwrap();
        assert_eq!(pages(&plan_in_pod), [(2, 64)]);
        let host = [pool(PageSize::MIB2, 50, None), pool(PageSize::GIB1, 1, None)];
        let plan_on_host = plan(&wish(None), &of(host.to_vec())).unwrap();
        assert_eq!(pages(&plan_on_host), [(1024, 1), (2, 50)]);
    }

    #[test]
    fn a_large_page_stands_in_when_small_ones_run_out_and_the_waste_is_told() {
        let pools = vec![pool(PageSize::MIB2, 50, None), pool(PageSize::GIB1, 1, None)];
        let plan = plan(&wish(Some(256)), &of(pools)).unwrap();
        assert_eq!(pages(&plan), [(1024, 1)]);
        assert_eq!(plan.waste, 768 * MIB);
        assert!(plan.to_string().contains("768 MiB more than asked"), "{plan}");
    }

    #[test]
    fn a_shortfall_names_the_line_to_change() {
        let refused = |mib, pools: Vec<Pool>| plan(&wish(mib), &of(pools)).unwrap_err();
        let free = refused(Some(128), vec![pool(PageSize::MIB2, 32, None)]);
        assert_eq!(free.to_string(), "need 128 MiB of huge pages, 64 MiB are free on this node");
        assert!(free.fix().contains("reserve 32 more 2 MiB pages"), "{}", free.fix());
        assert!(free.fix().contains("`hugepages-2Mi: 128Mi`"), "{}", free.fix());
        let granted = refused(Some(128), vec![pool(PageSize::MIB2, 500, Some(96))]);
        assert_eq!(granted.fix(), "set `hugepages-2Mi: 128Mi` in the container's resources.limits");
        let grant_beyond_node = refused(None, vec![pool(PageSize::MIB2, 32, Some(128))]);
        assert!(matches!(grant_beyond_node, Shortfall::Free { .. }), "{grant_beyond_node:?}");
        let none = refused(None, vec![]);
        assert!(none.fix().contains("`hugepages-2Mi: 64Mi`"), "{}", none.fix());
        for shortfall in [free, granted, grant_beyond_node, none] {
            assert_eq!(shortfall.exit(), Exit::Resources);
        }
    }

    #[test]
    fn memory_too_small_for_the_image_is_refused_with_the_real_need() {
        let wish = Wish { image: Needs { file: 100 * MIB, unpacked: 0 }, ..wish(Some(64)) };
        let pools = vec![pool(PageSize::MIB2, 500, None)];
        let small = plan(&wish, &of(pools)).unwrap_err();
        assert!(small.fix().contains("`memory_mib: 108`"), "{}", small.fix());
        assert_eq!(small.exit(), Exit::Usage);
    }

    #[test]
    fn pages_of_another_node_do_not_count_and_are_named() {
        let pool = Pool { elsewhere: 500, ..pool(PageSize::MIB2, 32, None) };
        let snapshot = Snapshot { node: Some(1), ..of(vec![pool]) };
        let refused = plan(&wish(Some(128)), &snapshot).unwrap_err();
        assert!(refused.to_string().contains("node 1"), "{refused}");
        assert!(refused.fix().contains("node1/hugepages/hugepages-2048kB"), "{}", refused.fix());
        assert!(refused.fix().contains("32 more"), "{}", refused.fix());
        assert!(plan(&wish(Some(64)), &snapshot).unwrap().to_string().contains("on NUMA node 1"));
    }

    #[test]
    fn more_pieces_than_any_driver_takes_ask_for_larger_pages() {
        let refused =
            plan(&wish(Some(200 << 10)), &of(vec![pool(PageSize::MIB2, 200_000, None)])).unwrap_err();
        assert!(refused.fix().contains("`hugepages-1Gi: 204800Mi`"), "{}", refused.fix());
    }

    #[test]
    fn a_plan_in_json_says_the_same_in_numbers() {
        let snapshot = of(vec![pool(PageSize::MIB2, 50, None), pool(PageSize::GIB1, 1, None)]);
        let plan = plan(&wish(Some(1100)), &snapshot).unwrap();
        let json: serde_json::Value = serde_json::from_str(&plan.json()).unwrap();
        assert_eq!(json["memory_bytes"], 1100 * MIB);
        assert_eq!(json["regions"][0], serde_json::json!({"page_bytes": 1 << 30, "pages": 1}));
        assert_eq!((json["most_pieces"].as_u64(), json["waste_bytes"].as_u64()), (Some(39), Some(0)));
        assert_eq!(json["cpus"], serde_json::json!({"count": 2}));
        assert_eq!(json["boot_timeout_seconds"], 62.0);
    }

    #[test]
    fn the_time_to_be_ready_is_the_images_unless_one_is_chosen() {
        let snapshot = of(vec![pool(PageSize::MIB2, 50, None)]);
        let suits = plan(&wish(Some(64)), &snapshot).unwrap();
        assert!(suits.to_string().ends_with("; to be ready within 1m 2s"), "{suits}");
        let chosen = Wish { boot_timeout: Some(Timespan::from_secs(5)), ..wish(Some(64)) };
        assert_eq!(plan(&chosen, &snapshot).unwrap().boot_timeout, Timespan::from_secs(5));
    }

    fn any_pool(page: PageSize, most: u64) -> impl Strategy<Value = Pool> {
        let limit = proptest::option::of((0..most * page.bytes(), 0..most * page.bytes()));
        (0..most, limit).prop_map(move |(free, limit)| Pool {
            page,
            free,
            elsewhere: 0,
            limit: limit.map(|(max, used)| Limit { max, used }),
        })
    }

    proptest! {
        #[test]
        fn a_plan_covers_the_wish_within_every_bound_and_wastes_no_whole_page(
            small in any_pool(PageSize::MIB2, 2000),
            large in any_pool(PageSize::GIB1, 6),
            mib in 64u64..8192,
        ) {
            let snapshot = of(vec![small, large]);
            let available: u64 = snapshot.pools.iter().map(Pool::available).sum();
            match plan(&wish(Some(mib)), &snapshot) {
                Ok(plan) => {
                    prop_assert!(plan.memory() >= mib * MIB);
                    prop_assert_eq!(plan.memory() - mib * MIB, plan.waste);
                    for region in &plan.regions {
                        let pool = snapshot.pools.iter().find(|pool| pool.page == region.page).unwrap();
                        prop_assert!(region.bytes() <= pool.available());
                        prop_assert!(plan.waste < region.page.bytes());
                    }
                    prop_assert!(plan.regions.is_sorted_by_key(|region| std::cmp::Reverse(region.page)));
                }
                Err(shortfall) => {
                    prop_assert!(available < mib * MIB, "{shortfall:?}");
                    prop_assert!(!shortfall.fix().is_empty());
                }
            }
        }

        #[test]
        fn without_a_wish_a_plan_never_exceeds_what_can_be_had(
            small in any_pool(PageSize::MIB2, 2000),
            large in any_pool(PageSize::GIB1, 6),
        ) {
            let snapshot = of(vec![small, large]);
            if let Ok(plan) = plan(&wish(None), &snapshot) {
                prop_assert!(plan.memory() <= snapshot.pools.iter().map(Pool::available).sum());
            }
        }
    }
}
