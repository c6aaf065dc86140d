//! Kinds of EC2 zones, by name.

/// What a zone is, from its name (EC2 user guide, "Regions and Zones").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneKind {
    /// `us-east-1a`.
    Regular,
    /// `us-east-1-bos-1a`.
    Local,
    /// `us-east-1-wl1-bos-wlz-1`.
    Wavelength,
}

/// Tells what a zone is. `None` for what is no zone's name.
pub fn kind(name: &str) -> Option<ZoneKind> {
    let parts: Vec<&str> = name.split('-').collect();
    // The region ends with the first part that starts with a digit.
    let end = parts.iter().position(|part| part.starts_with(|c: char| c.is_ascii_digit()))?;
    let region = &parts[..end];
    let named = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    let area = region.first()?;
    if !(2..=4).contains(&region.len()) || area.len() != 2 || !region.iter().all(named) {
        return None;
    }
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let lettered = |part: &str| part.strip_suffix(|c: char| c.is_ascii_lowercase()).is_some_and(number);
    match (&parts[end], &parts[end + 1..]) {
        (last, []) if lettered(last) => Some(ZoneKind::Regular),
        (region, [city, zone]) if number(region) && named(city) && lettered(zone) => Some(ZoneKind::Local),
        (region, [wl, city, "wlz", zone]) if number(region) && named(city) && number(zone) => {
            wl.strip_prefix("wl").is_some_and(number).then_some(ZoneKind::Wavelength)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_told_apart_by_name() {
        for (name, expected) in [
            ("us-east-1a", Some(ZoneKind::Regular)),
            ("us-gov-west-1b", Some(ZoneKind::Regular)),
            ("us-iso-east-1c", Some(ZoneKind::Regular)),
            ("us-isob-east-1a", Some(ZoneKind::Regular)),
            ("us-east-1-bos-1a", Some(ZoneKind::Local)),
            ("us-west-2-lax-1b", Some(ZoneKind::Local)),
            ("us-east-1-wl1-bos-wlz-1", Some(ZoneKind::Wavelength)),
            ("us-east-1", None),
            ("us-east-1A", None),
            ("us-east-1-bos-1", None),
            ("bos", None),
            ("", None),
            ("${ZONE}", None),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }
}
