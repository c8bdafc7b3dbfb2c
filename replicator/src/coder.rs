//! The erasure code of a block: N source symbols, and any number of repair symbols up to R, of which any N together give
//! the source back.
//!
//! Copies for N = 1, XOR where one repair symbol is asked for, else systematic Reed–Solomon over GF(2¹⁶) in the
//! formulation of Lin, Al-Naffouri, Han and Chung (2016) as `reed-solomon-simd` has it. As shipped that crate spends
//! 165 µs a block on evaluating the error locator by two Walsh transforms over the whole field; for the few erasures
//! of a small block the direct sum is faster and gives the same bytes.

use crate::testing::{Plant, planted};
use bytes::{Bytes, BytesMut};
use reed_solomon_simd::{
    engine::{DefaultEngine, Engine, GF_MODULUS, GF_ORDER, GfElement, ShardsRefMut, tables},
    rate::{DecoderWork, EncoderWork, HighRateDecoder, HighRateEncoder, RateDecoder, RateEncoder},
};

/// Most source symbols in a block, and most repair symbols.
pub const SYMBOL_COUNT_MAX: usize = 64;

/// Which code a block uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Every repair symbol is a copy of the only source symbol.
    Copy,
    /// The one repair symbol is the sum of all source symbols.
    Xor,
    /// Reed–Solomon with so many repair symbols at most.
    ReedSolomon(u8),
}

impl Code {
    /// The code for `source_count` symbols of which `repair_count` repair symbols are sent at once.
    pub fn choose(source_count: usize, repair_count: usize) -> Self {
        match (source_count, repair_count) {
            (1, _) => Self::Copy,
            (_, 1) => Self::Xor,
            // What is made costs as much as the next power of two; what more is asked for is of the source.
            _ => Self::ReedSolomon(repair_count.next_power_of_two() as u8),
        }
    }

    /// How many different repair symbols there are.
    pub fn repair_count(self) -> usize {
        match self {
            Self::Copy => SYMBOL_COUNT_MAX,
            Self::Xor => 1,
            Self::ReedSolomon(count) => count.into(),
        }
    }
}

/// Makes repair symbols and restores what is lost; keeps the memory for it from block to block.
#[derive(Default)]
pub struct Coder {
    encoder: Option<EncoderWork>,
    decoder: Option<DecoderWork>,
}

impl Coder {
    /// Nothing is kept yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes all repair symbols of a block. `source`: at least one symbol, all of one even size.
    pub fn encode(&mut self, code: Code, source: &[Bytes]) -> Vec<Bytes> {
        let size = source.first().map_or(0, Bytes::len);
        match code {
            Code::Copy => source.iter().take(1).cycle().take(code.repair_count()).cloned().collect(),
            Code::Xor => vec![sum(size, source.iter())],
            Code::ReedSolomon(count) => self.repair(source, count.into(), size).unwrap_or_default(),
        }
    }

    fn repair(&mut self, source: &[Bytes], count: usize, size: usize) -> Result<Vec<Bytes>, reed_solomon_simd::Error> {
        let work = self.encoder.take();
        let mut encoder = HighRateEncoder::new(source.len(), count, size, DirectEngine::new(), work)?;
        for symbol in source {
            encoder.add_original_shard(symbol)?;
        }
        let mut made = BytesMut::with_capacity(count * size);
        encoder.encode()?.recovery_iter().for_each(|symbol| made.extend_from_slice(symbol));
        self.encoder = Some(encoder.into_parts().1);
        let made = made.freeze();
        Ok((0..count).map(|index| made.slice(index * size..(index + 1) * size)).collect())
    }

    /// Fills in the missing source symbols. `symbols`: the N source symbols, then the repair symbols, as far as they are
    /// here, all of one even size. `false` if there are fewer than N.
    pub fn decode(&mut self, code: Code, source_count: usize, symbols: &mut [Option<Bytes>]) -> bool {
        let (source, repair) = symbols.split_at_mut(source_count.min(symbols.len()));
        let missing: Vec<usize> = (0..source.len()).filter(|index| source[*index].is_none()).collect();
        if missing.is_empty() {
            return true;
        }
        if missing.len() > repair.iter().flatten().count() {
            return false;
        }
        match code {
            Code::Copy => source[0] = repair.iter().flatten().next().cloned(),
            Code::Xor => {
                let Some(parity) = repair.first().cloned().flatten() else {
                    return false;
                };
                let size = parity.len();
                let restored = sum(size, source.iter().flatten().chain([&parity]));
                source[missing[0]] = Some(restored);
            }
            Code::ReedSolomon(count) => return self.restore(source, repair, count.into()).is_ok(),
        }
        true
    }

    fn restore(
        &mut self,
        source: &mut [Option<Bytes>],
        repair: &[Option<Bytes>],
        count: usize,
    ) -> Result<(), reed_solomon_simd::Error> {
        let size = repair.iter().flatten().next().map_or(0, Bytes::len);
        let work = self.decoder.take();
        let mut decoder = HighRateDecoder::new(source.len(), count, size, DirectEngine::new(), work)?;
        for (index, symbol) in source.iter().enumerate() {
            if let Some(symbol) = symbol {
                decoder.add_original_shard(index, symbol)?;
            }
        }
        for (index, symbol) in repair.iter().enumerate().take(count) {
            if let Some(symbol) = symbol {
                let index = (index + usize::from(planted(Plant::WrongRepair))) % count;
                decoder.add_recovery_shard(index, symbol)?;
            }
        }
        let restored = decoder.decode()?;
        for (index, symbol) in restored.restored_original_iter() {
            if let Some(place) = source.get_mut(index) {
                *place = Some(Bytes::copy_from_slice(symbol));
            }
        }
        drop(restored);
        self.decoder = Some(decoder.into_parts().1);
        Ok(())
    }
}

fn sum<'a>(size: usize, symbols: impl Iterator<Item = &'a Bytes>) -> Bytes {
    let mut sum = BytesMut::zeroed(size);
    for symbol in symbols {
        sum.iter_mut().zip(symbol.iter()).for_each(|(sum, byte)| *sum ^= byte);
    }
    sum.freeze()
}

/// Builds the tables of the code, which takes about 10 ms once.
pub fn warm_up() {
    let source = vec![Bytes::from_static(&[1; 64]); 3];
    let mut coder = Coder::new();
    let repair = coder.encode(Code::ReedSolomon(4), &source);
    let mut symbols: Vec<Option<Bytes>> = vec![None; 3];
    symbols.extend(repair.into_iter().map(Some));
    assert!(coder.decode(Code::ReedSolomon(4), 3, &mut symbols), "the code does not decode");
}

/// The crate's fastest engine, with another way to evaluate the error locator.
struct DirectEngine(DefaultEngine);

impl DirectEngine {
    fn new() -> Self {
        Self(DefaultEngine::new())
    }
}

impl Engine for DirectEngine {
    fn fft(&self, data: &mut ShardsRefMut, pos: usize, size: usize, truncated_size: usize, skew_delta: usize) {
        self.0.fft(data, pos, size, truncated_size, skew_delta);
    }

    fn ifft(&self, data: &mut ShardsRefMut, pos: usize, size: usize, truncated_size: usize, skew_delta: usize) {
        self.0.ifft(data, pos, size, truncated_size, skew_delta);
    }

    fn mul(&self, x: &mut [[u8; 64]], log_m: GfElement) {
        self.0.mul(x, log_m);
    }

    fn eval_poly(erasures: &mut [GfElement; GF_ORDER], truncated_size: usize) {
        let log = &tables::get_exp_log().log;
        let erased: Vec<usize> = (0..truncated_size).filter(|index| erasures[*index] != 0).collect();
        for (index, place) in erasures.iter_mut().enumerate().take(truncated_size) {
            // The logarithm of zero counts as zero: a symbol's own place adds nothing.
            let others = erased.iter().filter(|other| **other != index);
            let sum: u32 = others.map(|other| u32::from(log[index ^ other])).sum();
            *place = (sum % u32::from(GF_MODULUS)) as GfElement;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn symbols(count: usize, size: usize, seed: u8) -> Vec<Bytes> {
        let byte = |symbol: usize, at: usize| (symbol * 31 + at * 7 + usize::from(seed)) as u8 ^ (at >> 5) as u8;
        (0..count).map(|symbol| (0..size).map(|at| byte(symbol, at)).collect()).collect()
    }

    proptest! {
        /// Any N of the N + R symbols give the block back, for every code.
        #[test]
        fn any_n_symbols_suffice(
            count in 1usize..=64, repair in 1usize..=16, half in 1usize..80, seed: u8, order in any::<u64>(),
        ) {
            let code = Code::choose(count, repair);
            let source = symbols(count, half * 2, seed);
            let mut all: Vec<Option<Bytes>> = source.iter().cloned().map(Some).collect();
            all.extend(Coder::new().encode(code, &source).into_iter().map(Some));
            let mut left = all.len() - count;
            let mut state = order | 1;
            while left > 0 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let index = (state >> 33) as usize % all.len();
                left -= usize::from(all[index].take().is_some());
            }
            prop_assert!(Coder::new().decode(code, count, &mut all));
            for (found, expected) in all.iter().zip(&source) {
                prop_assert_eq!(found.as_ref(), Some(expected));
            }
        }

        /// The direct sum is what the crate's own engine computes.
        #[test]
        fn repair_symbols_decode_with_the_stock_engine_too(count in 2usize..=40, lost in 1usize..=4, seed: u8) {
            let source = symbols(count, 64, seed);
            let room = count.max(4).next_power_of_two();
            let repair = Coder::new().encode(Code::ReedSolomon(room as u8), &source);
            let lost = lost.min(count);
            let mut stock = HighRateDecoder::new(count, room, 64, DefaultEngine::new(), None).unwrap();
            for (index, symbol) in source.iter().enumerate().skip(lost) {
                stock.add_original_shard(index, symbol).unwrap();
            }
            repair.iter().enumerate().take(lost).for_each(|(i, s)| stock.add_recovery_shard(i, s).unwrap());
            let theirs = stock.decode().unwrap();
            let mut ours: Vec<Option<Bytes>> = (0..count).map(|i| (i >= lost).then(|| source[i].clone())).collect();
            ours.extend(repair.iter().enumerate().map(|(i, s)| (i < lost).then(|| s.clone())));
            prop_assert!(Coder::new().decode(Code::ReedSolomon(room as u8), count, &mut ours));
            for (index, symbol) in theirs.restored_original_iter() {
                prop_assert_eq!(ours[index].as_deref(), Some(symbol));
                prop_assert_eq!(&source[index][..], symbol);
            }
        }
    }

    #[test]
    fn what_is_kept_of_one_block_does_not_show_in_the_next() {
        let mut coder = Coder::new();
        for (count, repair, size, lost) in [(32, 16, 1_100, 16), (3, 8, 64, 3), (40, 5, 802, 2), (32, 16, 1_100, 1)] {
            let (code, source) = (Code::choose(count, repair), symbols(count, size, count as u8));
            let made = coder.encode(code, &source);
            assert!(made == Coder::new().encode(code, &source), "{count} + {repair}");
            let mut all: Vec<Option<Bytes>> = source.iter().chain(&made).cloned().map(Some).collect();
            all.iter_mut().take(lost).for_each(|symbol| *symbol = None);
            assert!(coder.decode(code, count, &mut all));
            assert!(all.iter().flatten().take(count).eq(&source), "{count} + {repair}");
        }
    }

    #[test]
    fn fewer_than_n_symbols_are_refused() {
        let source = symbols(5, 10, 1);
        let mut all: Vec<Option<Bytes>> = vec![None; 5];
        all.extend(Coder::new().encode(Code::choose(5, 3), &source).into_iter().take(4).map(Some));
        assert!(!Coder::new().decode(Code::choose(5, 3), 5, &mut all));
    }
}
