//! One stream of the soak: what its ends do, how long it is, and its bytes.
//! All of it follows from a seed, which travels in the header.

/// Bytes in front of a stream.
pub(super) const HEADER: usize = 25;

/// What a stream's ends do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Play {
    /// Question, half-close, answer, end.
    Whole,
    /// The same, one byte a write.
    Trickle,
    /// The same, but the client does not read for a while.
    Stall,
    /// The server ends its direction first and still gets everything.
    ServerFirst,
    /// The client resets in the middle of its question.
    ClientResets,
    /// The server resets in the middle of its answer.
    ServerResets,
    /// The client closes without reading the answer.
    Leave,
}

pub(super) const PLAYS: [Play; 7] = [
    Play::Whole,
    Play::Trickle,
    Play::Stall,
    Play::ServerFirst,
    Play::ClientResets,
    Play::ServerResets,
    Play::Leave,
];

/// One stream, as its header says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    pub(super) play: Play,
    pub(super) seed: u64,
    pub(super) up: u64,
    pub(super) down: u64,
}

impl Stream {
    pub(super) fn of(seed: u64) -> Stream {
        let play = PLAYS[(mix(seed) % PLAYS.len() as u64) as usize];
        let most = match (play, mix(seed ^ 1) % 20) {
            (Play::Trickle, _) => 300,
            (_, 0) => 4 << 20,
            (_, 1..8) => 1 << 10,
            _ => 200 << 10,
        };
        Stream { play, seed, up: mix(seed ^ 2) % most, down: mix(seed ^ 3) % most }
    }

    pub(super) fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = PLAYS.iter().position(|play| *play == self.play).unwrap_or(0) as u8;
        header[1..9].copy_from_slice(&self.seed.to_le_bytes());
        header[9..17].copy_from_slice(&self.up.to_le_bytes());
        header[17..25].copy_from_slice(&self.down.to_le_bytes());
        header
    }

    /// None if the header was damaged.
    pub(super) fn parse(header: &[u8; HEADER]) -> Option<Stream> {
        let mut seed = [0; 8];
        seed.copy_from_slice(&header[1..9]);
        let stream = Stream::of(u64::from_le_bytes(seed));
        (stream.header() == *header).then_some(stream)
    }
}

/// The stream's byte at `place`, from its client; its server's has the seed inverted.
pub(super) fn byte(seed: u64, place: u64) -> u8 {
    (mix(seed ^ (place >> 3)) >> ((place & 7) * 8)) as u8
}

/// One step of the splitmix64 generator.
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_header_is_noticed() {
        let header = Stream::of(7).header();
        assert!(Stream::parse(&header).is_some());
        for at in 0..HEADER {
            let mut changed = header;
            changed[at] ^= 1;
            assert!(Stream::parse(&changed).is_none(), "byte {at}");
        }
    }

    #[test]
    fn every_play_comes_up() {
        for play in PLAYS {
            assert!((0..100).any(|seed| Stream::of(seed).play == play), "{play:?}");
        }
    }
}
