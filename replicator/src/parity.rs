//! How many repair symbols a block has, by the loss of the link that it is made for.

use crate::coder::SYMBOL_COUNT_MAX;

/// How likely it may be that a block cannot be repaired by what is sent with it.
pub(crate) const RESIDUAL: f64 = 1e-6;
/// The same in a backlog.
pub(crate) const RESIDUAL_BACKLOG: f64 = 5e-4;
/// The same where so much waits that a block is repaired before the last of it has gone.
pub(crate) const RESIDUAL_DEEP: f64 = 0.1;

/// Repair symbols of a full block when nothing waits behind it.
pub(crate) fn full_block_repair_count(loss: f64) -> usize {
    repair_count(SYMBOL_COUNT_MAX / 2, loss, RESIDUAL)
}

/// The fewest repair symbols with which `source_count` source symbols survive independent loss but for a chance of `residual`; at
/// least one.
pub(crate) fn repair_count(source_count: usize, loss: f64, residual: f64) -> usize {
    let loss = loss.clamp(0.0, 0.5);
    (1..SYMBOL_COUNT_MAX)
        .find(|repair| too_many_lost(source_count + repair, *repair, loss) <= residual)
        .unwrap_or(SYMBOL_COUNT_MAX)
}

/// How likely it is that more than `most` of `count` symbols are lost: the tail of the binomial distribution.
fn too_many_lost(count: usize, most: usize, loss: f64) -> f64 {
    let mut term = (1.0 - loss).powi(count as i32);
    let mut tail = 0.0;
    for lost in 0..=count {
        if lost > most {
            tail += term;
        }
        term *= (count - lost) as f64 / (lost + 1) as f64 * loss / (1.0 - loss);
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers for 32 symbols and a chance of one in a million are those of tables of the binomial distribution.
    #[test]
    fn there_are_as_many_repair_symbols_as_the_loss_asks_for() {
        for (loss, repair) in [(0.0, 1), (0.01, 6), (0.05, 11), (0.10, 17)] {
            assert_eq!(repair_count(32, loss, RESIDUAL), repair, "{loss}");
        }
        // Little blocks need more than they have themselves.
        assert_eq!(repair_count(1, 0.05, RESIDUAL), 4);
        assert_eq!(repair_count(4, 0.10, RESIDUAL), 8);
        assert!(repair_count(32, 0.01, RESIDUAL_BACKLOG) < 6);
        // What a peer may say at most.
        assert!(repair_count(SYMBOL_COUNT_MAX / 2, 0.5, RESIDUAL) <= SYMBOL_COUNT_MAX);
        assert_eq!(repair_count(32, f64::MAX, RESIDUAL), SYMBOL_COUNT_MAX);
    }

    #[test]
    fn the_tail_of_the_distribution_is_what_it_should_be() {
        // Of three, each lost with one half: more than one in half of the cases, more than two in an eighth.
        assert!((too_many_lost(3, 1, 0.5) - 0.5).abs() < 1e-12);
        assert!((too_many_lost(3, 2, 0.5) - 0.125).abs() < 1e-12);
        assert_eq!(too_many_lost(3, 3, 0.5), 0.0);
    }
}
