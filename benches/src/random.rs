//! The seeded generator behind every generated tree: the same seed gives the same bytes anywhere.

/// SplitMix64: small, fast, and good enough to make content that does not repeat.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; the bias is below 2^-32 for the bounds used here.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Appends `length` bytes of words in lines, which compress about as source text does.
    pub fn text(&mut self, length: usize, out: &mut Vec<u8>) {
        const STEMS: [&str; 16] = [
            "the", "fn ", "let", "file", "return", "match", "store", "branch", "of", "is", "value",
            "if", "self", "with", "string", "index",
        ];
        let end = out.len() + length;
        let mut column = 0;
        while out.len() < end {
            let draw = self.next();
            let start = out.len();
            out.extend_from_slice(STEMS[(draw % 16) as usize].as_bytes());
            if draw & 0x30 == 0 {
                out.extend_from_slice(format!("_{:x}", (draw >> 8) & 0xffff).as_bytes());
            }
            column += out.len() - start + 1;
            out.push(if column > 70 { b'\n' } else { b' ' });
            if column > 70 {
                column = 0;
            }
        }
        out.truncate(end);
        if let Some(last) = out.last_mut().filter(|_| length > 0) {
            *last = b'\n';
        }
    }

    /// Appends `length` bytes that nothing can compress.
    pub fn noise(&mut self, length: usize, out: &mut Vec<u8>) {
        let end = out.len() + length;
        while out.len() < end {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // First outputs of SplitMix64 for seed 0, so that trees stay the same for ever.
        let mut random = Random::new(0);
        assert_eq!(random.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.next(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn text_and_noise_have_the_length_asked_for() {
        let mut random = Random::new(7);
        for length in [0, 1, 7, 8, 9, 1000] {
            let mut out = vec![b'x'];
            random.text(length, &mut out);
            assert_eq!(out.len(), 1 + length);
            random.noise(length, &mut out);
            assert_eq!(out.len(), 1 + 2 * length);
        }
        assert!((0..1000).all(|_| random.below(3) < 3));
    }
}
