//! How many different ones: exactly up to [`EXACT`] of them, by their hashes; beyond that `HyperLogLog`
//! (Flajolet et al., 2007) with the estimator of Ertl ("New cardinality estimation algorithms for `HyperLogLog` sketches",
//! arXiv:1702.01284, algorithm 6), whose standard error is [`ERROR`].
//!
//! What must stay true: both forms depend on the set alone, not on the order or on how it was split: hashes are a set, registers are
//! maxima, and which form it is depends on how many there are. Estimators that profit from the order ("HIP") are not used for that reason.
//!
//! Stored, registers take four bits each above the lowest of them, and the few that are further above are listed, as in `DataSketches`' `HLL_4`:
//! two thirds of what six bits each take, which is how older rows have them.

use std::collections::BTreeSet;

use super::{
    Unreadable,
    encoding::{Reader, put},
};

/// Up to so many are counted exactly (but for hashes that collide: 1 in 10¹⁵ at this size).
pub const EXACT: usize = 256;

/// The standard error of larger counts: 1.04 / √4096.
pub const ERROR: f64 = 0.016_25;

/// Bits of a hash that choose its register.
const PRECISION: u32 = 12;

/// How many registers there are.
const REGISTERS: usize = 1 << PRECISION;

/// The other bits of a hash.
const REST: u32 = 64 - PRECISION;

/// What is stored: hashes, registers in six bits each, registers in four bits each above the lowest.
const HASHES: u8 = 0;
const SIX_BITS: u8 = 1;
const FOUR_BITS: u8 = 2;

/// In four bits: so far above the lowest, or further; these are listed. One or two are of any set; above so many it is no smaller.
const FURTHER: u8 = 15;
const MOST_FURTHER: usize = 255;

/// A set that is only asked for its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uniques {
    /// The hashes.
    Exact(BTreeSet<u64>),
    /// In each register the longest run of leading zeros, plus one, among the hashes that chose it.
    Registers(Box<[u8; REGISTERS]>),
}

impl Default for Uniques {
    fn default() -> Self {
        Self::Exact(BTreeSet::new())
    }
}

impl Uniques {
    /// Adds a member by its hash, all of whose 64 bits must be equally likely.
    pub fn add(&mut self, hash: u64) {
        match self {
            Self::Exact(hashes) => {
                hashes.insert(hash);
                self.condense();
            }
            Self::Registers(registers) => raise(registers, hash),
        }
    }

    /// Adds another's members.
    pub fn merge(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Exact(hashes), Self::Exact(others)) => {
                hashes.extend(others);
                self.condense();
            }
            (Self::Registers(registers), Self::Exact(others)) => {
                for hash in others {
                    raise(registers, *hash);
                }
            }
            (_, Self::Registers(others)) => self.merge_registers(others),
        }
    }

    fn merge_registers(&mut self, others: &[u8; REGISTERS]) {
        match &mut *self {
            Self::Registers(registers) => {
                registers.iter_mut().zip(others).for_each(|(register, other)| *register = (*register).max(*other));
            }
            Self::Exact(hashes) => {
                let mut registers = Box::new(*others);
                for hash in &*hashes {
                    raise(&mut registers, *hash);
                }
                *self = Self::Registers(registers);
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Exact(hashes) => hashes.len() as u64,
            Self::Registers(registers) => estimate(registers),
        }
    }

    /// Too many for hashes become registers.
    fn condense(&mut self) {
        if let Self::Exact(hashes) = self
            && hashes.len() > EXACT
        {
            let mut registers = Box::new([0; REGISTERS]);
            for hash in &*hashes {
                raise(&mut registers, *hash);
            }
            *self = Self::Registers(registers);
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Exact(hashes) => {
                out.push(HASHES);
                put(hashes.len() as u128, out);
                for hash in hashes {
                    out.extend_from_slice(&hash.to_be_bytes());
                }
            }
            Self::Registers(registers) => encode_registers(registers, out),
        }
    }

    /// Adds another's members as they were encoded.
    pub(super) fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Unreadable> {
        match reader.byte()? {
            // By far the most: no set is made of what is only added to another.
            HASHES => {
                for hash in exact(reader)? {
                    self.add(u64::from_be_bytes(*hash));
                }
            }
            // In place: answers by days of other zones are put together of thousands of these.
            form => self.merge_registers(&decode_registers(form, reader)?),
        }
        Ok(())
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Unreadable> {
        match reader.byte()? {
            HASHES => Ok(Self::Exact(exact(reader)?.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect())),
            form => Ok(Self::Registers(Box::new(decode_registers(form, reader)?))),
        }
    }
}

fn encode_registers(registers: &[u8; REGISTERS], out: &mut Vec<u8>) {
    let lowest = registers.iter().copied().min().unwrap_or_default();
    let above = |register: &u8| (register - lowest).min(FURTHER);
    let further = || registers.iter().enumerate().filter(|(_, register)| above(register) == FURTHER);
    let count = further().count();
    if count > MOST_FURTHER {
        out.push(SIX_BITS);
        // Four in three bytes: no register is above 53.
        for four in registers.as_chunks::<4>().0 {
            let packed = four.iter().fold(0_u32, |packed, register| packed << 6 | u32::from(*register));
            out.extend_from_slice(&packed.to_be_bytes()[1..]);
        }
        return;
    }
    out.extend_from_slice(&[FOUR_BITS, lowest]);
    // One of the first half with one of the second, so that both halves are read straight through.
    let (first, second) = registers.split_at(REGISTERS / 2);
    out.extend(first.iter().zip(second).map(|(low, high)| above(low) | above(high) << 4));
    put(count as u128, out);
    for (place, register) in further() {
        put(place as u128, out);
        out.push(*register);
    }
}

fn decode_registers(form: u8, reader: &mut Reader<'_>) -> Result<[u8; REGISTERS], Unreadable> {
    let registers = match form {
        SIX_BITS => of_six_bits(reader)?,
        FOUR_BITS => of_four_bits(reader)?,
        _ => return Err(Unreadable("its form is unknown")),
    };
    if registers.iter().any(|register| u32::from(*register) > REST + 1) {
        return Err(Unreadable("a register is out of range"));
    }
    Ok(registers)
}

fn of_four_bits(reader: &mut Reader<'_>) -> Result<[u8; REGISTERS], Unreadable> {
    let lowest = reader.byte()?;
    let both = reader.take(REGISTERS / 2)?;
    let mut registers = [0; REGISTERS];
    let (first, second) = registers.split_at_mut(REGISTERS / 2);
    for ((low, high), both) in first.iter_mut().zip(second).zip(both) {
        *low = lowest.saturating_add(both & FURTHER);
        *high = lowest.saturating_add(both >> 4);
    }
    for _ in 0..reader.count()? {
        let place = usize::try_from(reader.count()?).ok();
        let register = place.and_then(|place| registers.get_mut(place)).ok_or(Unreadable("there is no such register"))?;
        *register = reader.byte()?;
    }
    Ok(registers)
}

fn of_six_bits(reader: &mut Reader<'_>) -> Result<[u8; REGISTERS], Unreadable> {
    let bytes = reader.take(REGISTERS / 4 * 3)?;
    let mut registers = [0; REGISTERS];
    for (eight, [a, b, c, d, e, f]) in registers.as_chunks_mut::<8>().0.iter_mut().zip(bytes.as_chunks::<6>().0) {
        // Eight at a time, each half apart from the other, then each quarter, then each of them: a third of the time of one by one.
        let packed = u64::from_be_bytes([0, 0, *a, *b, *c, *d, *e, *f]);
        let halves = (packed & 0x00ff_ffff) | (packed >> 24) << 32;
        let quarters = (halves & 0x0000_0fff_0000_0fff) | (halves & 0x00ff_f000_00ff_f000) << 4;
        let each = (quarters & 0x003f_003f_003f_003f) | (quarters & 0x0fc0_0fc0_0fc0_0fc0) << 2;
        *eight = each.to_be_bytes();
    }
    Ok(registers)
}

/// The hashes of an exact one.
fn exact<'a>(reader: &mut Reader<'a>) -> Result<&'a [[u8; 8]], Unreadable> {
    let length = usize::try_from(reader.count()?).ok().filter(|length| *length <= EXACT);
    Ok(reader.take(length.ok_or(Unreadable("there are too many hashes"))? * 8)?.as_chunks::<8>().0)
}

fn raise(registers: &mut [u8; REGISTERS], hash: u64) {
    let chosen = usize::try_from(hash >> REST).unwrap_or_default();
    // A one behind the rest's bits, so that the run ends there.
    let zeros = ((hash << PRECISION) | (1 << (PRECISION - 1))).leading_zeros();
    if let Some(register) = registers.get_mut(chosen) {
        *register = (*register).max(u8::try_from(zeros + 1).unwrap_or(u8::MAX));
    }
}

/// Ertl's improved raw estimate: no tables, no bias to correct, from one to the largest.
fn estimate(registers: &[u8; REGISTERS]) -> u64 {
    let mut with = [0_u32; REST as usize + 2];
    for register in registers {
        if let Some(count) = with.get_mut(usize::from(*register)) {
            *count += 1;
        }
    }
    let all = REGISTERS as f64;
    let (Some(none), Some(most)) = (with.first(), with.last()) else { return 0 };
    let mut sum = all * tau(1.0 - f64::from(*most) / all);
    for count in with.iter().take(REST as usize + 1).skip(1).rev() {
        sum = 0.5 * (sum + f64::from(*count));
    }
    sum += all * sigma(f64::from(*none) / all);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and beyond 64 bits is their end")]
    let estimate = (all * all / (2.0 * std::f64::consts::LN_2 * sum)).round() as u64;
    estimate
}

fn sigma(mut x: f64) -> f64 {
    if x >= 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        // Until nothing changes, as the paper has it; each step halves what is added at least.
        if z <= before {
            return z;
        }
    }
}

fn tau(mut x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x).powi(2) * y;
        if z >= before {
            return z / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    fn hashes(count: usize) -> Vec<u64> {
        (0..count).map(|_| u64::from_le_bytes(random::bytes())).collect()
    }

    #[test]
    fn few_are_exact_and_many_within_their_error() {
        for count in [0, 1, 2, 100, EXACT, EXACT + 1, 300, 1_000, 4_000, 10_000, 20_000, 100_000, 1_000_000] {
            let mut uniques = Uniques::default();
            for hash in hashes(count) {
                uniques.add(hash);
                uniques.add(hash);
            }
            let (read, truth) = (uniques.count() as f64, count as f64);
            // Five standard errors: one run in a million.
            let most = if count <= EXACT { 0.0 } else { 5.0 * ERROR * truth };
            assert!((read - truth).abs() <= most, "{read} for {truth}");
        }
    }

    #[test]
    fn only_the_set_counts_and_it_survives_bytes() {
        for count in [0, 10, EXACT, EXACT + 1, 5_000, 200_000] {
            let members = hashes(count);
            let mut straight = Uniques::default();
            for hash in &members {
                straight.add(*hash);
            }
            // In parts of all sizes, backwards, some twice.
            let mut pieced = Uniques::default();
            for (index, part) in members.rchunks(37).enumerate() {
                let mut piece = Uniques::default();
                for hash in part.iter().rev() {
                    piece.add(*hash);
                }
                if index % 3 == 0 {
                    let mut swapped = piece.clone();
                    swapped.merge(&pieced);
                    pieced = swapped;
                }
                pieced.merge(&piece);
            }
            assert_eq!(pieced, straight);
            let mut out = Vec::new();
            straight.encode(&mut out);
            let mut reader = Reader(&out);
            assert_eq!(Uniques::decode(&mut reader), Ok(straight.clone()));
            assert!(reader.is_empty());
            // Added to some of each form as it was encoded, it is what it is added as a set.
            for others in [0, 100, 3_000] {
                let mut read = Uniques::default();
                for hash in hashes(others) {
                    read.add(hash);
                }
                let mut merged = read.clone();
                merged.merge(&straight);
                let mut reader = Reader(&out);
                read.read(&mut reader).unwrap();
                assert!(read == merged && reader.is_empty(), "{count} to {others}");
            }
            assert!(Uniques::decode(&mut Reader(&out[..out.len() - 1])).is_err());
        }
        assert!(Uniques::decode(&mut Reader(&[3])).is_err());
        // Registers beyond the last, one by one, above the lowest and listed; and one that there is none of.
        for broken in [
            [[SIX_BITS].as_slice(), &[0xff; 3_072]].concat(),
            [[FOUR_BITS, 40].as_slice(), &[0xee; 2_048], &[0]].concat(),
            [[FOUR_BITS, 255].as_slice(), &[0xee; 2_048], &[0]].concat(),
            [[FOUR_BITS, 0].as_slice(), &[0xff; 2_048], &[1, 0, 54]].concat(),
            [[FOUR_BITS, 0].as_slice(), &[0xff; 2_048], &[1, 0x80, 0x20, 20]].concat(),
        ] {
            assert!(Uniques::decode(&mut Reader(&broken)).is_err(), "{:?}", &broken[..2]);
            assert!(Uniques::default().read(&mut Reader(&broken)).is_err());
        }
    }

    #[test]
    fn registers_of_any_spread_survive_bytes_and_so_do_older_rows() {
        for (lowest, spread, far) in
            [(0, 1, 0), (0, 15, 0), (0, 15, 3), (0, 16, 0), (3, 14, 1), (9, 15, 255), (9, 15, 256), (38, 15, 0), (53, 1, 0), (0, 54, 0)]
        {
            let mut registers: Box<[u8; REGISTERS]> = Box::new([0; REGISTERS]);
            for (register, byte) in registers.iter_mut().zip(random::bytes::<REGISTERS>()) {
                *register = lowest + byte % spread;
            }
            registers[REGISTERS - 1] = lowest;
            for place in 0..far {
                registers[place * 16] = 53;
            }
            let uniques = Uniques::Registers(registers.clone());
            let mut out = Vec::new();
            uniques.encode(&mut out);
            assert_eq!(Uniques::decode(&mut Reader(&out)), Ok(uniques.clone()), "{lowest} {spread} {far}");
            // Never much larger than six bits each; as a set's are, two thirds of that.
            assert!(out.len() <= if spread < 16 && far < 4 { 2_064 } else { 3_073 }, "{} {lowest} {spread} {far}", out.len());
            // As rows were written before: a bit string.
            let bits: Vec<bool> = registers.iter().flat_map(|register| (0..6).rev().map(move |bit| register >> bit & 1 == 1)).collect();
            let bytes = bits.chunks(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit)));
            let older: Vec<u8> = std::iter::once(SIX_BITS).chain(bytes).collect();
            assert_eq!(Uniques::decode(&mut Reader(&older)), Ok(uniques), "{lowest} {spread} {far}");
        }
    }
}
