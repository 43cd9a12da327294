//! Chance that can be repeated.

use std::{
    hash::{BuildHasher, RandomState},
    ops::RangeInclusive,
    time::Duration,
};

/// Whether the run has the full size.
pub fn full() -> bool {
    std::env::var("CHAOS").is_ok_and(|size| size == "full")
}

/// One of two sizes.
pub fn size<T>(short: T, long: T) -> T {
    if full() { long } else { short }
}

/// A scenario's chance. Whoever panics while it lives is told how to run the same again.
#[derive(Debug)]
pub struct Seed {
    /// What all of it follows from.
    pub number: u64,
    scenario: &'static str,
}

impl Seed {
    /// The one in `CHAOS_SEED`, else a new one; printed.
    pub fn of(scenario: &'static str) -> Self {
        let given = std::env::var("CHAOS_SEED").ok().map(|text| text.parse().expect("CHAOS_SEED is a whole number"));
        let number = given.unwrap_or_else(|| RandomState::new().hash_one(scenario) % 1_000_000);
        println!("chaos: {scenario} with CHAOS_SEED={number}");
        Self { number, scenario }
    }

    /// A source of chance for one purpose, the same for the same seed whatever others draw.
    pub fn chance(&self, purpose: u64) -> Chance {
        let scenario = self.scenario.bytes().fold(0_u64, |all, byte| all.wrapping_mul(31).wrapping_add(byte.into()));
        let mut chance = Chance(self.number ^ scenario.rotate_left(17) ^ purpose.rotate_left(41));
        // Seeds that lie close together begin alike; a few draws take them apart.
        for _ in 0..4 {
            chance.draw();
        }
        chance
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let size = if full() { "CHAOS=full " } else { "" };
            eprintln!(
                "chaos: to run the like of it again: {size}CHAOS_SEED={} cargo nextest run -p acceptance --test chaos {}",
                self.number, self.scenario
            );
        }
    }
}

/// `SplitMix64` (Steele, Lea, Flood 2014): small, and good enough to spread faults.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number of a range.
    pub fn number(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.draw() % (range.end() - range.start() + 1)
    }

    /// A time of so many milliseconds.
    pub fn milliseconds(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.number(range))
    }

    /// One of several.
    pub fn choose<'a, T>(&mut self, several: &'a [T]) -> &'a T {
        let index = usize::try_from(self.draw() % several.len() as u64).expect("an index");
        &several[index]
    }
}
