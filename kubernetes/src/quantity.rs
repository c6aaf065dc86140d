//! Kubernetes quantities (apimachinery's resource.Quantity): `250m`, `768Mi`,
//! `2`, `1e3`.

use std::fmt;

/// A quantity in thousandths, which is as fine as Kubernetes counts cpu.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    milli: i128,
}

impl Quantity {
    /// Reads a quantity. `None` when Kubernetes would refuse it, or when it
    /// is finer than a thousandth.
    pub fn parse(text: &str) -> Option<Quantity> {
        let digits_end = text
            .char_indices()
            .find(|(at, c)| !(c.is_ascii_digit() || *c == '.' || (*at == 0 && matches!(c, '+' | '-'))))
            .map_or(text.len(), |(at, _)| at);
        let (number, suffix) = text.split_at(digits_end);
        let (factor, divisor) = scale(suffix)?;
        let (sign, number) = match number.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 9 {
            return None;
        }
        let digits: i128 = format!("0{whole}{fraction}").parse().ok()?;
        let tenths = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let scaled = digits.checked_mul(factor)?.checked_mul(1000)?;
        let divisor = tenths.checked_mul(divisor)?;
        (scaled % divisor == 0).then_some(Quantity { milli: sign * (scaled / divisor) })
    }

    /// The value in thousandths.
    pub fn milli(self) -> i128 {
        self.milli
    }

    /// The whole value, if it is one and not negative: bytes, or a count.
    pub fn whole(self) -> Option<u64> {
        (self.milli % 1000 == 0).then(|| u64::try_from(self.milli / 1000).ok()).flatten()
    }
}

/// A suffix as a factor and a divisor.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

/// Bytes as Kubernetes writes them, in the largest unit that fits exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, whole) in [
            ("1", Some(1)),
            ("768Mi", Some(768 << 20)),
            ("0.5Gi", Some(512 << 20)),
            ("1e3", Some(1000)),
            ("2000m", Some(2)),
            ("250m", None),
            ("1G", Some(1_000_000_000)),
            ("-1", None),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().whole(), whole, "{text}");
        }
        for text in ["", "Mi", "1mi", "1 Mi", "1.2.3", "0x10", "one"] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }

    #[test]
    fn bytes_are_written_in_the_largest_whole_unit() {
        for (bytes, text) in [(768 << 20, "768Mi"), (2 << 30, "2Gi"), (64 << 10, "64Ki"), (5, "5")] {
            assert_eq!(Bytes(bytes).to_string(), text);
            assert_eq!(Quantity::parse(text).unwrap().whole(), Some(bytes));
        }
    }
}
