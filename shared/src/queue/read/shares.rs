//! How a read's room is divided among a queue's priorities.

/// Shares of the room for high, normal and low priority while all three have plenty.
const SHARES: [usize; 3] = [6, 3, 1];

/// All turns of a room too small to divide.
pub(super) const TURNS: usize = SHARES[0] + SHARES[1] + SHARES[2];

/// The room's shares for the three streams: those with plenty share by weight, the others get one to be noticed by. A room
/// too small for that goes to one stream, by turns in the proportion of the weights.
#[must_use]
pub fn shares(room: usize, plenty: [bool; 3], turn: usize) -> [usize; 3] {
    let wanting: Vec<usize> = (0..3).filter(|index| plenty.get(*index) == Some(&true)).collect();
    let mut shares = [0; 3];
    if room < 6 {
        let mut place = turn;
        for (index, weight) in SHARES.iter().enumerate() {
            if place < *weight {
                // Its turn, but if it has nothing the room goes to the first that has.
                let chosen = if wanting.contains(&index) { index } else { wanting.first().copied().unwrap_or(index) };
                if let Some(share) = shares.get_mut(chosen) {
                    *share = room;
                }
                return shares;
            }
            place -= weight;
        }
        return shares;
    }
    let divided = room - (3 - wanting.len());
    let weights: usize = wanting.iter().filter_map(|index| SHARES.get(*index)).sum();
    for (index, (slot, weight)) in shares.iter_mut().zip(SHARES).enumerate() {
        *slot = if wanting.contains(&index) { (divided * weight / weights.max(1)).max(1) } else { 1 };
    }
    // What the divisions left over goes to the highest priority that has plenty.
    let left = room.saturating_sub(shares.iter().sum());
    if let Some(slot) = wanting.first().and_then(|first| shares.get_mut(*first)) {
        *slot += left;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fill_the_room_and_starve_nobody() {
        for room in 1..200 {
            for mask in 1..8_u8 {
                let plenty = [mask & 1 != 0, mask & 2 != 0, mask & 4 != 0];
                let mut served = [0; 3];
                for turn in 0..10 {
                    let shares = shares(room, plenty, turn);
                    assert_eq!(shares.iter().sum::<usize>(), room, "room {room} of {plenty:?} at turn {turn}: {shares:?}");
                    for (total, share) in served.iter_mut().zip(shares) {
                        *total += share;
                    }
                }
                for (index, has) in plenty.into_iter().enumerate() {
                    assert!(!has || served[index] > 0, "{index} is starved: room {room}, {plenty:?}");
                }
                if mask == 7 {
                    assert!(served[0] >= served[1] && served[1] >= served[2]);
                }
            }
        }
    }
}
