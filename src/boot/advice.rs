//! What is known to be wrong with the kernel that an image brings, by its
//! version. Nothing here keeps an image from being launched.
//!
//! Sources: Linux commit 6693731487a8 (in 6.17) and its copy in 6.12.68, with
//! cloud-hypervisor#7672 and base/base#1444 for what it does;
//! aws-nitro-enclaves-sdk-bootstrap#36 for the stall, aws-nitro-enclaves-cli#550
//! for the leak.

/// The first kernel of AWS's with their patch against the stall. Linux itself
/// has not taken it, so a newer version proves nothing.
const UNSTALLED: (u32, u32, u32) = (6, 6, 62);

/// A line for each known fault of the kernel `release`. `has_agent`: our agent
/// writes to the vsock, and nobody else does unless the settings allow it.
pub(super) fn of(release: Option<&str>, has_agent: bool) -> Vec<String> {
    let Some((release, version)) = release.and_then(|release| Some((release, parse(release)?))) else {
        return Vec::new();
    };
    let mut advice = Vec::new();
    if splits_large_writes(version) && !has_agent {
        advice.push(format!(
            "the image's kernel {release} may damage what a program in the enclave writes to a vsock in pieces \
             above 32 KiB (Linux 6.17, 6.12.68 and later on Nitro): write less at a time, or use our agent, which does"
        ));
    }
    if version < UNSTALLED {
        advice.push(format!(
            "the image's kernel {release} may stall its vsock for good when both directions are full, and before \
             6.8 may run out of memory under much traffic: build the image with a kernel of AWS's from 6.6.62 on"
        ));
    }
    advice
}

/// Whether a large write is sent in several fragments, which Nitro's
/// hypervisor does not put together.
fn splits_large_writes((major, minor, patch): (u32, u32, u32)) -> bool {
    (major, minor) >= (6, 17) || ((major, minor) == (6, 12) && patch >= 68)
}

/// The numbers at the start: `6.12.95-cloud` and `6.1`.
fn parse(release: &str) -> Option<(u32, u32, u32)> {
    let end = release.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(release.len());
    let mut numbers = release[..end].split('.').map(str::parse);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((major, minor, numbers.next().and_then(Result::ok).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_known_fault_is_told_of_the_kernels_that_have_it_and_of_no_other() {
        let faults = |release: &str, has_agent| {
            let advice = of(Some(release), has_agent).join("|");
            assert!(advice.is_empty() || advice.contains(release), "{advice}");
            (advice.contains("32 KiB"), advice.contains("6.6.62"))
        };
        for (release, large_writes, stall) in [
            ("4.14.256-209.484.amzn2.x86_64", false, true),
            ("6.1.0-28-amd64", false, true),
            ("6.6.61", false, true),
            ("6.6.62", false, false),
            ("6.12.67", false, false),
            ("6.12.68", true, false),
            ("6.12.95-cloud", true, false),
            ("6.16.12", false, false),
            ("6.17", true, false),
            ("7.0.11", true, false),
        ] {
            assert_eq!(faults(release, false), (large_writes, stall), "{release}");
            assert_eq!(faults(release, true), (false, stall), "{release} with our agent");
        }
    }

    #[test]
    fn a_kernel_that_does_not_say_what_it_is_gets_no_advice() {
        for release in [None, Some("unknown"), Some(""), Some("6"), Some("99999999999.1.1")] {
            assert!(of(release, false).is_empty(), "{release:?}");
        }
    }
}
